// SPDX-License-Identifier: Apache-2.0

//! Reads from the kernel the sets and the verdict maps in which rules look up a packet.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_netfilter::nftables::{Expressions, Lookup, Register, VerdictAttribute};
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

/// The verdict of an element, in the kernel's format. Elements of sets have none.
pub type Verdict = Option<Vec<VerdictAttribute>>;

/// The content of a set or of a verdict map.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The keys, each with true if a range begins there; sorted, with an end before a beginning.
    keys: Vec<(Vec<u8>, bool)>,
    /// The verdicts of keys, in a map.
    verdicts: BTreeMap<Vec<u8>, Vec<VerdictAttribute>>,
    /// The element for all other keys, if there is one.
    catch_all: Option<Verdict>,
    /// True if the set contains ranges.
    has_ranges: bool,
}

impl Set {
    /// Returns the verdict of the element for a value, or `None` if there is no such element.
    ///
    /// # Errors
    ///
    /// Returns an error if the keys have another length than the value.
    pub fn find(&self, value: &[u8]) -> Result<Option<Verdict>, OtherLength> {
        if self.keys.iter().any(|(key, _)| key.len() != value.len()) {
            return Err(OtherLength);
        }
        let found = if self.has_ranges {
            let below = self.keys.iter().rfind(|(key, _)| &**key <= value);
            below.filter(|(_, begins)| *begins)
        } else {
            self.keys.iter().find(|(key, _)| key == value)
        };
        Ok(match found {
            Some((key, _)) => Some(self.verdicts.get(key).cloned()),
            None => self.catch_all.clone(),
        })
    }

    pub(super) fn add(&mut self, element: Element) {
        match (&element.key, &element.verdict) {
            (None, verdict) => self.catch_all = Some(verdict.clone()),
            (Some(key), Some(verdict)) => {
                self.verdicts.insert(key.clone(), verdict.clone());
            }
            (Some(_), None) => {}
        }
        self.has_ranges |= element.ends_interval;
        let key = element.key.map(|key| (key, !element.ends_interval));
        self.keys.extend(key);
    }
}

/// A value cannot be looked up in a set because its keys have another length.
#[derive(Debug, PartialEq, Eq)]
pub struct OtherLength;

/// Which sets of a table are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All sets but no maps: those of kube-proxy contain the Services.
    AllSets,
    /// The sets and verdict maps without a name, which are parts of a rule. Named ones, such as lists of blocked
    /// clients, may be large and seldom contain what is known of a packet.
    Anonymous,
}

/// Adds the names of the sets in which the expressions of a rule perform look-ups.
pub fn named_in(expressions: &[Named<'_>], wanted: Wanted, names: &mut BTreeSet<String>) {
    /// nft names sets that are parts of a rule `__set` and `__map` with a number.
    const ANONYMOUS: &str = "__";
    for expression in expressions {
        let Some(Expressions::Lookup(attributes)) = expression.data else {
            continue;
        };
        let is_left_out = |attribute: &Lookup| match attribute {
            Lookup::DestinationRegister(Register::Verdict) => wanted == Wanted::AllSets,
            Lookup::DestinationRegister(_) => true,
            Lookup::Set(name) => wanted == Wanted::Anonymous && !name.starts_with(ANONYMOUS),
            _ => false,
        };
        if attributes.iter().any(is_left_out) {
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
                ends_interval: !begins,
                ..Element::default()
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
            assert_eq!(
                ranges.find(&address),
                Ok(is_in.then_some(None)),
                "{address:?}"
            );
        }
        let single = set(&[([10, 96, 0, 1], true), ([10, 96, 0, 10], true)]);
        assert_eq!(single.find(&[10, 96, 0, 10]), Ok(Some(None)));
        assert_eq!(single.find(&[10, 96, 0, 2]), Ok(None));
        assert_eq!(single.find(&[10, 96]), Err(OtherLength));
        assert_eq!(Set::default().find(&[10, 96, 0, 2]), Ok(None));
    }
}
