// SPDX-License-Identifier: Apache-2.0

//! The node's filters, ours and others': which chains drop untracked packets of the VIP, of Services that end on the
//! proxy, or of the proxy's own connections. A rule like `ct state established accept` does not match them, so where
//! the rest is dropped they need a rule of their own.
//!
//! Chains are walked with a packet of which only one end is known, and that it is untracked.
//! What depends on anything else is a "maybe" (`walk.rs`).

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod nft;
mod packet;
mod walk;
mod xtables;

use std::net::SocketAddr;

use proxy_netlink::netfilter::Error;

pub use self::nft::find as find_in_nf_tables;
pub use self::packet::{Known, Packet};
pub use self::walk::Fate;
pub use self::xtables::find as find_in_iptables;

use self::packet::Direction;
use crate::Marks;

/// A chain, and what it does with packets.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Its place, as text.
    pub place: String,
    /// Which packets.
    pub packet: Packet,
    /// What it does with them.
    pub fate: Fate,
    /// It is one of the chains in which the agent sets ACCEPT rules.
    pub of_iptables: bool,
    /// The line that lets the packet pass in this chain.
    pub command: String,
}

/// Where kube-proxy in nftables mode drops new connections of the node to these endpoints while they are
/// tracked, and to which.
///
/// # Errors
///
/// If nf_tables cannot be read.
pub fn unallocated(
    endpoints: &[SocketAddr],
    marks: Marks,
) -> Result<Vec<(SocketAddr, String)>, Error> {
    let packets: Vec<_> = endpoints
        .iter()
        .map(|end| Packet {
            end: *end,
            known: Known::Vip,
            direction: Direction::Opening,
        })
        .collect();
    let found = nft::find(&packets, marks)?.into_iter();
    let dropped = found.filter(|found| found.fate == Fate::Dropped);
    Ok(dropped
        .map(|found| (found.packet.end, found.place))
        .collect())
}

/// The untracked packets to and from the proxy, of which these ends are known.
#[must_use]
pub fn packets(endpoints: &[SocketAddr], known: Known) -> Vec<Packet> {
    let both = |end: &SocketAddr| {
        let end = *end;
        [Direction::Request, Direction::Reply].map(|direction| Packet {
            end,
            known,
            direction,
        })
    };
    endpoints.iter().flat_map(both).collect()
}
