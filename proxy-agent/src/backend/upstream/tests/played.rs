// SPDX-License-Identifier: Apache-2.0

//! The rules, run by the interpreter of those for the VIPs.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proxy_netlink::netfilter::expression::flag::{ACK, FIN, RST, SYN};
use proxy_netlink::netfilter::{Family, Hook};

use super::{Desired, Table, desired, of_backend, tables_of};
use crate::backend::decisions::fuzzing::interpreter::{Kernel, Packet};
use crate::backend::decisions::of_proxy::SEEN;

const PROXY: u64 = 7;
const STRANGER: u64 = 8;
/// Capacity of the sets of connections.
const SIZE: usize = 64;

/// The node with the rules, and an API server.
struct Node {
    kernel: Kernel,
    family: Family,
}

impl Node {
    fn new(family: Family) -> Self {
        Self::with(family, &["192.0.2.1:443", "[2001:db8::1]:443"])
    }

    /// A node that learns endpoints, and knows these.
    fn with(family: Family, endpoints: &[&str]) -> Self {
        let endpoints: Vec<_> = endpoints.iter().map(|text| text.parse().unwrap()).collect();
        let desired = Desired {
            learns_in: vec![family],
            ..desired(&endpoints, &[], &[PROXY])
        };
        let of_family = |tables: Vec<Table>| {
            let mut tables = tables.into_iter();
            tables.find(|table| table.family == family).unwrap()
        };
        let mut table = of_family(of_backend());
        for chain in of_family(tables_of(&desired)).chains {
            table.chains.retain(|there| there.name != chain.name);
            table.chains.push(chain);
        }
        let mut kernel = Kernel::default();
        kernel.install(&Arc::new(table), SIZE);
        Self { kernel, family }
    }

    /// The addresses of the node and of the API server.
    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        match self.family {
            Family::IPv6 => {
                let [own, server] = [
                    [0; 15],
                    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ];
                ([&own[..], &[9]].concat(), [&server[..], &[1]].concat())
            }
            _ => (vec![192, 0, 2, 9], vec![192, 0, 2, 1]),
        }
    }

    /// The connection from this port as a member of a set.
    fn key(&self, port: u16) -> Vec<u8> {
        let (own, server) = self.addresses();
        let end = |address: &[u8], port: u16| [address, &port.to_be_bytes(), &[0; 2]].concat();
        [end(&own, port), end(&server, 443)].concat()
    }

    /// Whether a packet of the connection from this port is untracked: sent by a process in this cgroup, or received from the API
    /// server.
    fn is_untracked(&mut self, port: u16, sender: Option<u64>, flags: u8) -> bool {
        let (mut network, at): (Vec<u8>, usize) = match self.family {
            Family::IPv6 => (vec![0; 40], 8),
            _ => (vec![0; 20], 12),
        };
        let (own, server) = self.addresses();
        let mut ends = [(own, port), (server, 443)];
        if sender.is_none() {
            ends.reverse();
        }
        let mut transport = [0; 20];
        for (place, (address, port)) in ends.iter().enumerate() {
            let start = at + place * address.len();
            network[start..start + address.len()].copy_from_slice(address);
            transport[place * 2..place * 2 + 2].copy_from_slice(&port.to_be_bytes());
        }
        transport[13] = flags;
        let mut packet = Packet {
            network,
            transport,
            iif: if sender.is_none() { 2 } else { 0 },
            priority: 0,
            cgroup: sender,
            untracked: false,
        };
        let hook = match sender {
            Some(_) => Hook::Output,
            None => Hook::Prerouting,
        };
        self.kernel.hook(hook, &mut packet);
        packet.untracked
    }

    fn sends(&mut self, port: u16, flags: u8) -> bool {
        self.is_untracked(port, Some(PROXY), flags)
    }

    fn receives(&mut self, port: u16, flags: u8) -> bool {
        self.is_untracked(port, None, flags)
    }

    /// Whether a whole connection was untracked.
    fn connects(&mut self, port: u16) -> bool {
        let first = self.sends(port, SYN);
        for untracked in [
            self.receives(port, SYN | ACK),
            self.sends(port, ACK),
            self.receives(port, ACK),
            self.sends(port, FIN | ACK),
            self.receives(port, FIN | ACK),
            self.sends(port, ACK),
        ] {
            assert_eq!(untracked, first, "as its SYN");
        }
        first
    }
}

#[test]
fn every_packet_of_the_proxy_is_untracked_and_none_of_others() {
    for family in [Family::IPv4, Family::IPv6] {
        let mut node = Node::new(family);
        assert!(node.connects(40_000));
        assert!(node.connects(40_000), "the same port again");
        for sender in [Some(STRANGER), None] {
            for flags in [SYN, SYN | ACK, ACK, FIN | ACK, RST] {
                assert!(!node.is_untracked(40_001, sender, flags));
            }
        }
    }
}

