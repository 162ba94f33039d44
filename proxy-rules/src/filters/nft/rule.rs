// SPDX-License-Identifier: Apache-2.0

//! Evaluates one rule of nf_tables for one packet: the loads, comparisons and actions of its expressions.

use std::collections::BTreeMap;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

use super::super::packet::{Direction, PROTOCOL, Packet};
use super::super::walk::{Action, Step, Truth};
use super::sets::{Named, Sets};
use crate::nla::{number, text};

mod xtables;

/// Payload bases (`enum nft_payload_bases`).
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
// Attributes of `ct`, `match` and `target`.
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
/// Verdicts of `linux/netfilter.h`.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// The known content of a register.
#[derive(Debug, Clone)]
enum Value {
    /// The bytes in the register.
    Bytes(Vec<u8>),
    /// The name or the index of a link.
    Link,
    /// The name or the index of a link other than `lo`.
    NotLoopback,
    /// The beginning of the client's address, which is none of the loopback range.
    Client,
}

/// The content of each register; `None` if it is unknown.
type Registers = BTreeMap<u32, Option<Value>>;

/// Returns the effect of a rule on a packet.
pub fn step(expressions: &[Named<'_>], packet: &Packet, sets: &Sets) -> Step {
    let mut registers = Registers::new();
    let mut step = Step {
        matches: Truth::Yes,
        action: Action::Nothing,
    };
    for expression in expressions {
        let matches = match expression.data {
            Some(Expressions::Payload(attributes)) => {
                load_payload(attributes, packet, &mut registers)
            }
            Some(Expressions::Meta(attributes)) => load_meta(attributes, packet, &mut registers),
            Some(Expressions::Bitwise(attributes)) => mask(attributes, &mut registers),
            Some(Expressions::Cmp(attributes)) => compare(attributes, &registers),
            Some(Expressions::Lookup(attributes)) => {
                look_up(attributes, &registers, sets, &mut step.action)
            }
            Some(Expressions::Immediate(attributes)) => {
                immediate(attributes, &mut registers, &mut step.action)
            }
            Some(Expressions::Other { attributes, .. }) => other(
                expression.name,
                attributes,
                packet,
                &mut registers,
                &mut step.action,
            ),
            _ => other(
                expression.name,
                &[],
                packet,
                &mut registers,
                &mut step.action,
            ),
        };
        step.matches = step.matches.min(matches);
    }
    step
}

fn load_payload(attributes: &[Payload], packet: &Packet, registers: &mut Registers) -> Truth {
    let (mut register, mut base, mut offset, mut length) = (None, 0, 0, 0);
    for attribute in attributes {
        match attribute {
            Payload::DestinationRegister(number) => register = Some(*number),
            Payload::Base(value) => base = *value,
            Payload::Offset(value) => offset = *value,
            Payload::Len(value) => length = *value,
            _ => {}
        }
    }
    let (offset, length) = (usize::try_from(offset), usize::try_from(length));
    let value = match (base, offset, length) {
        (NETWORK_HEADER, Ok(offset), Ok(length)) if packet.is_client(offset, length) => {
            Some(Value::Client)
        }
        (NETWORK_HEADER, Ok(offset), Ok(length)) => {
            packet.network(offset, length).map(Value::Bytes)
        }
        (TRANSPORT_HEADER, Ok(offset), Ok(length)) => {
            packet.transport(offset, length).map(Value::Bytes)
        }
        _ => None,
    };
    if let Some(register) = register {
        registers.insert(register.into(), value);
    }
    Truth::Yes
}

fn load_meta(attributes: &[Meta], packet: &Packet, registers: &mut Registers) -> Truth {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    const FAMILIES: [u8; 2] = [2, 10];
    let (mut register, mut key) = (None, None);
    for attribute in attributes {
        match attribute {
            Meta::DestinationRegister(number) => register = Some(*number),
            Meta::Key(of) => key = Some(*of),
            _ => {}
        }
    }
    let v6 = packet.end.is_ipv6();
    let by_link = match packet.direction {
        Direction::Request => [MetaKey::Iif, MetaKey::Iifname],
        Direction::Reply | Direction::Opening => [MetaKey::Oif, MetaKey::Oifname],
    };
    let value = match key {
        Some(key) if by_link.contains(&key) => {
            let value = if packet.by_loopback() {
                Value::Link
            } else {
                Value::NotLoopback
            };
            registers.extend(register.map(|register| (register.into(), Some(value))));
            return Truth::Yes;
        }
        Some(MetaKey::L4Proto) => Some(vec![PROTOCOL]),
        Some(MetaKey::Nfproto) => Some(vec![FAMILIES[usize::from(v6)]]),
        Some(MetaKey::EtherTypeProtocol) => {
            let ether_type = if v6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
            u16::try_from(ether_type)
                .ok()
                .map(|number| number.to_be_bytes().to_vec())
        }
        _ => None,
    };
    if let Some(register) = register {
        registers.insert(register.into(), value.map(Value::Bytes));
    }
    Truth::Yes
}

fn mask(attributes: &[Bitwise], registers: &mut Registers) -> Truth {
    let (mut from, mut to, mut mask, mut xor, mut op) = (None, None, None, None, 0);
    for attribute in attributes {
        match attribute {
            Bitwise::SourceRegister(number) => from = Some(*number),
            Bitwise::DestinationRegister(number) => to = Some(*number),
            Bitwise::Mask(DataAttribute::Value(bytes)) => mask = Some(bytes),
            Bitwise::Xor(DataAttribute::Value(bytes)) => xor = Some(bytes),
            Bitwise::Op(of) => op = *of,
            _ => {}
        }
    }
    let mut is_client = false;
    let value = from.and_then(|from| match registers.get(&from.into())?.clone()? {
        Value::Bytes(bytes) => Some(bytes),
        Value::Client => {
            is_client = true;
            None
        }
        Value::Link | Value::NotLoopback => None,
    });
    let masked = value
        .zip(mask)
        .zip(xor)
        .filter(|_| op == 0)
        .map(|((value, mask), xor)| {
            let bits = value.iter().zip(mask).zip(xor);
            bits.map(|((value, mask), xor)| (value & mask) ^ xor)
                .collect()
        });
    if let Some(to) = to {
        let masked = masked.map(Value::Bytes);
        registers.insert(to.into(), masked.or(is_client.then_some(Value::Client)));
    }
    Truth::Yes
}

fn compare(attributes: &[Cmp], registers: &Registers) -> Truth {
    let (mut register, mut op, mut data) = (None, None, None);
    for attribute in attributes {
        match attribute {
            Cmp::SourceRegister(number) => register = Some(*number),
            Cmp::Op(of) => op = Some(*of),
            Cmp::Data(DataAttribute::Value(bytes)) => data = Some(bytes),
            _ => {}
        }
    }
    let known = register.and_then(|register| registers.get(&register.into())?.as_ref());
    let (Some(value), Some(op), Some(data)) = (known, op, data) else {
        return Truth::Maybe;
    };
    let data = data.as_slice();
    let value = match value {
        Value::Bytes(bytes) => bytes.get(..data.len()),
        Value::NotLoopback if is_loopback(data) => return differs(op),
        Value::Client if data.first() == Some(&127) || is_loopback_v6(data) => return differs(op),
        Value::Link | Value::NotLoopback | Value::Client => return Truth::Likely,
    };
    let Some(value) = value else {
        return Truth::Maybe;
    };
    truth(match op {
        Operator::Equal => value == data,
        Operator::NotEqual => value != data,
        Operator::LessThan => value < data,
        Operator::LessThanEqual => value <= data,
        Operator::GreaterThan => value > data,
        Operator::GreatherThanEqual => value >= data,
        _ => return Truth::Maybe,
    })
}

/// Returns the result of comparing a value with one that it certainly is not.
fn differs(op: Operator) -> Truth {
    match op {
        Operator::Equal => Truth::No,
        Operator::NotEqual => Truth::Yes,
        _ => Truth::Maybe,
    }
}

fn is_loopback_v6(data: &[u8]) -> bool {
    data == std::net::Ipv6Addr::LOCALHOST.octets()
}

/// Returns true for the name of `lo` with its terminating zero, or for its index, which is the same in any namespace.
fn is_loopback(data: &[u8]) -> bool {
    data.starts_with(b"lo\0") || *data == 1_u32.to_ne_bytes()
}

/// Evaluates a look-up. The members of a set and the verdicts of a map are known if the set was read.
fn look_up(
    attributes: &[Lookup],
    registers: &Registers,
    sets: &Sets,
    action: &mut Action,
) -> Truth {
    /// `NFT_LOOKUP_F_INV`.
    const INVERTED: u32 = 1;
    let (mut set, mut register, mut flags, mut decides) = (None, None, 0, false);
    for attribute in attributes {
        match attribute {
            Lookup::Set(name) => set = sets.get(name),
            Lookup::SourceRegister(number) => register = Some(*number),
            Lookup::Flags(of) => flags = *of,
            Lookup::DestinationRegister(Register::Verdict) => decides = true,
            // A map loads its data, which is unknown.
            Lookup::DestinationRegister(_) => return Truth::Maybe,
            _ => {}
        }
    }
    if decides {
        *action = Action::Unknown;
    }
    let value = register.and_then(|register| registers.get(&register.into())?.as_ref());
    let found = match (set, value) {
        (Some(set), Some(Value::Bytes(value))) => set.find(value),
        (_, Some(Value::Link | Value::NotLoopback | Value::Client)) if !decides => {
            return Truth::Likely;
        }
        _ => return Truth::Maybe,
    };
    match found {
        Ok(Some(Some(verdict))) if decides => {
            *action = verdict_of(&verdict);
            Truth::Yes
        }
        Ok(Some(None)) if decides => Truth::Maybe,
        // Without an element a verdict map ends the rule: `nft_lookup_eval` of net/netfilter/nft_lookup.c.
        Ok(element) => truth(element.is_some() != (flags & INVERTED != 0)),
        Err(_) => Truth::Maybe,
    }
}

fn immediate(attributes: &[Immediate], registers: &mut Registers, action: &mut Action) -> Truth {
    let mut register = None;
    for attribute in attributes {
        match attribute {
            Immediate::DestinationRegister(number) => register = Some(*number),
            Immediate::Data(DataAttribute::Value(bytes)) => {
                if let Some(register) = register {
                    registers.insert(register.into(), Some(Value::Bytes(bytes.clone())));
                }
            }
            Immediate::Data(DataAttribute::Verdict(verdict)) => *action = verdict_of(verdict),
            _ => {}
        }
    }
    Truth::Yes
}

fn verdict_of(attributes: &[VerdictAttribute]) -> Action {
    let (mut code, mut chain) = (None, String::new());
    for attribute in attributes {
        match attribute {
            VerdictAttribute::Code(of) => code = Some(*of),
            VerdictAttribute::Chain(name) => chain.clone_from(name),
            _ => {}
        }
    }
    match code {
        Some(Verdict::Jump) => Action::Jump(chain),
        Some(Verdict::Goto) => Action::Goto(chain),
        Some(Verdict::Return) => Action::Return,
        Some(Verdict::Continue) => Action::Nothing,
        Some(Verdict::Other(NF_ACCEPT)) => Action::Accept,
        Some(Verdict::Other(NF_DROP)) => Action::Drop,
        _ => Action::Unknown,
    }
}

fn other(
    name: &str,
    attributes: &[DefaultNla],
    packet: &Packet,
    registers: &mut Registers,
    action: &mut Action,
) -> Truth {
    match name {
        "counter" | "log" | "last" | "notrack" => Truth::Yes,
        "reject" => {
            *action = Action::Drop;
            Truth::Yes
        }
        "ct" => {
            let Some(register) = number(attributes, NFTA_CT_DREG) else {
                return Truth::Yes;
            };
            if number(attributes, NFTA_CT_KEY) != Some(NFT_CT_STATE) {
                if packet.is_tracked() {
                    registers.insert(register, None);
                    return Truth::Yes;
                }
                // The packet has no conntrack entry: `nft_ct_get_eval` of net/netfilter/nft_ct.c.
                return Truth::No;
            }
            let state = packet.state().to_ne_bytes().to_vec();
            registers.insert(register, Some(Value::Bytes(state)));
            Truth::Yes
        }
        "match" => xtables::matches(attributes, packet),
        "target" => {
            let name = text(attributes, NFTA_MATCH_NAME);
            match name.as_slice() {
                b"REJECT" => *action = Action::Drop,
                b"LOG" | b"NFLOG" | b"MARK" | b"CONNMARK" | b"CT" => {}
                _ => *action = Action::Unknown,
            }
            Truth::Yes
        }
        _ => Truth::Maybe,
    }
}

fn truth(matches: bool) -> Truth {
    if matches { Truth::Yes } else { Truth::No }
}

#[cfg(test)]
mod tests;
