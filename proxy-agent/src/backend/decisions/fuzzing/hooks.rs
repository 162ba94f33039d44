// SPDX-License-Identifier: Apache-2.0

//! Packets at the node's hooks, and conntrack between them.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use proxy_netlink::netfilter::{Family, Hook, Table};

use super::interpreter::Packet;
use super::{Connection, Node, PORT, PORTS, Promise, Way};
use crate::backend::decisions::tables;
use crate::backend::live::Live;
use crate::config::{Config, ProxyUpstream};

impl Node {
    /// The hooks before conntrack.
    pub(super) fn raw(&mut self, packet: &mut Packet) {
        if self.is_client_here {
            self.kernel.hook(Hook::Output, packet);
        } else {
            packet.iif = 2;
            self.kernel.hook(Hook::Prerouting, packet);
        }
    }

    /// The hooks after conntrack and NAT.
    pub(super) fn input(&mut self, mut packet: Packet) {
        packet.iif = 2;
        if self.is_client_here {
            packet.iif = 1;
            let before = packet.untracked;
            self.kernel.hook(Hook::Prerouting, &mut packet);
            assert_eq!(packet.untracked, before, "packets on lo are left alone");
        }
        let before = packet.untracked;
        self.kernel.hook(Hook::Input, &mut packet);
        assert_eq!(packet.untracked, before, "it is too late to decide");
    }

    /// The port that conntrack assigns to a connection: none that a known connection uses.
    pub(super) fn conntracks_port(&self, at: usize, choice: usize) -> usize {
        let new = &self.connections[at];
        if new.promise == Promise::Tracked {
            return new.seen;
        }
        let others = || {
            let all = self.connections.iter().enumerate();
            let others =
                all.filter(|(other, one)| *other != at && one.promise != Promise::Untracked);
            others.map(|(_, one)| one)
        };
        let is_same = |one: &&Connection| (one.way, one.port) == (new.way, new.port);
        if let Some(entry) = others().find(is_same) {
            return entry.seen;
        }
        let first = if new.way == Way::Direct {
            new.port
        } else {
            new.port + choice
        };
        (first..first + PORTS.len())
            .map(|port| port % PORTS.len())
            .find(|port| others().all(|one| one.seen != *port))
            .expect("there are as many ports as connections")
    }

    pub(super) fn header(
        &self,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
        flags: u8,
    ) -> Packet {
        let (mut network, addresses) = match self.family {
            Family::IPv6 => (vec![0; 40], 8),
            _ => (vec![0; 20], 12),
        };
        let octets = [source.0, destination.0].map(octets).concat();
        network[addresses..].copy_from_slice(&octets);
        let mut transport = [0; 20];
        transport[..2].copy_from_slice(&source.1.to_be_bytes());
        transport[2..4].copy_from_slice(&destination.1.to_be_bytes());
        transport[13] = flags;
        Packet {
            network,
            transport,
            iif: 0,
            priority: 0,
            cgroup: None,
            untracked: false,
        }
    }

    /// A connection's member in the sets.
    pub(super) fn key(&self, seen: usize) -> Vec<u8> {
        let ends = [(self.client(), PORTS[seen]), (self.vip(), PORT)];
        let end = |(ip, port): (IpAddr, u16)| {
            [octets(ip), port.to_be_bytes().to_vec(), vec![0; 2]].concat()
        };
        ends.map(end).concat()
    }

    pub(super) fn client(&self) -> IpAddr {
        if self.is_client_here {
            // Processes of the node reach the VIP from the VIP's own address.
            self.vip()
        } else {
            address(self.family, 7)
        }
    }

    pub(super) fn vip(&self) -> IpAddr {
        address(self.family, 2)
    }

    pub(super) fn service(&self) -> IpAddr {
        address(self.family, 1)
    }
}

fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::IPv6 => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
        _ => [10, 96, 0, last].into(),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The table of a family; without members it is built only once.
pub(super) fn table(family: Family, live: &Live) -> Arc<Table> {
    static EMPTY: LazyLock<[Arc<Table>; 2]> =
        LazyLock::new(|| [Family::IPv4, Family::IPv6].map(|family| make(family, &Live::default())));
    if *live == Live::default() {
        return Arc::clone(&EMPTY[usize::from(family == Family::IPv6)]);
    }
    make(family, live)
}

fn make(family: Family, live: &Live) -> Arc<Table> {
    let config = Config {
        vips: vec![address(family, 2)],
        ports: vec![PORT],
        max_connections: 1024,
        proxy_upstream: ProxyUpstream::Auto,
        ..Config::default()
    };
    let mut tables = tables(&config, live).into_iter();
    let table = tables.find(|table| table.family == family);
    Arc::new(table.expect("there is one of each family"))
}
