// SPDX-License-Identifier: Apache-2.0

//! Reads the links of the node and the addresses that matter to the agent. Nothing is changed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use proxy_netlink::route::{self, Address, AddressFamily, Link, Prefix, links};

use super::table::{LinkTable, is_owned};

/// Reads all links of the calling thread's network namespace, the copies of `vips` on them, and which of
/// `services` they carry.
///
/// # Errors
///
/// If a list could not be read to its end, or kept changing while it was read. A list that is not
/// complete is never returned.
pub async fn observe(vips: &[IpAddr], services: &[IpAddr]) -> Result<LinkTable, route::Error> {
    let links = links().await?;
    // Whether a link of ours may be deleted depends on addresses of both families.
    let any_owned = links.iter().any(is_owned);
    let mut addresses = Vec::new();
    let mut secondaries = Vec::new();
    let mut carried = BTreeMap::new();
    let mut shared = BTreeSet::new();
    for family in AddressFamily::ALL {
        let is_needed = vips.iter().chain(services).any(|ip| family.has(*ip));
        if !is_needed && !any_owned {
            continue;
        }
        let found = route::of_family(family, |found: &mut Addresses, address| {
            if services.contains(&address.ip) {
                found.services.insert(address.ip, address.index);
            }
            found.take(address, vips, &links);
        })
        .await?;
        addresses.extend(found.vips);
        secondaries.extend(found.secondaries);
        carried.extend(found.services);
        shared.extend(found.foreign_on_owned);
    }
    let mut table = LinkTable {
        links,
        addresses,
        services: carried,
        shared,
        ..LinkTable::default()
    };
    table
        .addresses
        .sort_by_key(|address| (address.index, address.ip, address.prefix_len));
    mark_endangered(&mut table, &secondaries, promotes_secondaries);
    Ok(table)
}

/// The addresses of one family, as far as they matter.
#[derive(Default)]
struct Addresses {
    vips: Vec<Address>,
    services: BTreeMap<IpAddr, u32>,
    /// IPv4 addresses that the kernel deletes together with a primary one.
    secondaries: Vec<(u32, Prefix)>,
    /// The owned links that carry other addresses.
    foreign_on_owned: Vec<u32>,
}

/// The network of each IPv4 address, with the ifindex of its link.
///
/// # Errors
///
/// As [`observe`].
pub async fn ipv4_networks() -> Result<Vec<(u32, Prefix)>, route::Error> {
    route::of_family(AddressFamily::V4, |found: &mut Vec<_>, address| {
        found.push((address.index, address.prefix()));
    })
    .await
}

impl Addresses {
    fn take(&mut self, address: Address, vips: &[IpAddr], links: &[Link]) {
        if vips.contains(&address.ip) {
            self.vips.push(address);
            return;
        }
        if address.secondary {
            self.secondaries.push((address.index, address.prefix()));
        }
        let owned = || {
            links
                .iter()
                .any(|link| is_owned(link) && link.index == address.index)
        };
        if !is_link_local(address.ip) && owned() {
            self.foreign_on_owned.push(address.index);
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Finds the foreign secondaries of each VIP that is a primary address itself: the kernel deletes
/// them with it, unless the link promotes secondaries.
fn mark_endangered(
    table: &mut LinkTable,
    secondaries: &[(u32, Prefix)],
    promotes: impl Fn(&str) -> bool,
) {
    for address in &table.addresses {
        if address.secondary {
            continue;
        }
        let network = Prefix {
            ip: address.peer.unwrap_or(address.ip),
            len: address.prefix_len,
        };
        let endangered: Vec<_> = secondaries
            .iter()
            .filter(|(index, other)| *index == address.index && network.same_subnet(*other))
            .map(|(_, other)| *other)
            .collect();
        if !endangered.is_empty() && !promotes(&table.name_of(address.index)) {
            table.endangering.push((address.clone(), endangered));
        }
    }
}

/// The `promote_secondaries` setting in force on a link. If it cannot be read, it counts as off: that is
/// the kernel's default, and no foreign address can be lost by it.
fn promotes_secondaries(link: &str) -> bool {
    ["all", link].into_iter().any(|name| {
        fs::read_to_string(format!(
            "/proc/sys/net/ipv4/conf/{name}/promote_secondaries"
        ))
        .is_ok_and(|value| value.trim() != "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, len: u8, secondary: bool) -> Address {
        Address {
            secondary,
            ..crate::link::address(2, ip, len)
        }
    }

    fn endangered(vip: Address, promotes: bool) -> Vec<String> {
        let mut table = LinkTable {
            addresses: vec![vip],
            ..LinkTable::default()
        };
        let other = |index, ip: &str, len| {
            let ip = ip.parse().expect("an address");
            (index, Prefix { ip, len })
        };
        let secondaries = [
            other(2, "10.96.0.9", 24),
            other(2, "10.96.1.9", 24),
            other(2, "10.96.0.9", 25),
            other(3, "10.96.0.9", 24),
        ];
        mark_endangered(&mut table, &secondaries, |_| promotes);
        let found = table.takes_along(&table.addresses[0]);
        found.iter().map(Prefix::to_string).collect()
    }

    #[test]
    fn only_the_secondaries_of_a_primary_are_endangered() {
        let primary = || address("10.96.0.2", 24, false);
        assert_eq!(endangered(primary(), false), ["10.96.0.9/24"]);
        assert!(endangered(primary(), true).is_empty());
        assert!(endangered(address("10.96.0.2", 24, true), false).is_empty());
        assert!(endangered(address("10.96.0.2", 32, false), false).is_empty());
    }
}
