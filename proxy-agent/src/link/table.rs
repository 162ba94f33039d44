// SPDX-License-Identifier: Apache-2.0

//! The links of the node with the VIPs on them, and which links are the agent's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_netlink::route::{Address, Link, Prefix};

/// The link group that marks a link as created by the agent: "pxag" in ASCII.
///
/// The group is the only mark that the kernel accepts in the message that creates the link (it ignores an
/// alias or an alternative name there), so that a crash leaves no link of ours unmarked, and none that
/// is not ours marked. It lasts as long as the link, so that a later run recognises it.
/// `rtnl_create_link` in <https://github.com/torvalds/linux/blob/v5.4/net/core/rtnetlink.c>, since
/// 2.6.39.
pub const OWN_GROUP: u32 = u32::from_be_bytes(*b"pxag");

/// The links of this network namespace, sorted by ifindex, and the VIPs on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkTable {
    /// All links.
    pub links: Vec<Link>,
    /// Every copy of a VIP on any link, sorted by ifindex.
    pub addresses: Vec<Address>,
    /// The copies of VIPs with the foreign addresses that the kernel would delete together with each.
    pub endangering: Vec<(Address, Vec<Prefix>)>,
    /// The owned links that carry addresses that are neither VIPs nor link-local, by ifindex.
    pub shared: BTreeSet<u32>,
    /// The Service addresses that links carry, each with the ifindex of one that does.
    pub services: BTreeMap<IpAddr, u32>,
    /// The links that carry a default route, by ifindex; none if they were not read.
    pub uplinks: Option<BTreeSet<u32>>,
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

    /// The foreign addresses that the kernel would delete together with a copy of a VIP.
    pub fn takes_along(&self, copy: &Address) -> &[Prefix] {
        let is_same = |other: &Address| {
            let key =
                |address: &Address| (address.index, address.ip, address.prefix_len, address.peer);
            key(other) == key(copy)
        };
        let found = self.endangering.iter().find(|(other, _)| is_same(other));
        found.map_or(&[], |(_, foreign)| foreign)
    }

    /// The name of a link, or its ifindex in words if it has gone.
    pub fn name_of(&self, index: u32) -> String {
        self.by_index(index)
            .map_or_else(|| format!("ifindex {index}"), |link| link.name.clone())
    }
}

/// Whether the agent created a link, in this run or an earlier one.
pub fn is_owned(link: &Link) -> bool {
    link.group == OWN_GROUP
}

/// A primary address that works forever, with the scope that the agent gives by default.
#[cfg(test)]
pub fn address(index: u32, ip: &str, prefix_len: u8) -> Address {
    let ip: IpAddr = ip.parse().expect("an address");
    Address {
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
    }
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::LinkKind;

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
