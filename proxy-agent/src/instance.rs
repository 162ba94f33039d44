// SPDX-License-Identifier: Apache-2.0

//! The name of an agent among several on one node. It is part of the names of all its objects: tables, comments, sets,
//! directories. Each kind of object is marked in its own module.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The first part of every mark.
pub const PROGRAM: &str = "proxy-agent";
/// Separates the program's name from the instance's.
const SEPARATOR: char = '-';
/// Maximum length of a name in bytes: names of sets have 31, of which the fixed parts take the rest
/// (`IPSET_MAXNAMELEN` in `linux/netfilter/ipset/ip_set.h`, which includes the terminating zero).
pub const MAX_LENGTH: usize = 10;

/// An instance; the default one has an empty name.
///
/// A name has at most [`MAX_LENGTH`] lower-case letters, digits and hyphens, and no hyphen at either
/// end.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Instance {
    /// The name, padded with zeros.
    bytes: [u8; MAX_LENGTH],
}

/// An invalid name of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too long.
    #[error("the name has {0} bytes; {MAX_LENGTH} are allowed, give a shorter one")]
    Length(usize),
    /// Invalid characters.
    #[error("a name consists of a to z, 0 to 9 and hyphens, which are not allowed at its ends")]
    Characters,
}

impl Instance {
    /// The name; empty for the default instance.
    pub fn name(&self) -> &str {
        let end = self.bytes.iter().position(|byte| *byte == 0);
        let name = &self.bytes[..end.unwrap_or(MAX_LENGTH)];
        std::str::from_utf8(name).expect("only ASCII is stored")
    }

    /// The mark of the instance's objects: `proxy-agent`, or `proxy-agent-NAME`.
    pub fn mark(&self) -> String {
        let mut mark = PROGRAM.to_owned();
        if *self != Self::default() {
            mark.push(SEPARATOR);
            mark.push_str(self.name());
        }
        mark
    }

    /// The instance with this mark; none if the word is no mark of an agent.
    pub fn of_mark(word: &str) -> Option<Self> {
        let rest = word.strip_prefix(PROGRAM)?;
        if rest.is_empty() {
            return Some(Self::default());
        }
        Self::named(rest.strip_prefix(SEPARATOR)?).ok()
    }

    /// The instance with a name that is not empty.
    fn named(name: &str) -> Result<Self, Error> {
        if name.len() > MAX_LENGTH {
            return Err(Error::Length(name.len()));
        }
        let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let at_the_ends = [name.bytes().next(), name.bytes().last()];
        if !name.bytes().all(is_allowed)
            || at_the_ends
                .iter()
                .any(|end| matches!(end, None | Some(b'-')))
        {
            return Err(Error::Characters);
        }
        let mut bytes = [0; MAX_LENGTH];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { bytes })
    }
}

/// The default directories of an instance.
pub mod paths {
    use std::path::{Path, PathBuf};

    use super::Instance;

    /// Version of the layout of the pins, and last component of the default directory. It is incremented when keys, values
    /// or the meaning of a map change that outlives the agent.
    pub const LAYOUT: &str = "v2";

    /// The directory of pinned maps and links; its last component is the version of their layout.
    pub fn bpffs(instance: Instance) -> PathBuf {
        Path::new("/sys/fs/bpf").join(instance.mark()).join(LAYOUT)
    }

    /// The run directory.
    pub fn run_dir(instance: Instance) -> PathBuf {
        Path::new("/run").join(instance.mark())
    }
}

/// Names of an instance's nf_tables tables, and of its chains in the tables of iptables.
pub mod tables {
    use super::Instance;

    /// Suffix of the guard's tables. Names of instances have no underscore.
    const GUARD: &str = "_guard";
    /// Suffix of the tables for Services.
    const SERVICES: &str = "_services";
    /// Suffix of the tables for the proxy's own connections in version 0.2.0.
    const UPSTREAM: &str = "_upstream";

    /// The name of an instance's tables of decisions.
    pub fn name(instance: Instance) -> String {
        instance.mark()
    }

    /// The name of an instance's tables that guard the VIPs. They are separate from those of decisions, because they are
    /// replaced when the uplinks change.
    pub fn guard_name(instance: Instance) -> String {
        format!("{}{GUARD}", instance.mark())
    }

    /// The name of an instance's tables for Services that end on the proxy.
    pub fn services_name(instance: Instance) -> String {
        format!("{}{SERVICES}", instance.mark())
    }

    /// The name of an instance's tables for the proxy's own connections in version 0.2.0.
    pub fn separate_upstream_name(instance: Instance) -> String {
        format!("{}{UPSTREAM}", instance.mark())
    }

    /// True if a table of this name belongs to an agent of any instance.
    pub fn is_owned(name: &str) -> bool {
        let mut suffixes = [GUARD, SERVICES, UPSTREAM].into_iter();
        let mark = suffixes.find_map(|suffix| name.strip_suffix(suffix));
        Instance::of_mark(mark.unwrap_or(name)).is_some()
    }
}

impl FromStr for Instance {
    type Err = Error;

    /// An empty text is the default instance.
    fn from_str(name: &str) -> Result<Self, Error> {
        if name.is_empty() {
            return Ok(Self::default());
        }
        Self::named(name)
    }
}

impl TryFrom<String> for Instance {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<Instance> for String {
    fn from(instance: Instance) -> Self {
        instance.name().to_owned()
    }
}

impl Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Any instance, for property tests.
#[cfg(test)]
pub fn any_instance() -> impl proptest::strategy::Strategy<Value = Instance> {
    use proptest::strategy::Strategy as _;
    // Among them names that look like parts of other names.
    let tricky = [
        "", "d4", "n6-443", "d4-443", "probe", "probe-7", "new", "x-d4", "v1",
    ];
    let tricky = proptest::sample::select(tricky.map(str::to_owned).to_vec());
    let random = "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?";
    proptest::prop_oneof![tricky, random].prop_map(|name| name.parse().expect("it is a name"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["", "a", "0", "b-2", "abcdefghij", "a--b"] {
            assert_eq!(name.parse::<Instance>().unwrap().name(), name);
        }
        for name in ["-", "a-", "-a", "A", "a_b", "a.b", "a/b", "ä", " a"] {
            assert_eq!(name.parse::<Instance>(), Err(Error::Characters), "{name}");
        }
        assert_eq!("abcdefghijk".parse::<Instance>(), Err(Error::Length(11)));
    }

    #[test]
    fn foreign_words_are_no_marks() {
        assert_eq!(Instance::of_mark("proxy-agent"), Some(Instance::default()));
        for word in [
            "",
            "proxy",
            "proxy-agents",
            "proxy-agent-",
            "proxy-agent-A",
            "proxy-agent_probe",
        ] {
            assert_eq!(Instance::of_mark(word), None, "{word}");
        }
    }

    proptest! {
        #[test]
        fn a_mark_identifies_its_instance(instance in any_instance()) {
            prop_assert_eq!(Instance::of_mark(&instance.mark()), Some(instance));
        }

        #[test]
        fn the_state_file_holds_the_name(instance in any_instance()) {
            let json = serde_json::to_string(&instance).unwrap();
            prop_assert_eq!(&json, &format!("\"{instance}\""));
            prop_assert_eq!(serde_json::from_str::<Instance>(&json).unwrap(), instance);
        }
    }
}
