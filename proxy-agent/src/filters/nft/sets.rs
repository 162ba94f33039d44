// SPDX-License-Identifier: Apache-2.0

//! Sets that rules look a packet's address up in, read from the kernel. Maps of verdicts are not read.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_netfilter::nftables::{
    DataAttribute, Expressions, ListAttribute, Lookup, NfTablesMessage, SetElementAttribute,
    SetElementList, SetElementMessage,
};

use super::rule::Named;
use crate::netfilter::{Error, Family, Socket};

/// `NFT_SET_ELEM_INTERVAL_END`: what has this key and follows is not in the set.
const INTERVAL_END: u32 = 1;

/// Sets by name.
pub type Sets = BTreeMap<String, Set>;

/// What is in a set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The keys, and whether a range begins there; sorted, an end before a begin.
    keys: Vec<(Vec<u8>, bool)>,
    /// It holds ranges.
    has_ranges: bool,
}

impl Set {
    /// Whether a value is in it; none if its keys are of another length.
    pub fn has(&self, value: &[u8]) -> Option<bool> {
        if self.keys.iter().any(|(key, _)| key.len() != value.len()) {
            return None;
        }
        if !self.has_ranges {
            return Some(self.keys.iter().any(|(key, _)| key == value));
        }
        let below = self.keys.iter().rfind(|(key, _)| &**key <= value);
        Some(below.is_some_and(|(_, begins)| *begins))
    }

    fn add(&mut self, elements: Vec<ListAttribute<SetElementAttribute>>) {
        for element in elements {
            let ListAttribute::Element(attributes) = element else {
                continue;
            };
            let (mut key, mut begins) = (None, true);
            for attribute in attributes {
                match attribute {
                    SetElementAttribute::Key(DataAttribute::Value(bytes)) => key = Some(bytes),
                    SetElementAttribute::Flags(flags) => begins = flags.bits() & INTERVAL_END == 0,
                    _ => {}
                }
            }
            self.has_ranges |= !begins;
            self.keys.extend(key.map(|key| (key, begins)));
        }
    }
}

/// The sets that the expressions of a rule look something up in.
pub fn named_in(expressions: &[Named<'_>], names: &mut BTreeSet<String>) {
    for expression in expressions {
        let Some(Expressions::Lookup(attributes)) = expression.data else {
            continue;
        };
        let is_map = |attribute: &Lookup| matches!(attribute, Lookup::DestinationRegister(_));
        if attributes.iter().any(is_map) {
            continue;
        }
        names.extend(attributes.iter().find_map(|attribute| match attribute {
            Lookup::Set(name) => Some(name.clone()),
            _ => None,
        }));
    }
}

/// Reads sets of a table. One that has gone meanwhile is left out.
///
/// # Errors
///
/// If the kernel does not answer completely.
pub fn read(
    family: Family,
    table: &str,
    names: BTreeSet<String>,
    socket: &mut Socket,
) -> Result<Sets, Error> {
    let mut sets = Sets::new();
    for name in names {
        let request = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(name.clone()),
            ],
        });
        let what = format!("list the elements of set {name} of table {table}");
        let read = |set: &mut Set, message| {
            if let NfTablesMessage::NewSetElement(elements) = message {
                for attribute in elements.attributes {
                    if let SetElementList::Elements(elements) = attribute {
                        set.add(elements);
                    }
                }
            }
        };
        match socket.fold(&what, family, &request, read) {
            Ok(mut set) => {
                set.keys.sort();
                sets.insert(name, set);
            }
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::nftables::SetElementFlags;

    use super::*;

    fn set(keys: &[([u8; 4], bool)]) -> Set {
        let element = |(key, begins): &([u8; 4], bool)| {
            let flags = if *begins { 0 } else { INTERVAL_END };
            ListAttribute::Element(vec![
                SetElementAttribute::Key(DataAttribute::Value(key.to_vec())),
                SetElementAttribute::Flags(SetElementFlags::from_bits_retain(flags)),
            ])
        };
        let mut set = Set::default();
        set.add(keys.iter().map(element).collect());
        set.keys.sort();
        set
    }

    #[test]
    fn ranges_begin_and_end_where_the_kernel_says() {
        // 10.96.0.0/16 and 10.97.0.0/17, as two that touch, in whichever order.
        let ranges = set(&[
            ([10, 97, 128, 0], false),
            ([10, 97, 0, 0], true),
            ([10, 97, 0, 0], false),
            ([10, 96, 0, 0], true),
            ([0, 0, 0, 0], false),
        ]);
        for (address, is_in) in [
            ([10, 95, 255, 255], false),
            ([10, 96, 0, 2], true),
            ([10, 97, 0, 0], true),
            ([10, 97, 127, 255], true),
            ([10, 97, 128, 0], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(ranges.has(&address), Some(is_in), "{address:?}");
        }
        let single = set(&[([10, 96, 0, 1], true), ([10, 96, 0, 10], true)]);
        assert_eq!(single.has(&[10, 96, 0, 10]), Some(true));
        assert_eq!(single.has(&[10, 96, 0, 2]), Some(false));
        assert_eq!(single.has(&[10, 96]), None);
        assert_eq!(Set::default().has(&[10, 96, 0, 2]), Some(false));
    }
}
