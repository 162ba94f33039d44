// SPDX-License-Identifier: Apache-2.0

//! Selects the links that carry traffic from outside of the node, on which the backend drops packets for the VIPs. Pure. A link
//! is guarded only if its packets can be distinguished from those of pods.

use std::collections::{BTreeMap, BTreeSet};

use proxy_netlink::route::{Link, LinkKind};

use crate::config::Guard;
use crate::link::LinkTable;

/// The node's links as the guard classifies them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// Names of the links that carry traffic from outside, by ifindex.
    pub guarded: BTreeMap<u32, String>,
    /// Links on which packets of the node itself arrive.
    pub inner: BTreeMap<u32, String>,
    /// Bridge ports without a VLAN link on top: the bridge receives their tagged packets too.
    pub tagged: BTreeSet<u32>,
    /// Links that are not guarded although one might expect it, with the reason.
    pub notes: Vec<String>,
}

/// Selects the links; none if that depends on routes that could not be read.
pub fn choose(guard: &Guard, table: &LinkTable) -> Option<Links> {
    let mut links = Links::default();
    match guard {
        Guard::Off => return Some(links),
        Guard::Auto => {
            for index in table.uplinks.as_ref()? {
                if let Some(link) = table.by_index(*index) {
                    links.add_uplink(link, table);
                }
            }
        }
        Guard::Links(names) => {
            for name in names {
                match table.by_name(name) {
                    Some(link) => links.add_named(link, table),
                    None => links.notes.push(format!("link {name} does not exist")),
                }
            }
        }
    }
    for link in &table.links {
        if leads_back(link) {
            links.inner.insert(link.index, link.name.clone());
        }
        if is_port_of_bridge(link, table) && !carries_vlan(link, table) {
            links.tagged.insert(link.index);
        }
    }
    Some(links)
}

impl Links {
    /// The selection for a backend that sees packets behind bridges only, with the reasons for what is left out.
    pub fn seen_by_rules(&self, table: &LinkTable) -> (Self, Vec<String>) {
        let mut links = self.clone();
        let mut notes = Vec::new();
        links.guarded.retain(|index, name| {
            let is_port = table
                .by_index(*index)
                .is_some_and(|link| is_port_of_bridge(link, table));
            if is_port {
                notes.push(format!(
                    "{name} is a port of a bridge: the rules of this backend see the bridge only, and \
                     cannot distinguish packets from outside from those of pods"
                ));
            }
            !is_port
        });
        (links, notes)
    }

    fn add_uplink(&mut self, link: &Link, table: &LinkTable) {
        match link.kind {
            // Its packets come from the node itself.
            LinkKind::Loopback => {}
            LinkKind::Vrf => self.notes.push(format!(
                "{} carries a default route and is a VRF: its packets arrive on its ports",
                link.name
            )),
            LinkKind::Bridge => self.add_ports(link, "carries a default route", table),
            _ if leads_back(link) => self.notes.push(format!(
                "{} carries a default route, but its peer is on this node too",
                link.name
            )),
            _ => self.add(link),
        }
    }

    fn add_named(&mut self, link: &Link, table: &LinkTable) {
        match link.kind {
            LinkKind::Loopback => self.notes.push(format!(
                "{} carries the node's own packets and is not guarded",
                link.name
            )),
            LinkKind::Bridge => self.add_ports(link, "is a bridge", table),
            _ => self.add(link),
        }
    }

    /// Adds a bridge's ports, except those of pods: veth and tap.
    fn add_ports(&mut self, bridge: &Link, what: &str, table: &LinkTable) {
        let ports = || {
            let links = table.links.iter();
            links.filter(|link| link.master == Some(bridge.index))
        };
        let is_of_pods = |link: &&Link| matches!(link.kind, LinkKind::Veth | LinkKind::Tun);
        if ports().all(|port| is_of_pods(&port)) {
            self.notes.push(format!(
                "{} {what}, and all its ports are veth or tap: packets from outside cannot be distinguished \
                 from those of pods",
                bridge.name
            ));
        }
        for port in ports().filter(|port| !is_of_pods(port)) {
            self.add(port);
        }
    }

    fn add(&mut self, link: &Link) {
        self.guarded.insert(link.index, link.name.clone());
    }
}

/// Whether packets that the node sends on a link may arrive on one of its links.
fn leads_back(link: &Link) -> bool {
    match link.kind {
        LinkKind::Veth => link.lower.is_some(),
        LinkKind::Vrf => true,
        _ => false,
    }
}

