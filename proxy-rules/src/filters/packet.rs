// SPDX-License-Identifier: Apache-2.0

//! A packet of which only one end is known: the proxy's, or that of an API server behind it.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use proxy_netlink::netfilter::expression::End;

use crate::xtables::Family;

/// TCP.
pub const PROTOCOL: u8 = 6;

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the proxy, by the hooks of packets that come in.
    Request,
    /// From the proxy, by the hooks of packets that go out.
    Reply,
    /// To the proxy from a process of the node, in the hook of packets that go out: the first one of a
    /// connection that is tracked.
    Opening,
}

/// Which end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The proxy's: a VIP.
    Vip,
    /// The proxy's: a Service that ends there.
    Service,
    /// The other one: an API server to which the proxy connects.
    Upstream,
}

/// A TCP packet to or from the proxy, untracked unless it opens a connection of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The end that is known.
    pub end: SocketAddr,
    /// Which end that is.
    pub known: Known,
    /// Which way it goes.
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
    /// The position of the known end in it.
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

    /// What `ct state` is of it: `NF_CT_STATE_BIT(IP_CT_NEW)`, or `NF_CT_STATE_UNTRACKED_BIT`.
    #[must_use]
    pub fn state(&self) -> u32 {
        match self.direction {
            Direction::Opening => 1 << 3,
            Direction::Request | Direction::Reply => 1 << 6,
        }
    }

    /// The same for the match of iptables, whose bits are others where there is no entry: `XT_CONNTRACK_STATE_UNTRACKED` of
    /// `linux/netfilter/xt_conntrack.h`. What nf_tables calls untracked is its SNAT.
    #[must_use]
    pub fn xtables_state(&self) -> u32 {
        match self.direction {
            Direction::Opening => self.state(),
            Direction::Request | Direction::Reply => 1 << 8,
        }
    }

    /// Whether conntrack has an entry of it.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.direction == Direction::Opening
    }

    /// Whether it may pass `lo`. Connections to a Service are those of pods, since the node's own are made ones to the
    /// VIP.
    #[must_use]
    pub fn by_loopback(&self) -> bool {
        self.known != Known::Service
    }

    /// Whether iptables programs of a family see it.
    #[must_use]
    pub fn is_of(&self, family: Family) -> bool {
        Family::of(self.end.ip()) == family
    }

    /// A part of its IP header; none if anything of that is not known.
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

    /// A part of its TCP header; none if anything of that is not known.
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

/// A part of what is known at some offsets.
fn part(known: &[(usize, Vec<u8>)], offset: usize, length: usize) -> Option<Vec<u8>> {
    known.iter().find_map(|(at, bytes)| {
        let start = offset.checked_sub(*at)?;
        Some(bytes.get(start..start.checked_add(length)?)?.to_vec())
    })
}
