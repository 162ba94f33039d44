// SPDX-License-Identifier: Apache-2.0

//! Links, and the VIPs on them, as the agent knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// What kind of link it is, as far as anybody here has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// A link without anything behind it.
    Dummy,
    /// A bridge master.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VRF master: a routing domain of its own.
    Vrf,
    /// A VLAN of another link.
    Vlan,
    /// A tun or tap link: what a process sends.
    Tun,
    /// Everything else, hardware included.
    Other,
}

/// One link of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "what the kernel tells of a link is like that"
)]
pub struct Link {
    /// The ifindex.
    pub index: u32,
    /// The name.
    pub name: String,
    /// Alternative names, under which the kernel finds the link as well.
    pub altnames: Vec<String>,
    /// It was set up (`IFF_UP`). A carrier is not asked for.
    pub up: bool,
    /// What kind of link it is.
    pub kind: LinkKind,
    /// The ifindex of the bridge, bond, VRF or other link it is a port of.
    pub master: Option<u32>,
    /// The agent created it, in this run or an earlier one.
    pub owned: bool,
    /// It carries addresses that are neither VIPs nor link-local. Known for owned links only.
    pub foreign_addresses: bool,
    /// The ifindex of the link of this network namespace that it sits on, or of the other end of the
    /// pair.
    pub lower: Option<u32>,
    /// Its packets have Ethernet headers.
    pub ethernet: bool,
    /// The XDP program on it.
    pub xdp: Option<Xdp>,
}

/// An XDP program as a link has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xdp {
    /// The id of the program; zero for several of them.
    pub program: u32,
    /// The driver runs it, not the stack.
    pub native: bool,
}

/// A VIP as it is on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "what the kernel tells of an address is like that"
)]
pub struct LinkAddress {
    /// The ifindex of the link.
    pub index: u32,
    /// The VIP.
    pub ip: IpAddr,
    /// Length of the prefix; with a peer, of the peer's.
    pub prefix_len: u8,
    /// The other end, on an address that was added with a peer.
    pub peer: Option<IpAddr>,
    /// The scope, as in `RT_SCOPE_*`: 0 is global. Of IPv6, what the kernel makes of the address.
    pub scope: u8,
    /// Duplicate address detection has not ended, or not well: the address does not work.
    pub unusable: bool,
    /// An IPv6 address that the kernel takes as a source only if it has no other. Never set for IPv4.
    pub deprecated: bool,
    /// It never expires.
    pub permanent: bool,
    /// It hangs on another IPv4 address of the same subnet. Never set for IPv6.
    pub secondary: bool,
    /// Foreign addresses that the kernel would delete together with this one.
    pub takes_along: Vec<Prefix>,
}

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// The length in bits.
    pub len: u8,
}

/// The links of this network namespace, sorted by ifindex, and the VIPs on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkTable {
    /// All links.
    pub links: Vec<Link>,
    /// Every copy of a VIP on any link, sorted by ifindex.
    pub addresses: Vec<LinkAddress>,
    /// The Service addresses that links carry, each with the ifindex of one that does.
    pub services: BTreeMap<IpAddr, u32>,
    /// The links that carry a default route, by ifindex; none if nobody has asked for them.
    pub uplinks: Option<BTreeSet<u32>>,
}

impl Link {
    /// An Ethernet link that is up and by itself, and has nothing.
    pub fn new(index: u32, name: &str, kind: LinkKind) -> Self {
        Self {
            index,
            name: name.to_owned(),
            altnames: Vec::new(),
            up: true,
            kind,
            master: None,
            owned: false,
            foreign_addresses: false,
            lower: None,
            ethernet: true,
            xdp: None,
        }
    }
}

#[cfg(test)]
impl LinkAddress {
    /// A primary address that works forever, with the scope that the agent gives by default.
    pub fn new(index: u32, ip: &str, prefix_len: u8) -> Self {
        let ip: IpAddr = ip.parse().expect("an address");
        Self {
            index,
            ip,
            prefix_len,
            peer: None,
            scope: if ip.is_ipv4() {
                libc::RT_SCOPE_LINK
            } else {
                libc::RT_SCOPE_UNIVERSE
            },
            unusable: false,
            deprecated: ip.is_ipv6(),
            permanent: true,
            secondary: false,
            takes_along: Vec::new(),
        }
    }
}

impl LinkTable {
    /// The link with this name or alternative name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.links
            .iter()
            .find(|link| link.name == name || link.altnames.iter().any(|other| other == name))
    }

    /// The link with this ifindex.
    pub fn by_index(&self, index: u32) -> Option<&Link> {
        let at = self
            .links
            .binary_search_by_key(&index, |link| link.index)
            .ok()?;
        self.links.get(at)
    }

    /// The name of a link, or something to call it if it has gone.
    pub fn name_of(&self, index: u32) -> String {
        self.by_index(index)
            .map_or_else(|| format!("ifindex {index}"), |link| link.name.clone())
    }
}

impl LinkAddress {
    /// The address with the length of its prefix.
    pub(super) fn prefix(&self) -> Prefix {
        Prefix {
            ip: self.ip,
            len: self.prefix_len,
        }
    }
}

impl Prefix {
    /// The same length and the same network: what the kernel calls primary and secondary.
    pub(super) fn same_subnet(self, other: Self) -> bool {
        self.len == other.len && self.holds(other.ip)
    }

    /// Whether an IPv4 address lies in the network of this one; IPv6 is not asked for.
    pub fn holds(self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let host_bits = 32_u32.saturating_sub(u32::from(self.len));
                let network = |address: Ipv4Addr| address.to_bits().checked_shr(host_bits);
                network(a) == network(b)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            None => write!(f, "{}/{}", self.ip, self.prefix_len),
            Some(peer) => write!(f, "{} peer {peer}/{}", self.ip, self.prefix_len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_by_every_name() {
        let link = |index, name: &str, altname: &str| Link {
            altnames: vec![altname.to_owned()],
            ..Link::new(index, name, LinkKind::Other)
        };
        let table = LinkTable {
            links: vec![link(2, "eth0", "enp0s3"), link(7, "eth1", "enp0s4")],
            ..LinkTable::default()
        };
        let index = |name| table.by_name(name).map(|link| link.index);
        assert_eq!(
            (index("eth0"), index("enp0s4"), index("lo")),
            (Some(2), Some(7), None)
        );
        assert_eq!(table.name_of(7), "eth1");
        assert_eq!(table.name_of(8), "ifindex 8");
    }
}