/// To an unknown endpoint: recorded and tracked; connections of others are not recorded.
#[test]
fn new_connections_to_others_are_noted() {
    for family in [Family::IPv4, Family::IPv6] {
        let mut node = Node::with(family, &[]);
        assert!(!node.is_untracked(40_000, Some(STRANGER), SYN));
        assert!(!node.kernel.has(SEEN, &node.key(40_000)));
        assert!(!node.connects(40_000));
        assert!(node.kernel.has(SEEN, &node.key(40_000)));
        // Later packets of a connection are no news, and the proxy's answers are no connections.
        for flags in [ACK, SYN | ACK, FIN | ACK, RST] {
            assert!(!node.sends(40_001, flags));
        }
        assert!(!node.kernel.has(SEEN, &node.key(40_001)));
        let mut node = Node::new(family);
        assert!(node.connects(40_000));
        assert!(!node.kernel.has(SEEN, &node.key(40_000)), "it is known");
    }
}

#[test]
fn a_lost_syn_concerns_its_connection_only() {
    let mut node = Node::new(Family::IPv4);
    assert!(node.connects(40_000));
    assert!(node.sends(40_001, SYN));
    node.kernel.pass(Duration::from_secs(1));
    for tracked in [
        node.sends(40_001, SYN),
        node.receives(40_001, SYN | ACK),
        node.sends(40_001, ACK),
    ] {
        assert!(!tracked, "from the repeated SYN on");
    }
    assert!(node.connects(40_002));
}

#[test]
fn an_endpoint_that_does_not_answer_is_left_alone_for_a_time() {
    let mut node = Node::new(Family::IPv4);
    assert!(node.sends(40_000, SYN));
    assert!(!node.sends(40_000, SYN), "repeated");
    assert!(!node.connects(40_001));
    node.kernel.pass(Duration::from_mins(11));
    assert!(node.connects(40_002));
    // After an answer, two repeated SYNs in a row are needed.
    for (port, is_left) in [(40_003, false), (40_004, true)] {
        assert!(node.sends(port, SYN));
        assert!(!node.sends(port, SYN), "repeated");
        assert_eq!(node.sends(port + 10, SYN), !is_left);
    }
}

/// A port that is refused and used again has no repeated SYN.
#[test]
fn a_refused_connection_is_no_repeated_one() {
    let mut node = Node::new(Family::IPv4);
    for _ in 0..3 {
        assert!(node.sends(40_000, SYN));
        assert!(node.receives(40_000, RST | ACK));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Closed,
    Opening,
    Answered,
    Open,
}

proptest! {
/// In any order, a packet is untracked if and only if the last SYN of its connection was.
    #[test]
    fn packets_go_the_way_of_their_syn(events in prop::collection::vec((0_usize..4, 0_u8..6), 0..80), v6: bool) {
        let mut node = Node::new(if v6 { Family::IPv6 } else { Family::IPv4 });
        let mut connections = [(Stage::Closed, false); 4];
        for (index, event) in events {
            let port = 40_000 + u16::try_from(index).unwrap();
// The last one belongs to another process.
            let cgroup = if index == 3 { STRANGER } else { PROXY };
            let (stage, untracked) = connections[index];
            let mut sent = |flags| node.is_untracked(port, Some(cgroup), flags);
            let (next, now) = match (stage, event) {
                (Stage::Closed, 0) => {
                    let now = sent(SYN);
                    prop_assert!(!now || cgroup == PROXY, "a stranger");
                    connections[index] = (Stage::Opening, now);
                    continue;
                }
                (Stage::Opening, 0) => {
                    let now = sent(SYN);
                    prop_assert!(!now, "repeated");
                    connections[index] = (Stage::Opening, now);
                    continue;
                }
                (Stage::Opening, 1) => (Stage::Answered, node.receives(port, SYN | ACK)),
                (Stage::Opening | Stage::Open, 2) => (Stage::Closed, node.receives(port, RST | ACK)),
                (Stage::Answered, 0 | 1) | (Stage::Open, 3) => (Stage::Open, sent(ACK)),
                (Stage::Open, 4) => (Stage::Open, node.receives(port, ACK)),
                (Stage::Open, 5) => (Stage::Closed, sent(RST)),
                _ => continue,
            };
            prop_assert_eq!(now, untracked, "{:?} {}", stage, event);
            connections[index] = (next, untracked);
        }
    }
}
