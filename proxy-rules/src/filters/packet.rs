// SPDX-License-Identifier: Apache-2.0

//! A packet of which only one end is known: that of the proxy, or that of an API server behind it.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use proxy_netlink::netfilter::expression::End;

use crate::xtables::Family;

/// The protocol number of TCP.
pub const PROTOCOL: u8 = 6;

/// The direction of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the proxy, through the hooks for incoming packets.
    Request,
    /// From the proxy, through the hooks for outgoing packets.
    Reply,
    /// To the proxy from a process of the node, in the hook for outgoing packets: the first packet of a connection that
    /// is tracked.
    Opening,
}

/// The end that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The proxy's end, which is a VIP.
    Vip,
    /// The proxy's end, which is a Service that the proxy serves.
    Service,
    /// The other end, which is an API server to which the proxy connects.
    Upstream,
}

/// A TCP packet to or from the proxy. It is untracked unless it opens a connection of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The address of the known end.
    pub end: SocketAddr,
    /// The end that is known.
    pub known: Known,
    /// The direction.
    pub direction: Direction,
}

impl Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.place() {
            End::Destination => "to",
            End::Source => "from",
        };
        if self.direction == Direction::Opening {
            return write!(f, "new tracked connections of this node to {}", self.end);
        }
        match self.known {
            Known::Vip | Known::Service => write!(f, "what is sent untracked {way} {}", self.end),
            Known::Upstream => write!(f, "the proxy's untracked packets {way} {}", self.end),
        }
    }
}

impl Packet {
    /// Returns the position of the known end in the packet.
    #[must_use]
    pub fn place(&self) -> End {
        let is_far = self.known == Known::Upstream;
        match self.direction {
            Direction::Request if is_far => End::Source,
            Direction::Reply if is_far => End::Destination,
            Direction::Request | Direction::Opening => End::Destination,
            Direction::Reply => End::Source,
        }
    }

    /// Returns the packet's `ct state`: `NF_CT_STATE_BIT(IP_CT_NEW)` or `NF_CT_STATE_UNTRACKED_BIT`.
    #[must_use]
    pub fn state(&self) -> u32 {
        match self.direction {
            Direction::Opening => 1 << 3,
            Direction::Request | Direction::Reply => 1 << 6,
        }
    }

    /// Returns the state for the match of iptables, which has another bit for packets without an entry:
    /// `XT_CONNTRACK_STATE_UNTRACKED` of `linux/netfilter/xt_conntrack.h`. The bit of nf_tables for untracked packets
    /// means SNAT there.
    #[must_use]
    pub fn xtables_state(&self) -> u32 {
        match self.direction {
            Direction::Opening => self.state(),
            Direction::Request | Direction::Reply => 1 << 8,
        }
    }

    /// Returns true if conntrack has an entry for the packet.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.direction == Direction::Opening
    }

    /// Returns true if the packet may pass `lo`. Connections to a Service are those of pods, since the node's own
    /// connections are translated to the VIP.
    #[must_use]
    pub fn by_loopback(&self) -> bool {
        self.known != Known::Service
    }

    /// Returns true if the iptables programs of a family see the packet.
    #[must_use]
    pub fn is_of(&self, family: Family) -> bool {
        Family::of(self.end.ip()) == family
    }

    /// Returns a part of the IP header, or `None` if any byte of it is unknown.
    #[must_use]
    pub fn network(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        let (protocol_at, source_at, destination_at, address) = match self.end.ip() {
            IpAddr::V4(v4) => (9, 12, 16, v4.octets().to_vec()),
            IpAddr::V6(v6) => (6, 8, 24, v6.octets().to_vec()),
        };
        let at = match self.place() {
            End::Destination => destination_at,
            End::Source => source_at,
        };
        part(
            &[(protocol_at, vec![PROTOCOL]), (at, address)],
            offset,
            length,
        )
    }

    /// Returns true for a part of the IP header that is within the client's address, in a packet to the proxy.
    #[must_use]
    pub fn is_client(&self, offset: usize, length: usize) -> bool {
        let (at, size) = match self.end.ip() {
            IpAddr::V4(_) => (12, 4),
            IpAddr::V6(_) => (8, 16),
        };
        let to_proxy = self.direction == Direction::Request && self.known != Known::Upstream;
        to_proxy && offset == at && (1..=size).contains(&length)
    }

    /// Returns a part of the TCP header, or `None` if any byte of it is unknown.
    #[must_use]
    pub fn transport(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        let at = match self.place() {
            End::Destination => 2,
            End::Source => 0,
        };
        part(
            &[(at, self.end.port().to_be_bytes().to_vec())],
            offset,
            length,
        )
    }
}

/// Returns a part of the bytes that are known at certain offsets.
fn part(known: &[(usize, Vec<u8>)], offset: usize, length: usize) -> Option<Vec<u8>> {
    known.iter().find_map(|(at, bytes)| {
        let start = offset.checked_sub(*at)?;
        Some(bytes.get(start..start.checked_add(length)?)?.to_vec())
    })
}
