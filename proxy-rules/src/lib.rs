// SPDX-License-Identifier: Apache-2.0

//! The packet rules on a node, whoever made them, read as values, and two questions about them. Nothing is
//! changed, and no table is created by reading one, except that [`xtables`] and [`ipset`] also run the
//! programs that change them for their callers. Which rules belong to the caller is passed in as [`Marks`].
//!
//! | module | holds |
//! |---|---|
//! | [`xtables`] | the tables of iptables, both flavours, by its programs |
//! | [`ipset`] | the sets of ipset, by its program |
//! | [`filters`] | which chains drop untracked packets of an endpoint |
//! | [`dnat`] | which rules, or services of IPVS, send connections to an address |

pub mod dnat;
pub mod filters;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod ipset;
mod nla;
pub mod xtables;

use proxy_netlink::netfilter::Family;

/// The families of nf_tables whose rules see packets of IP, NAT included, as nft calls them.
const NFT_FAMILIES: [(Family, &str); 3] = [
    (Family::IPv4, "ip"),
    (Family::IPv6, "ip6"),
    (Family::Inet, "inet"),
];

/// How rules of the caller's own are recognised: they are not questioned.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// A word in every comment of the caller's rules.
    pub word: &'static str,
    /// Whether a table of nf_tables, or a chain in a table of iptables, with this name is the caller's.
    pub is_own_name: fn(&str) -> bool,
    /// Whether a rule with this comment is the caller's.
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
