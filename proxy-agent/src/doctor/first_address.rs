// SPDX-License-Identifier: Apache-2.0

//! Whether a VIP is listed before the node's own address where programs look for it: kubelet without `--node-ip` and flannel
//! use the first global address of the link with the default route, kubelet otherwise that of `lo`. The kernel lists IPv4
//! addresses of scope link before those of scope global, and the newest IPv6 address first.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxy_netlink::route::{self, Address, LinkKind};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::link::LinkTable;

const ID: &str = "first-address";

pub async fn checks(subject: &Subject) -> Vec<Check> {
    let table = match subject.links_for_vips(ID) {
        Ok(table) => table,
        Err(check) => return vec![check],
    };
    let read = async { Ok((route::uplinks().await?, route::addresses().await?)) };
    match read.await {
        Ok((uplinks, addresses)) => judge(&subject.vips, &addresses, &uplinks, table),
        Err(error) => {
            let error: route::Error = error;
            let what = "read the node's addresses and default routes";
            vec![check::unknown(ID, what, &error, "try again")]
        }
    }
}

fn judge(
    vips: &[IpAddr],
    addresses: &[Address],
    uplinks: &BTreeSet<u32>,
    table: &LinkTable,
) -> Vec<Check> {
    let is_loopback = |index: u32| {
        let link = table.by_index(index);
        link.is_some_and(|link| link.kind == LinkKind::Loopback)
    };
    let mut checks = Vec::new();
    for is_ipv4 in [true, false] {
        let candidates: Vec<&Address> = addresses
            .iter()
            .filter(|address| address.ip.is_ipv4() == is_ipv4 && is_global(address.ip))
            .collect();
        let is_own = |address: &&&Address| !vips.contains(&address.ip);
        let own: Vec<_> = candidates.iter().filter(is_own).collect();
        let on_uplinks = own.iter().any(|address| uplinks.contains(&address.index));
        let mut seen = BTreeSet::new();
        for first in &candidates {
            let index = first.index;
            let is_looked_at = uplinks.contains(&index) || (is_loopback(index) && !on_uplinks);
            if !seen.insert(index) || !is_looked_at || !vips.contains(&first.ip) {
                continue;
            }
            // Without another address on this link, programs do not search there, or `vip-source` reports it.
            let Some(next) = own.iter().find(|address| address.index == index) else {
                continue;
            };
            let (vip, link, next) = (first.ip, table.name_of(index), next.ip);
            checks.push(Check::warning(
                ID,
                format!(
                    "{vip} is listed before {next} on {link}: programs that use the first address there as the \
                     node's, such as kubelet without --node-ip and flannel, use {vip}"
                ),
                "put the VIP on a link of its own (--interface=apiserver-proxy), use a link-local one for IPv4, or set \
                 the node's address in these programs",
            ));
        }
    }
    if checks.is_empty() {
        let finding = "no VIP is listed before the node's own address";
        checks.push(Check::ok(ID, finding));
    }
    checks
}

/// Whether programs may use an address as the node's: neither loopback, nor link-local, nor multicast.
fn is_global(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || is_link_local)
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::Link;
    use proxy_serve::doctor::Verdict;

    use super::*;
    use crate::link::address;

    #[test]
    fn only_a_vip_before_another_address_counts() {
        let table = LinkTable {
            links: vec![
                Link::new(1, "lo", LinkKind::Loopback),
                Link::new(2, "eth0", LinkKind::Veth),
                Link::new(3, "pod0", LinkKind::Veth),
            ],
            ..LinkTable::default()
        };
        let vips = ["10.96.0.2", "fd00:96::2", "169.254.20.2"].map(|vip| vip.parse().unwrap());
        let judged = |addresses: &[(u32, &str)]| {
            let addresses: Vec<_> = addresses
                .iter()
                .map(|(index, ip)| address(*index, ip, 32))
                .collect();
            let checks = judge(&vips, &addresses, &BTreeSet::from([2]), &table);
            let faults = checks
                .into_iter()
                .filter(|check| check.verdict == Verdict::Warning);
            faults.map(|check| check.finding).collect::<Vec<_>>()
        };
        let on_the_uplink = judged(&[(2, "fd00:96::2"), (2, "fd00:100::10"), (2, "fe80::1")]);
        assert_eq!(on_the_uplink.len(), 1);
        assert!(
            on_the_uplink[0].starts_with("fd00:96::2 is listed before fd00:100::10 on eth0:"),
            "{on_the_uplink:?}"
        );
        let good: [&[(u32, &str)]; 5] = [
            &[(2, "192.0.2.1"), (2, "10.96.0.2")],
            // `lo` is not searched.
            &[
                (1, "127.0.0.1"),
                (1, "10.96.0.2"),
                (1, "192.0.2.9"),
                (2, "192.0.2.1"),
            ],
            // Link-local addresses are skipped.
            &[(1, "169.254.20.2"), (1, "192.0.2.9")],
            &[(1, "10.96.0.2"), (2, "192.0.2.1")],
            &[(3, "10.96.0.2"), (3, "192.0.2.9")],
        ];
        for addresses in good {
            assert_eq!(judged(addresses), Vec::<String>::new(), "{addresses:?}");
        }
        // A node whose addresses are on lo only.
        let on_lo = judged(&[(1, "10.96.0.2"), (1, "192.0.2.9")]);
        assert_eq!(on_lo.len(), 1, "{on_lo:?}");
    }
}
