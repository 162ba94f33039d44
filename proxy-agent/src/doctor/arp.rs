// SPDX-License-Identifier: Apache-2.0

//! Whether neighbours can learn that this node has a VIP. Linux answers ARP requests for any of its
//! addresses on every link (`arp_ignore` 0); that matters only where a VIP lies in the subnet of a
//! link, for then neighbours ask, and where no guard of backend `ebpf` drops what they ask. IPv6 answers
//! on the link that has the address, and nowhere else.
//!
//! `rp_filter`, `accept_local`, `route_localnet` and `arp_announce` make no difference to the VIP:
//! it is delivered locally, and replies are routed like any other packet of the node.

use std::fs;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;

use super::check::Check;
use super::subject::Subject;
use crate::link::{LinkKind, LinkTable, Prefix};

const ID: &str = "arp";

/// The network that an IPv4 address of a link is in.
#[derive(Debug, Clone, Copy)]
struct Subnet {
    link: u32,
    prefix: Prefix,
}

pub async fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let Ok(table) = &subject.links else {
        return vec![Check::not_applicable(
            ID,
            "the node's links could not be read (see vip)",
        )];
    };
    match subnets().await {
        Ok(subnets) => judge(&subject.vips, &subnets, table, |link| {
            answers(link) && !drops_requests(subject, link)
        }),
        Err(error) => vec![Check::unknown(
            ID,
            "read the node's addresses",
            &error,
            "try again",
        )],
    }
}

async fn subnets() -> Result<Vec<Subnet>, rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
    tokio::spawn(connection);
    let messages: Vec<_> = handle.address().get().execute().try_collect().await?;
    let of_ipv4 = messages
        .into_iter()
        .filter(|message| message.header.family == AddressFamily::Inet);
    let subnet = |message: rtnetlink::packet_route::address::AddressMessage| {
        let local = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            })?;
        Some(Subnet {
            link: message.header.index,
            prefix: Prefix {
                ip: local,
                len: message.header.prefix_len,
            },
        })
    };
    Ok(of_ipv4.filter_map(subnet).collect())
}

/// Whether a link answers for addresses of other links: `arp_ignore` is the larger one of its own and
/// that of all.
fn answers(link: &str) -> bool {
    let value = |conf: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{conf}/arp_ignore");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    value("all").max(value(link)) == 0
}

/// Whether a guard keeps ARP requests for the VIPs from the node: that of rules does not see them.
fn drops_requests(subject: &Subject, link: &str) -> bool {
    let guarded = subject.told().map(|state| &state.guard.links);
    subject.uses("ebpf")
        && guarded.is_some_and(|links| links.iter().any(|guarded| guarded.link == link))
}

fn judge(
    vips: &[IpAddr],
    subnets: &[Subnet],
    table: &LinkTable,
    answers: impl Fn(&str) -> bool,
) -> Vec<Check> {
    let mut checks = Vec::new();
    for vip in vips {
        let carries = |link: u32| {
            let mut addresses = table.addresses.iter();
            addresses.any(|found| found.ip == *vip && found.index == link)
        };
        for subnet in subnets
            .iter()
            .filter(|subnet| subnet.holds(*vip) && !carries(subnet.link))
        {
            let Some(link) = table.by_index(subnet.link) else {
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
                        "{vip} lies in the subnet {} of {name}, and the node answers ARP requests \
                         for it there: neighbours take this node for {vip}",
                        subnet.prefix
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
            "no neighbour is told that this node has a VIP",
        ));
    }
    checks
}

impl Subnet {
    fn holds(self, ip: IpAddr) -> bool {
        // An address of its own is no subnet.
        self.prefix.len < 32 && self.prefix.holds(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;
    use crate::link::Link;

    #[test]
    fn only_a_vip_in_the_subnet_of_another_link_is_asked_for() {
        let table = LinkTable {
            links: vec![Link::new(2, "eth0", LinkKind::Veth)],
            ..LinkTable::default()
        };
        let judged = |address: [u8; 4], len, answers| {
            let subnet = Subnet {
                link: 2,
                prefix: Prefix {
                    ip: IpAddr::from(address),
                    len,
                },
            };
            judge(&[IpAddr::from([10, 96, 0, 2])], &[subnet], &table, |_| {
                answers
            })[0]
                .verdict
        };
        assert_eq!(judged([10, 96, 0, 7], 24, true), Verdict::Warning);
        assert_eq!(judged([10, 96, 0, 7], 24, false), Verdict::Ok);
        assert_eq!(judged([10, 96, 1, 7], 24, true), Verdict::Ok);
        assert_eq!(judged([10, 96, 0, 2], 32, true), Verdict::Ok);
        assert_eq!(judged([192, 0, 2, 1], 0, true), Verdict::Warning);
    }
}
