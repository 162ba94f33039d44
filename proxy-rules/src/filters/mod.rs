// SPDX-License-Identifier: Apache-2.0

//! The node's filters, of this project and of other programs: finds the chains that drop untracked packets of the VIP,
//! of Services that the proxy serves, or of the proxy's own connections. A rule like `ct state established accept` does
//! not match untracked packets, so if all other packets are dropped, they need a separate rule.
//!
//! The chains are simulated with a packet of which only one end is known, and that it is untracked. A match that
//! depends on any other property is a "maybe" (`walk.rs`).

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

/// A chain, and its effect on packets.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The place of the chain, as text.
    pub place: String,
    /// The packets.
    pub packet: Packet,
    /// The effect of the chain on the packets.
    pub fate: Fate,
    /// True if it is one of the chains in which the agent creates ACCEPT rules.
    pub of_iptables: bool,
    /// The command that lets the packets pass in this chain.
    pub command: String,
}

/// Returns the endpoints to which kube-proxy in nftables mode drops new tracked connections of the node, and the chains
/// that do so.
///
/// # Errors
///
/// Returns an error if nf_tables cannot be read.
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

/// Returns the untracked packets to and from the proxy of which these ends are known.
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
