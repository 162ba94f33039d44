// SPDX-License-Identifier: Apache-2.0

//! What is known about the registers of nf_tables within a rule.

use super::{attribute, number, text};

// Attributes of `immediate` and `lookup`, linux/netfilter/nf_tables.h.
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_DREG: u16 = 3;

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
    pub fn load(&mut self, data: &[u8]) {
        let value = attribute(attribute(data, NFTA_IMMEDIATE_DATA), NFTA_DATA_VALUE);
        let register = number(data, NFTA_IMMEDIATE_DREG).and_then(slot);
        if let Some(register) = register.filter(|_| !value.is_empty()) {
            self.0.push((register, Content::Constant(value.to_vec())));
        }
    }

    /// Follows an expression `lookup`.
    pub fn look_up(&mut self, data: &[u8]) {
        let map = String::from_utf8_lossy(text(attribute(data, NFTA_LOOKUP_SET)));
        if let Some(register) = number(data, NFTA_LOOKUP_DREG).and_then(slot) {
            self.0.push((register, Content::ValueOf(map.into_owned())));
        }
    }

    /// What fills a register, and where in that its value starts.
    pub fn content(&self, register: u32) -> Option<(&Content, usize)> {
        let slot = slot(register)?;
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
fn slot(register: u32) -> Option<u32> {
    match register {
        number @ 1..=4 => Some((number - 1) * 4),
        number @ 8..=23 => Some(number - 8),
        _ => None,
    }
}
