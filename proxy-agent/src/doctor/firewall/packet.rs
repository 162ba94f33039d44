// SPDX-License-Identifier: Apache-2.0

//! A packet of which only the proxy's end is known.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use crate::backend::iptables::survey::Family;

/// TCP.
pub const PROTOCOL: u8 = 6;

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the proxy.
    Request,
    /// From the proxy.
    Reply,
}

/// An untracked TCP packet between the proxy and anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The proxy's end: the VIP, or a Service that ends there.
    pub vip: SocketAddr,
    /// It may pass `lo`. Connections to a Service are those of pods: the node's own are made ones to the VIP.
    pub by_loopback: bool,
    /// Which way it goes.
    pub direction: Direction,
}

impl Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::Request => "to",
            Direction::Reply => "from",
        };
        write!(f, "what is sent untracked {way} {}", self.vip)
    }
}

impl Packet {
    /// Whether iptables programs of a family see it.
    pub fn is_of(&self, family: Family) -> bool {
        Family::of(self.vip.ip()) == family
    }

    /// A part of its IP header; none if anything of that is not known.
    pub fn network(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        let (protocol_at, source_at, destination_at, address) = match self.vip.ip() {
            IpAddr::V4(v4) => (9, 12, 16, v4.octets().to_vec()),
            IpAddr::V6(v6) => (6, 8, 24, v6.octets().to_vec()),
        };
        let at = match self.direction {
            Direction::Request => destination_at,
            Direction::Reply => source_at,
        };
        part(
            &[(protocol_at, vec![PROTOCOL]), (at, address)],
            offset,
            length,
        )
    }

    /// A part of its TCP header; none if anything of that is not known.
    pub fn transport(&self, offset: usize, length: usize) -> Option<Vec<u8>> {
        let at = match self.direction {
            Direction::Request => 2,
            Direction::Reply => 0,
        };
        part(
            &[(at, self.vip.port().to_be_bytes().to_vec())],
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
