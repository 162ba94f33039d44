// SPDX-License-Identifier: Apache-2.0

//! The parts of the node, with their names in reports, logs and metrics.

use std::fmt::{self, Display};

/// Declares each part with its name, and the list of them.
macro_rules! parts {
    ($($(#[$doc:meta])+ $part:ident = $name:literal;)+) => {
        /// A part of the node.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Part {
            $($(#[$doc])+ $part,)+
        }

        impl Part {
            /// All parts.
            pub const ALL: &[Self] = &[$(Self::$part),+];

            /// The name in logs, metrics and the state file.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$part => $name,)+
                }
            }
        }
    };
}

parts! {
    /// The VIPs and the link that carries them.
    Link = "link";
    /// The choice of the backend.
    Backend = "backend";
    /// The programs, maps and routes of backend `ebpf`.
    Ebpf = "ebpf";
    /// The tables of backend `nftables`.
    Nftables = "nftables";
    /// The rules and sets of backend `iptables`.
    Iptables = "iptables";
    /// The proxy's own connections.
    Upstream = "upstream";
    /// Stale conntrack entries.
    Conntrack = "conntrack";
    /// Detection of the links that carry traffic from outside of the node.
    Guard = "guard";
    /// The agent's own files in the run directory.
    State = "state";
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_parts_have_one_name() {
        let names: BTreeSet<_> = Part::ALL.iter().map(|part| part.name()).collect();
        assert_eq!(names.len(), Part::ALL.len());
    }
}
