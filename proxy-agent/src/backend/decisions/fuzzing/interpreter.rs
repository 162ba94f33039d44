// SPDX-License-Identifier: Apache-2.0

//! Interprets an nf_tables table as the kernel does: chains by hook and priority, rules, expressions, and sets with timeouts. An
//! expression that the agent's rules do not use is a panic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey,
    NfTablesMessage, Operator, Payload, Register, SetElementAttribute, SetElementList, Verdict,
    VerdictAttribute,
};
use proxy_netlink::netfilter::{Hook, Table};

/// Size of the verdict register and of each of the four data registers in bytes; register `Reg32_00` and the following ones are
/// quarters of those.
const REGISTER: usize = 16;
const QUARTER: usize = 4;

/// A packet that traverses the hooks of the node.
#[derive(Debug, Clone)]
pub struct Packet {
    /// The header from which the network header's fields are loaded.
    pub network: Vec<u8>,
    /// The TCP header.
    pub transport: [u8; 20],
    /// Ifindex of the link on which the packet arrived; 0 at output.
    pub iif: u32,
    /// The packet priority.
    pub priority: u32,
    /// The cgroup of the sending socket, a child of the root; none without a socket.
    pub cgroup: Option<u64>,
    /// Set by `notrack`.
    pub untracked: bool,
}

/// A table with its sets, as in a kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    table: Option<Arc<Table>>,
    sets: BTreeMap<&'static str, Members>,
    now: Duration,
    /// An update failed because its set is full. The caller resets it.
    pub lacked_room: bool,
}

/// The members of a set.
#[derive(Debug, Default)]
struct Members {
    timeout: Duration,
    size: usize,
    /// The members, and when each expires.
    expiries: BTreeMap<Vec<u8>, Duration>,
    /// Deleted or expired members whose memory the kernel has not freed: they count until then.
    dead: usize,
}

/// The result of a chain.
enum Outcome {
    NextRule,
    Accepted,
    Chain(String),
}

impl Kernel {
    /// Replaces a table; `size` is the capacity of its sets.
    pub fn install(&mut self, table: &Arc<Table>, size: usize) {
        self.table = Some(Arc::clone(table));
        self.sets.clear();
        for set in &table.sets {
            let mut members = Members {
                timeout: set.timeout,
                size,
                ..Members::default()
            };
            let keys = set.insertions(&table.name).flat_map(keys);
            for key in keys.take(size) {
                members.update(key, self.now);
            }
            self.sets.insert(set.name, members);
        }
    }

    /// Removes the table.
    pub fn flush(&mut self) {
        self.table = None;
        self.sets.clear();
    }

