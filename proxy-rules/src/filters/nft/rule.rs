// SPDX-License-Identifier: Apache-2.0

//! Evaluates one rule of nf_tables for one packet: the loads, comparisons and actions of its expressions.

use std::collections::BTreeMap;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};
use proxy_netlink::netfilter::expression::End;

use super::super::packet::{Direction, PROTOCOL, Packet};
use super::super::walk::{Action, Step, Truth};
use super::sets::{Named, Sets};
use crate::nla::{number, text, value};

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
    /// The name or the index of a link other than `lo`.
    NotLoopback,
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
        (NETWORK_HEADER, Ok(offset), Ok(length)) => packet.network(offset, length),
        (TRANSPORT_HEADER, Ok(offset), Ok(length)) => packet.transport(offset, length),
        _ => None,
    };
    if let Some(register) = register {
        registers.insert(register.into(), value.map(Value::Bytes));
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
            let value = (!packet.by_loopback()).then_some(Value::NotLoopback);
            registers.extend(register.map(|register| (register.into(), value)));
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
    let value = from.and_then(|from| match registers.get(&from.into())?.clone()? {
        Value::Bytes(bytes) => Some(bytes),
        Value::NotLoopback => None,
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
        registers.insert(to.into(), masked.map(Value::Bytes));
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
        Value::NotLoopback if is_loopback(data) => {
            return match op {
                Operator::Equal => Truth::No,
                Operator::NotEqual => Truth::Yes,
                _ => Truth::Maybe,
            };
        }
        Value::NotLoopback => None,
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

/// Returns true for the name of `lo` with its terminating zero, or for its index, which is the same in any namespace.
fn is_loopback(data: &[u8]) -> bool {
    data.starts_with(b"lo\0") || *data == 1_u32.to_ne_bytes()
}

/// Evaluates a look-up. The members of a set are known if the set was read; the action of a verdict map is unknown.
fn look_up(
    attributes: &[Lookup],
    registers: &Registers,
    sets: &Sets,
    action: &mut Action,
) -> Truth {
    /// `NFT_LOOKUP_F_INV`.
    const INVERTED: u32 = 1;
    let decides = attributes
        .iter()
        .any(|attribute| matches!(attribute, Lookup::DestinationRegister(Register::Verdict)));
    if decides {
        *action = Action::Unknown;
        return Truth::Maybe;
    }
    let (mut set, mut register, mut flags) = (None, None, 0);
    for attribute in attributes {
        match attribute {
            Lookup::Set(name) => set = sets.get(name),
            Lookup::SourceRegister(number) => register = Some(*number),
            Lookup::Flags(of) => flags = *of,
            // A map loads its data, which is unknown.
            Lookup::DestinationRegister(_) => return Truth::Maybe,
            _ => {}
        }
    }
    let value = register.and_then(|register| registers.get(&register.into())?.as_ref());
    match (set, value) {
        (Some(set), Some(Value::Bytes(value))) => set.has(value).map_or(Truth::Maybe, |is_in| {
            truth(is_in != (flags & INVERTED != 0))
        }),
        _ => Truth::Maybe,
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
        "match" => xtables_match(attributes, packet),
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

/// Evaluates the matches of iptables that occur in almost every rule.
fn xtables_match(attributes: &[DefaultNla], packet: &Packet) -> Truth {
    let info = value(attributes, NFTA_MATCH_INFO).unwrap_or_default();
    match text(attributes, NFTA_MATCH_NAME).as_slice() {
        b"comment" => Truth::Yes,
        b"tcp" => tcp(&info, packet).unwrap_or(Truth::Maybe),
        b"udp" | b"icmp" | b"icmp6" => Truth::No,
        b"conntrack" => conntrack(&info, packet).unwrap_or(Truth::Maybe),
        b"addrtype" => addrtype(&info, packet).unwrap_or(Truth::Maybe),
        _ => Truth::Maybe,
    }
}

/// Evaluates `struct xt_tcp`: ranges of source and destination ports in host byte order, one byte of options, two of
/// flags, one of inversions.
fn tcp(info: &[u8], packet: &Packet) -> Option<Truth> {
    let number = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let [option, flags_mask, _, inverted] = *info.get(8..)?.first_chunk()?;
    if option != 0 || flags_mask != 0 || inverted != 0 {
        return Some(Truth::Maybe);
    }
    let within = |first, last, port: Option<Vec<u8>>| {
        if (first, last) == (0, u16::MAX) {
            return Some(Truth::Yes);
        }
        let Some(port) = port else {
            return Some(Truth::Maybe);
        };
        let port = u16::from_be_bytes(*port.first_chunk()?);
        Some(truth((first..=last).contains(&port)))
    };
    let source = within(number(0)?, number(2)?, packet.transport(0, 2))?;
    let destination = within(number(4)?, number(6)?, packet.transport(2, 2))?;
    Some(source.min(destination))
}

/// Evaluates `struct xt_addrtype_info_v1`: sets of types to which source and destination must belong (zero: any type),
/// and flags. VIPs are addresses of the node, and so are Services because of the agent's route.
fn addrtype(info: &[u8], packet: &Packet) -> Option<Truth> {
    /// `1 << RTN_LOCAL` of linux/rtnetlink.h.
    const LOCAL: u16 = 1 << 2;
    const INVERT_SOURCE: u32 = 1;
    const INVERT_DESTINATION: u32 = 1 << 1;
    // The type is known for the node's own end, regardless of which end of the packet is known otherwise.
    let known = match packet.direction {
        Direction::Request | Direction::Opening => End::Destination,
        Direction::Reply => End::Source,
    };
    let kinds = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let flags = u32::from_ne_bytes(*info.get(4..)?.first_chunk()?);
    if flags & !(INVERT_SOURCE | INVERT_DESTINATION) != 0 {
        // The match is limited to the addresses of a link.
        return Some(Truth::Maybe);
    }
    let is_of = |kinds: u16, inverted: u32, end| match kinds {
        0 => Truth::Yes,
        _ if known != end => Truth::Maybe,
        _ => truth((kinds & LOCAL != 0) != (flags & inverted != 0)),
    };
    let source = is_of(kinds(0)?, INVERT_SOURCE, End::Source);
    let destination = is_of(kinds(2)?, INVERT_DESTINATION, End::Destination);
    Some(source.min(destination))
}

/// Evaluates `struct xt_conntrack_mtinfo3`, of which only the state applies to untracked packets.
fn conntrack(info: &[u8], packet: &Packet) -> Option<Truth> {
    /// The offset of the flags, which follow eight addresses, two times and five numbers of two bytes.
    const FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
    /// `XT_CONNTRACK_STATE`.
    const STATE: u16 = 1;
    let number = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let (flags, inverted, states) = (number(FLAGS)?, number(FLAGS + 2)?, number(FLAGS + 4)?);
    if packet.is_tracked() && flags != STATE {
        return Some(Truth::Maybe);
    }
    if flags & STATE == 0 {
        // All other criteria need a conntrack entry, and there is none: `conntrack_mt` of net/netfilter/xt_conntrack.c.
        return Some(Truth::No);
    }
    let named = u32::from(states) & packet.xtables_state() != 0;
    let matches = named != (inverted & STATE != 0);
    // Any additional criterion needs a conntrack entry.
    Some(truth(matches && flags == STATE))
}

fn truth(matches: bool) -> Truth {
    if matches { Truth::Yes } else { Truth::No }
}

#[cfg(test)]
mod tests;
