// SPDX-License-Identifier: Apache-2.0

//! Expressions that look up, add and remove members of sets.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{Expressions, Lookup, Register};

use super::{End, NETWORK_HEADER, TRANSPORT_HEADER, load, port_offset};
use crate::netfilter::Family;
use crate::netfilter::set::Field;

/// A field of a packet, as part of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The address of one end.
    Address(End),
    /// The port of one end.
    Port(End),
}

/// An operation on a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetOperation {
    /// The rule continues if the key is a member.
    IsMember,
    /// Adds the key or restarts its timeout. The rule continues unless the set is full.
    Update,
    /// Removes the key if it is a member.
    Delete,
}

/// Applies an operation to the member that the parts of the packet form (Linux 5.4 for [`SetOperation::Delete`]).
#[must_use]
pub fn set(
    operation: SetOperation,
    name: &str,
    parts: &[Part],
    family: Family,
) -> Vec<Expressions> {
    /// `NFT_DYNSET_OP_UPDATE`, `NFT_DYNSET_OP_DELETE`.
    const UPDATE: u32 = 1;
    const DELETE: u32 = 2;

    let mut expressions = key(parts, family);
    expressions.push(match operation {
        SetOperation::IsMember => look_up(name),
        SetOperation::Update => change(name, UPDATE),
        SetOperation::Delete => change(name, DELETE),
    });
    expressions
}

fn look_up(name: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(name.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::Flags(0),
    ])
}

/// The attributes of `enum nft_dynset_attributes`.
fn change(name: &str, operation: u32) -> Expressions {
    const SET_NAME: u16 = 1;
    const OPERATION: u16 = 3;
    const KEY_REGISTER: u16 = 4;
    Expressions::Other {
        expression_type: "dynset".to_owned(),
        attributes: vec![
            DefaultNla::new(SET_NAME, [name.as_bytes(), b"\0"].concat()),
            DefaultNla::new(OPERATION, operation.to_be_bytes().to_vec()),
            DefaultNla::new(
                KEY_REGISTER,
                u32::from(Register::Reg1).to_be_bytes().to_vec(),
            ),
        ],
    }
}

/// Loads the parts one after the other, starting with the first register.
fn key(parts: &[Part], family: Family) -> Vec<Expressions> {
    let mut position = 0;
    let mut expressions = Vec::new();
    for part in parts {
        let (field, base, offset) = match part {
            Part::Address(end) => {
                let offset = match (family, end) {
                    (Family::IPv6, End::Source) => 8,
                    (Family::IPv6, End::Destination) => 24,
                    (_, End::Source) => 12,
                    (_, End::Destination) => 16,
                };
                (Field::Address, NETWORK_HEADER, offset)
            }
            Part::Port(end) => (Field::Port, TRANSPORT_HEADER, port_offset(*end)),
        };
        let length = field.length(family);
        let length = u32::try_from(length).expect("an address or a port");
        expressions.push(load(base, offset, length, register(position)));
        position += field.room(family);
    }
    expressions
}

/// Returns the register at a position, in bytes, within the 64 bytes of all registers.
fn register(position: usize) -> Register {
    if position == 0 {
        // nft uses this name for the same register.
        return Register::Reg1;
    }
    let number = u32::try_from(position / 4).expect("below 64");
    Register::from(u32::from(Register::Reg32_00) + number)
}