    /// Advances the time. The kernel frees the memory of removed members within about a second.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        for set in self.sets.values_mut() {
            set.expiries.retain(|_, expires| *expires > self.now);
            set.dead = 0;
        }
    }

    /// True if the set has the member.
    pub fn has(&self, set: &str, key: &[u8]) -> bool {
        let set = self.sets.get(set);
        set.is_some_and(|set| set.expiries.contains_key(key))
    }

    /// Runs the chains of a hook.
    pub fn hook(&mut self, hook: Hook, packet: &mut Packet) {
        let Some(table) = self.table.clone() else {
            return;
        };
        let mut chains: Vec<_> = table
            .chains
            .iter()
            .filter_map(|chain| {
                let base = chain.base.filter(|base| base.hook == hook)?;
                Some((base.priority, chain.name))
            })
            .collect();
        chains.sort_unstable();
        for (_, name) in chains {
            // The agent's chains have policy accept and no drop rules.
            let mut next = Some(name.to_owned());
            while let Some(chain) = next {
                next = self.chain(&table, &chain, packet);
            }
        }
    }

    /// The target chain of a rule; goto never returns.
    fn chain(&mut self, table: &Table, name: &str, packet: &mut Packet) -> Option<String> {
        let chain = table.chains.iter().find(|chain| chain.name == name);
        for rule in &chain.expect("rules go to chains of the table").rules {
            match self.rule(&rule.expressions, packet) {
                Outcome::NextRule => {}
                Outcome::Accepted => return None,
                Outcome::Chain(chain) => return Some(chain),
            }
        }
        None
    }

    fn rule(&mut self, expressions: &[Expressions], packet: &mut Packet) -> Outcome {
        let mut registers = Registers::default();
        for expression in expressions {
            let goes_on = match expression {
                Expressions::Payload(attributes) => {
                    load(attributes, packet, &mut registers);
                    true
                }
                Expressions::Bitwise(attributes) => {
                    mask(attributes, &mut registers);
                    true
                }
                Expressions::Cmp(attributes) => compare(attributes, &registers),
                Expressions::Meta(attributes) => {
                    meta(attributes, packet, &mut registers);
                    true
                }
                Expressions::Lookup(attributes) => self.look_up(attributes, &registers),
                Expressions::Immediate(attributes) => {
                    if let Some(outcome) = immediate(attributes, &mut registers) {
                        return outcome;
                    }
                    true
                }
                Expressions::Other {
                    expression_type,
                    attributes,
                } => match expression_type.as_str() {
                    "counter" => true,
                    "notrack" => {
                        packet.untracked = true;
                        true
                    }
                    "dynset" => self.change(attributes, &registers),
                    "socket" => cgroup(attributes, packet, &mut registers),
                    other => panic!("expression {other}"),
                },
                other => panic!("{other:?}"),
            };
            if !goes_on {
                break;
            }
        }
        Outcome::NextRule
    }

    fn look_up(&self, attributes: &[Lookup], registers: &Registers) -> bool {
        let [
            Lookup::Set(set),
            Lookup::SourceRegister(register),
            Lookup::Flags(0),
        ] = attributes
        else {
            panic!("{attributes:?}");
        };
        self.has(set, &registers.key(*register, self.key_length(set)))
    }

    /// Continues unless an update finds the set full (`nft_dynset_eval`).
    fn change(&mut self, attributes: &[DefaultNla], registers: &Registers) -> bool {
        const UPDATE: u32 = 1;
        const DELETE: u32 = 2;
        let [set, operation, register] = attributes else {
            panic!("{attributes:?}");
        };
        let number = |attribute: &DefaultNla| {
            let bytes = value(attribute).try_into().expect("four bytes");
            u32::from_be_bytes(bytes)
        };
        assert_eq!([1, 3, 4], [set, operation, register].map(DefaultNla::kind));
        let name = value(set);
        let name = str::from_utf8(&name[..name.len() - 1]).expect("a name");
        let key = registers.key(Register::from(number(register)), self.key_length(name));
        let now = self.now;
        let set = self.sets.get_mut(name).expect("a set of the table");
        match number(operation) {
            UPDATE => {
                let updated = set.update(key, now);
                self.lacked_room |= !updated;
                updated
            }
            DELETE => {
                set.dead += usize::from(set.expiries.remove(&key).is_some());
                true
            }
            other => panic!("operation {other}"),
        }
    }

    fn key_length(&self, set: &str) -> usize {
        let table = self.table.as_ref().expect("its rules run");
        let set = table.sets.iter().find(|one| one.name == set);
        let fields = set.expect("a set of the table").key.iter();
        fields.map(|field| field.room(table.family)).sum()
    }
}

impl Members {
    fn has_room(&self) -> bool {
        self.expiries.len() + self.dead < self.size
    }

    fn update(&mut self, key: Vec<u8>, now: Duration) -> bool {
        let fits = self.expiries.contains_key(&key) || self.has_room();
        if fits {
            self.expiries.insert(key, now + self.timeout);
        }
        fits
    }
}

/// The registers of one rule.
#[derive(Default)]
struct Registers([[u8; REGISTER]; 5]);

impl Registers {
    /// The offset of a register in the registers' bytes.
    fn position(register: Register) -> usize {
        let number = u32::from(register) as usize;
        match number {
            0..=4 => number * REGISTER,
            _ => REGISTER + (number - u32::from(Register::Reg32_00) as usize) * QUARTER,
        }
    }

    fn set(&mut self, register: Register, value: &[u8]) {
        let at = Self::position(register);
        // The rest of the last quarter is zero then.
        let length = value.len().next_multiple_of(QUARTER);
        let bytes = &mut self.0.as_flattened_mut()[at..at + length];
        bytes.fill(0);
        bytes[..value.len()].copy_from_slice(value);
    }

    fn key(&self, register: Register, length: usize) -> Vec<u8> {
        let at = Self::position(register);
        self.0.as_flattened()[at..at + length].to_vec()
    }
}

