// SPDX-License-Identifier: Apache-2.0

//! The packet rules on a node, of all programs, as values, and two queries about them. Reading changes nothing and
//! creates no table. [`xtables`] and [`ipset`] also run the programs that change rules, on behalf of their callers. The
//! caller identifies its own rules with [`Marks`].
//!
//! | module | content |
//! |---|---|
//! | [`xtables`] | the tables of iptables, both flavours, through its programs |
//! | [`ipset`] | the sets of ipset, through its program |
//! | [`filters`] | the chains that drop untracked packets of an endpoint |
//! | [`dnat`] | the rules and services of IPVS that send connections to an address |

pub mod dnat;
pub mod filters;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod ipset;
mod nla;
pub mod xtables;

use proxy_netlink::netfilter::Family;

/// The families of nf_tables whose rules process IP packets, including NAT, with their names in nft.
const NFT_FAMILIES: [(Family, &str); 3] = [
    (Family::IPv4, "ip"),
    (Family::IPv6, "ip6"),
    (Family::Inet, "inet"),
];

/// The criteria by which the caller's own rules are recognised, so that they are not examined.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// A word that occurs in every comment of the caller's rules.
    pub word: &'static str,
    /// Returns true if a table of nf_tables, or a chain in a table of iptables, with this name belongs to the caller.
    pub is_own_name: fn(&str) -> bool,
    /// Returns true if a rule with this comment belongs to the caller.
    pub is_own_comment: fn(&str) -> bool,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Marks {
    /// Marks for tests: names and comments that begin with the name of the agent.
    pub(crate) const TEST: Self = Self {
        word: "proxy-agent",
        is_own_name: |name| name.starts_with("proxy-agent"),
        is_own_comment: |comment| comment.starts_with("proxy-agent"),
    };
}
