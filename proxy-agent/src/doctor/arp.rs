// SPDX-License-Identifier: Apache-2.0

//! Whether neighbours can learn that this node has a VIP. Linux answers ARP requests for any of its addresses on every link
//! (`arp_ignore` 0). That matters only if a VIP is in the subnet of a link, because only then neighbours send requests, and
//! if no guard of backend `ebpf` drops those. For IPv6 only the link that has the address answers.
//!
//! `rp_filter`, `accept_local`, `route_localnet` and `arp_announce` do not affect the VIP: packets to it are delivered locally,
//! and replies are routed like other packets of the node.

use std::fs;
use std::net::IpAddr;

use proxy_netlink::route::{LinkKind, Prefix};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::link::{LinkTable, ipv4_networks};

const ID: &str = "arp";

pub async fn checks(subject: &Subject) -> Vec<Check> {
    let table = match subject.links_for_vips(ID) {
        Ok(table) => table,
        Err(check) => return vec![check],
    };
    match ipv4_networks().await {
        Ok(networks) => judge(&subject.vips, &networks, table, |link| {
            answers(link) && !drops_requests(subject, link)
        }),
        Err(error) => vec![check::unknown(
            ID,
            "read the node's addresses",
            &error,
            "try again",
        )],
    }
}

/// Whether a link answers for addresses of other links: the larger value of its own `arp_ignore` and that of `all` counts.
fn answers(link: &str) -> bool {
    let value = |conf: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{conf}/arp_ignore");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    value("all").max(value(link)) == 0
}

/// Whether a guard drops ARP requests for the VIPs; the guard of rules does not see them.
fn drops_requests(subject: &Subject, link: &str) -> bool {
    let guarded = subject.published().map(|state| &state.guard.links);
    subject.uses("ebpf")
        && guarded.is_some_and(|links| links.iter().any(|guarded| guarded.link == link))
}

fn judge(
    vips: &[IpAddr],
    networks: &[(u32, Prefix)],
    table: &LinkTable,
    answers: impl Fn(&str) -> bool,
) -> Vec<Check> {
    let mut checks = Vec::new();
    for vip in vips {
        let carries = |link: u32| {
            let mut addresses = table.addresses.iter();
            addresses.any(|found| found.ip == *vip && found.index == link)
        };
        // The prefix of a single address is no subnet.
        let holds = |network: Prefix| network.len < 32 && network.holds(*vip);
        for (index, subnet) in networks
            .iter()
            .filter(|(index, network)| holds(*network) && !carries(*index))
        {
            let Some(link) = table.by_index(*index) else {
                continue;
            };
            let name = &link.name;
            if link.kind == LinkKind::Loopback || !answers(name) {
                continue;
            }
            checks.push(
                Check::warning(
                    ID,
                    format!(
                        "{vip} is in the subnet {subnet} of {name}, and the node answers ARP requests \
                         for it there: neighbours send packets for {vip} to this node"
                    ),
                    format!(
                        "choose a VIP outside of the node's subnets, or set arp_ignore for {name}"
                    ),
                )
                .with_command(format!("sysctl -w net/ipv4/conf/{name}/arp_ignore=1")),
            );
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(
            ID,
            "no link answers neighbours' ARP requests for a VIP",
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::Link;

    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn only_a_vip_in_the_subnet_of_another_link_matters() {
        let table = LinkTable {
            links: vec![Link::new(2, "eth0", LinkKind::Veth)],
            ..LinkTable::default()
        };
        let vips = [IpAddr::from([10, 96, 0, 2])];
        let judged = |address: [u8; 4], len, answers| {
            let ip = IpAddr::from(address);
            let networks = [(2, Prefix { ip, len })];
            judge(&vips, &networks, &table, |_| answers)[0].verdict
        };
        assert_eq!(judged([10, 96, 0, 7], 24, true), Verdict::Warning);
        assert_eq!(judged([10, 96, 0, 7], 24, false), Verdict::Ok);
        assert_eq!(judged([10, 96, 1, 7], 24, true), Verdict::Ok);
        assert_eq!(judged([10, 96, 0, 2], 32, true), Verdict::Ok);
        assert_eq!(judged([192, 0, 2, 1], 0, true), Verdict::Warning);
    }
}