fn load(attributes: &[Payload], packet: &Packet, registers: &mut Registers) {
    let [
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ] = attributes
    else {
        panic!("{attributes:?}");
    };
    let header = match base {
        1 => &packet.network[..],
        2 => &packet.transport[..],
        other => panic!("header {other}"),
    };
    let at = *offset as usize;
    registers.set(*register, &header[at..at + *length as usize]);
}

/// `socket cgroupv2 level 1`; continues only with a socket (`nft_socket_eval`).
fn cgroup(attributes: &[DefaultNla], packet: &Packet, registers: &mut Registers) -> bool {
    let numbers: Vec<_> = attributes
        .iter()
        .map(|one| (one.kind(), value(one)))
        .collect();
    let number = |value: u32| value.to_be_bytes().to_vec();
    let expected = [
        (1, number(3)),
        (2, number(Register::Reg1.into())),
        (3, number(1)),
    ];
    assert_eq!(numbers, expected);
    packet.cgroup.is_some_and(|id| {
        registers.set(Register::Reg1, &id.to_ne_bytes());
        true
    })
}

fn mask(attributes: &[Bitwise], registers: &mut Registers) {
    let [
        Bitwise::SourceRegister(source),
        Bitwise::DestinationRegister(destination),
        Bitwise::Length(length),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(xor)),
    ] = attributes
    else {
        panic!("{attributes:?}");
    };
    let value = registers.key(*source, *length as usize);
    let bytes = value.iter().zip(mask).zip(xor);
    let value: Vec<_> = bytes.map(|((byte, mask), xor)| byte & mask ^ xor).collect();
    registers.set(*destination, &value);
}

fn compare(attributes: &[Cmp], registers: &Registers) -> bool {
    let [
        Cmp::SourceRegister(register),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(wanted)),
    ] = attributes
    else {
        panic!("{attributes:?}");
    };
    let equal = registers.key(*register, wanted.len()) == *wanted;
    match operator {
        Operator::Equal => equal,
        Operator::NotEqual => !equal,
        other => panic!("{other:?}"),
    }
}

fn meta(attributes: &[Meta], packet: &mut Packet, registers: &mut Registers) {
    const PROTOCOL_TCP: u8 = 6;
    match attributes {
        [Meta::Key(key), Meta::DestinationRegister(register)] => match key {
            MetaKey::Iif => registers.set(*register, &packet.iif.to_ne_bytes()),
            MetaKey::L4Proto => registers.set(*register, &[PROTOCOL_TCP]),
            MetaKey::Priority => registers.set(*register, &packet.priority.to_ne_bytes()),
            other => panic!("{other:?}"),
        },
        [Meta::Key(MetaKey::Priority), Meta::SourceRegister(register)] => {
            let bytes = registers.key(*register, QUARTER);
            packet.priority = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
        other => panic!("{other:?}"),
    }
}

fn immediate(attributes: &[Immediate], registers: &mut Registers) -> Option<Outcome> {
    let [
        Immediate::DestinationRegister(register),
        Immediate::Data(data),
    ] = attributes
    else {
        panic!("{attributes:?}");
    };
    match data {
        DataAttribute::Value(value) => {
            registers.set(*register, value);
            None
        }
        DataAttribute::Verdict(verdict) => Some(match &verdict[..] {
            [VerdictAttribute::Code(Verdict::Other(1))] => Outcome::Accepted,
            [
                VerdictAttribute::Code(Verdict::Goto),
                VerdictAttribute::Chain(chain),
            ] => Outcome::Chain(chain.clone()),
            other => panic!("{other:?}"),
        }),
        other => panic!("{other:?}"),
    }
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

/// The keys of a message that fills a set.
fn keys(message: NfTablesMessage) -> Vec<Vec<u8>> {
    let NfTablesMessage::NewSetElement(message) = message else {
        panic!("{message:?}");
    };
    let lists = message.attributes.into_iter();
    let elements = lists.flat_map(|list| match list {
        SetElementList::Elements(elements) => elements,
        _ => Vec::new(),
    });
    elements
        .map(|element| match element {
            ListAttribute::Element(attributes) => match &attributes[..] {
                [SetElementAttribute::Key(DataAttribute::Value(key))] => key.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect()
}
