// SPDX-License-Identifier: Apache-2.0

//! The known contents of the registers of nf_tables within a rule.

use super::{attribute, number, text};

// Attributes of `immediate` and `lookup`, linux/netfilter/nf_tables.h.
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_DREG: u16 = 3;

/// The known contents of the registers within a rule; the last write is the last entry. Registers are counted in units
/// of four bytes.
#[derive(Debug, Default)]
pub struct Registers(Vec<(u32, Content)>);

/// The content of a register.
#[derive(Debug)]
pub enum Content {
    /// Constant bytes.
    Constant(Vec<u8>),
    /// The value of this map for a packet.
    ValueOf(String),
}

impl Registers {
    /// Records the effect of an `immediate` expression.
    pub fn load(&mut self, data: &[u8]) {
        let value = attribute(attribute(data, NFTA_IMMEDIATE_DATA), NFTA_DATA_VALUE);
        let register = number(data, NFTA_IMMEDIATE_DREG).and_then(slot);
        if let Some(register) = register.filter(|_| !value.is_empty()) {
            self.0.push((register, Content::Constant(value.to_vec())));
        }
    }

    /// Records the effect of a `lookup` expression.
    pub fn look_up(&mut self, data: &[u8]) {
        let map = String::from_utf8_lossy(text(attribute(data, NFTA_LOOKUP_SET)));
        if let Some(register) = number(data, NFTA_LOOKUP_DREG).and_then(slot) {
            self.0.push((register, Content::ValueOf(map.into_owned())));
        }
    }

    /// Returns the content that covers a register, and the offset of the register in it.
    pub fn content(&self, register: u32) -> Option<(&Content, usize)> {
        let slot = slot(register)?;
        // The content starts at the register, or it is a longer value that starts before it.
        let exact = self.0.iter().rev().find(|(start, _)| *start == slot);
        let (start, content) = exact.or_else(|| {
            let before = self.0.iter().rev();
            before
                .filter(|(start, _)| *start < slot)
                .max_by_key(|(start, _)| *start)
        })?;
        Some((content, usize::try_from(slot - start).ok()? * 4))
    }

    /// Returns the value of a register if it is a known constant.
    pub fn constant(&self, register: u32, length: usize) -> Option<&[u8]> {
        match self.content(register)? {
            (Content::Constant(bytes), offset) => bytes.get(offset..offset + length),
            (Content::ValueOf(_), _) => None,
        }
    }
}

/// Returns the first four-byte register that a register consists of: the four registers of 16 bytes are the same as the
/// 16 registers of four bytes (`NFT_REG32_00` and so on).
fn slot(register: u32) -> Option<u32> {
    match register {
        number @ 1..=4 => Some((number - 1) * 4),
        number @ 8..=23 => Some(number - 8),
        _ => None,
    }
}
