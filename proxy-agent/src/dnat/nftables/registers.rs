// SPDX-License-Identifier: Apache-2.0

//! What is known about the registers of nf_tables within a rule.

use netlink_packet_netfilter::nftables::{DataAttribute, Immediate, Lookup, Register};

/// What is known about the registers within a rule: what was written last stands last. Registers
/// are counted in units of four bytes.
#[derive(Debug, Default)]
pub struct Registers(Vec<(u32, Content)>);

/// What fills a register.
#[derive(Debug)]
pub enum Content {
    /// These bytes.
    Constant(Vec<u8>),
    /// The value that this map has for a packet.
    ValueOf(String),
}

impl Registers {
    /// Follows an expression `immediate`.
    pub fn load(&mut self, attributes: &[Immediate]) {
        let (mut register, mut value) = (None, None);
        for attribute in attributes {
            match attribute {
                Immediate::DestinationRegister(number) => register = Some(*number),
                Immediate::Data(DataAttribute::Value(bytes)) => value = Some(bytes),
                _ => {}
            }
        }
        if let (Some(register), Some(value)) = (register.and_then(slot), value) {
            self.0.push((register, Content::Constant(value.clone())));
        }
    }

    /// Follows an expression `lookup`.
    pub fn look_up(&mut self, attributes: &[Lookup]) {
        let (mut register, mut set) = (None, None);
        for attribute in attributes {
            match attribute {
                Lookup::DestinationRegister(number) => register = Some(*number),
                Lookup::Set(name) => set = Some(name),
                _ => {}
            }
        }
        if let (Some(register), Some(set)) = (register.and_then(slot), set) {
            self.0.push((register, Content::ValueOf(set.clone())));
        }
    }

    /// What fills a register, and where in that its value starts.
    pub fn content(&self, register: u32) -> Option<(&Content, usize)> {
        let slot = slot(Register::from(register))?;
        // Exactly there, or in the course of a longer value that starts before it.
        let exact = self.0.iter().rev().find(|(start, _)| *start == slot);
        let (start, content) = exact.or_else(|| {
            let before = self.0.iter().rev();
            before
                .filter(|(start, _)| *start < slot)
                .max_by_key(|(start, _)| *start)
        })?;
        Some((content, usize::try_from(slot - start).ok()? * 4))
    }

    /// What is in a register, if that is known.
    pub fn constant(&self, register: u32, length: usize) -> Option<&[u8]> {
        match self.content(register)? {
            (Content::Constant(bytes), offset) => bytes.get(offset..offset + length),
            (Content::ValueOf(_), _) => None,
        }
    }
}

/// The first four-byte register that one is made of: there are four of 16 bytes, which are the same
/// as 16 of four bytes (`NFT_REG32_00` and so on).
fn slot(register: Register) -> Option<u32> {
    match u32::from(register) {
        number @ 1..=4 => Some((number - 1) * 4),
        number @ 8..=23 => Some(number - 8),
        _ => None,
    }
}
