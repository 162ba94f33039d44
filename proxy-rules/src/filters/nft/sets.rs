// SPDX-License-Identifier: Apache-2.0

//! Reads the sets in which rules look up a packet's address from the kernel. Verdict maps are not read.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_netfilter::nftables::{Expressions, Lookup};
use proxy_netlink::netfilter::{Element, Error, Family, Socket, fold_elements};

/// An expression in a dump.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The name of the expression.
    pub name: &'a str,
    /// The data of the expression, if it has any.
    pub data: Option<&'a Expressions>,
}

/// Sets by name.
pub type Sets = BTreeMap<String, Set>;

/// The content of a set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The keys, each with true if a range begins there; sorted, with an end before a beginning.
    keys: Vec<(Vec<u8>, bool)>,
    /// True if the set contains ranges.
    has_ranges: bool,
}

impl Set {
    /// Returns true if the set contains a value, or `None` if its keys have another length.
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

    fn add(&mut self, element: Element) {
        self.has_ranges |= element.ends_interval;
        let key = element.key.map(|key| (key, !element.ends_interval));
        self.keys.extend(key);
    }
}

/// Adds the names of the sets in which the expressions of a rule perform look-ups.
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

/// Reads sets of a table. A set that has been deleted in the meantime is omitted.
///
/// # Errors
///
/// Returns an error if the kernel's response is incomplete.
pub fn read(
    family: Family,
    table: &str,
    names: BTreeSet<String>,
    socket: &mut Socket,
) -> Result<Sets, Error> {
    let mut sets = Sets::new();
    for name in names {
        if let Some(mut set) = fold_elements(socket, (family, table), &name, Set::add)? {
            set.keys.sort();
            sets.insert(name, set);
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[([u8; 4], bool)]) -> Set {
        let mut set = Set::default();
        for (key, begins) in keys {
            set.add(Element {
                key: Some(key.to_vec()),
                value: None,
                ends_interval: !begins,
            });
        }
        set.keys.sort();
        set
    }

    #[test]
    fn ranges_begin_and_end_where_the_kernel_says() {
        // The adjacent ranges 10.96.0.0/16 and 10.97.0.0/17, in any order.
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