/// Whether a link is a port of a bridge. Packets on a port of a bond, team or VRF appear on its master again.
pub fn is_port_of_bridge(link: &Link, table: &LinkTable) -> bool {
    let master = link.master.and_then(|index| table.by_index(index));
    master.is_some_and(|master| master.kind == LinkKind::Bridge)
}

/// Whether a VLAN link is on top of a link.
pub fn carries_vlan(link: &Link, table: &LinkTable) -> bool {
    let sits_there = |other: &Link| other.kind == LinkKind::Vlan && other.lower == Some(link.index);
    table.links.iter().any(sits_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(index: u32, name: &str, kind: LinkKind, master: u32) -> Link {
        Link {
            master: Some(master),
            ..Link::new(index, name, kind)
        }
    }

    fn table(uplinks: &[u32], links: Vec<Link>) -> LinkTable {
        LinkTable {
            links,
            uplinks: Some(uplinks.iter().copied().collect()),
            ..LinkTable::default()
        }
    }

    fn guarded(guard: &Guard, table: &LinkTable) -> (Vec<String>, usize) {
        let links = choose(guard, table).expect("routes are known");
        (links.guarded.into_values().collect(), links.notes.len())
    }

    #[test]
    fn uplinks_are_guarded_of_whatever_kind() {
        let table = table(
            &[1, 2, 3, 4],
            vec![
                Link::new(1, "lo", LinkKind::Loopback),
                Link::new(2, "eth0", LinkKind::Veth),
                Link::new(3, "bond0", LinkKind::Other),
                Link::new(4, "bond0.7", LinkKind::Vlan),
                Link::new(5, "pod0", LinkKind::Veth),
            ],
        );
        let all = ["eth0", "bond0", "bond0.7"].map(str::to_owned).to_vec();
        assert_eq!(guarded(&Guard::Auto, &table), (all, 0));
        assert_eq!(guarded(&Guard::Off, &table), (Vec::new(), 0));
    }

    #[test]
    fn of_a_bridge_the_ports_that_are_not_of_pods_are() {
        let links = vec![
            Link::new(2, "br0", LinkKind::Bridge),
            port(3, "eth0", LinkKind::Other, 2),
            port(4, "eth0.9", LinkKind::Vlan, 2),
            port(5, "pod0", LinkKind::Veth, 2),
            port(6, "tap0", LinkKind::Tun, 2),
            Link {
                lower: Some(3),
                ..Link::new(7, "eth0.8", LinkKind::Vlan)
            },
        ];
        let table = table(&[2], links);
        let ports = vec!["eth0".to_owned(), "eth0.9".to_owned()];
        assert_eq!(guarded(&Guard::Auto, &table), (ports.clone(), 0));
        assert_eq!(
            guarded(&Guard::Links(vec!["br0".to_owned()]), &table),
            (ports, 0)
        );
        let links = choose(&Guard::Auto, &table).unwrap();
        // A VLAN link on top of eth0 receives its tagged packets.
        assert_eq!(links.tagged, BTreeSet::from([4, 5, 6]));
    }

    #[test]
    fn links_with_packets_of_pods_are_not_guarded_and_noted() {
        let bridge = table(
            &[2],
            vec![
                Link::new(2, "br0", LinkKind::Bridge),
                port(5, "pod0", LinkKind::Veth, 2),
            ],
        );
        assert_eq!(guarded(&Guard::Auto, &bridge), (Vec::new(), 1));
        let inner = Link {
            lower: Some(3),
            ..Link::new(2, "cni_host", LinkKind::Veth)
        };
        let inner = table(&[2], vec![inner]);
        assert_eq!(guarded(&Guard::Auto, &inner), (Vec::new(), 1));
        assert!(choose(&Guard::Auto, &inner).unwrap().inner.contains_key(&2));
        let named = |name: &str| Guard::Links(vec![name.to_owned()]);
        assert_eq!(
            guarded(&named("cni_host"), &inner),
            (vec!["cni_host".to_owned()], 0)
        );
        assert_eq!(guarded(&named("eth9"), &inner), (Vec::new(), 1));
    }

    #[test]
    fn without_routes_the_selection_is_unknown() {
        let table = LinkTable::default();
        assert_eq!(choose(&Guard::Auto, &table), None);
        assert!(choose(&Guard::Off, &table).is_some());
    }
}
