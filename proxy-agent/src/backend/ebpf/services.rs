// SPDX-License-Identifier: Apache-2.0

//! The nf_tables tables of Services that end on the proxy, as `nft list ruleset` prints them (without counters and comments):
//!
//! ```text
//! table ip proxy-agent_services {
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr 10.96.0.1 tcp dport 443 iif != "lo" socket transparent <= 1 notrack
//!     }
//!     chain input {
//!         type filter hook input priority raw; policy accept;
//!         ip daddr 10.96.0.1 tcp dport 443 socket transparent <= 1 accept
//!         ip daddr 10.96.0.1 meta l4proto icmp icmp type != echo-request accept
//!         ip daddr 10.96.0.1 drop
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip saddr 10.96.0.1 tcp sport 443 notrack
//!     }
//! }
//! ```
//!
//! A packet belongs to a connection of the proxy if the kernel finds its socket; for a SYN it finds the proxy's listener if TC has
//! decided it, and no listener otherwise. Packets that arrive for the address without NAT and belong to no connection would be
//! routed out of the node without the agent; they are dropped.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_netfilter::nftables::Expressions;
use proxy_common::Traffic;
use proxy_netlink::netfilter::expression::{self, End};
use proxy_netlink::netfilter::{self, Base, Chain, Family, Hook, Rule, Socket, Table};

use crate::backend::tables;
use crate::config::Service;
use crate::instance::Instance;

const PREROUTING: &str = "prerouting";
const INPUT: &str = "input";
const OUTPUT: &str = "output";

/// Protocol numbers, and the type of echo requests.
const ICMP: (u8, u8) = (1, 8);
const ICMPV6: (u8, u8) = (58, 128);

/// The desired tables; one without chains should not exist. Addresses in `own` are the node's own, whose other packets are
/// not dropped.
pub fn tables(instance: Instance, services: &[Service], own: &BTreeSet<IpAddr>) -> Vec<Table> {
    let named = tables::empty_services(instance).into_iter();
    named
        .map(|table| {
            let endpoints = services.iter().map(|service| service.cluster_ip);
            let endpoints = tables::of_family(table.family, endpoints);
            let chains = if endpoints.is_empty() {
                Vec::new()
            } else {
                chains(table.family, &endpoints, own)
            };
            Table { chains, ..table }
        })
        .collect()
}

fn chains(family: Family, endpoints: &[SocketAddr], own: &BTreeSet<IpAddr>) -> Vec<Chain> {
    let each = |rule: fn(SocketAddr) -> Rule| endpoints.iter().map(|end| rule(*end)).collect();
    let mut input: Vec<Rule> = each(arrived);
    let addresses: BTreeSet<_> = endpoints.iter().map(SocketAddr::ip).collect();
    let others = addresses.difference(own);
    input.extend(others.flat_map(|ip| strangers(family, *ip)));
    vec![
        chain(PREROUTING, Hook::Prerouting, each(request)),
        chain(INPUT, Hook::Input, input),
        chain(OUTPUT, Hook::Output, each(reply)),
    ]
}

/// Packets on `lo` come from the node's own processes, which are connected to the VIP instead.
fn request(endpoint: SocketAddr) -> Rule {
    let matches = [
        expression::endpoint(End::Destination, endpoint.ip(), endpoint.port()),
        expression::not_from_loopback().into(),
        expression::has_socket().into(),
    ];
    rule(requests(endpoint), matches.concat(), expression::notrack())
}

fn arrived(endpoint: SocketAddr) -> Rule {
    let matches = [
        expression::endpoint(End::Destination, endpoint.ip(), endpoint.port()),
        expression::has_socket().into(),
    ];
    rule(
        format!("to {endpoint}: the proxy's"),
        matches.concat(),
        expression::accept(),
    )
}

/// ICMP errors about the proxy's packets are accepted, because path MTU discovery needs them.
fn strangers(family: Family, ip: IpAddr) -> [Rule; 2] {
    let (protocol, ping) = match family {
        Family::IPv6 => ICMPV6,
        _ => ICMP,
    };
    let errors = [
        expression::address(End::Destination, ip),
        expression::is_protocol(protocol).into(),
        expression::is_not_icmp_type(ping).into(),
    ];
    [
        rule(
            format!("to {ip}: errors"),
            errors.concat(),
            expression::accept(),
        ),
        rule(
            format!("to {ip}: no connection of the proxy"),
            expression::address(End::Destination, ip),
            expression::drop_packet(),
        ),
    ]
}

/// Only the proxy's sockets send from this address and port: no link has the address.
fn reply(endpoint: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Source, endpoint.ip(), endpoint.port());
    rule(replies(endpoint), matches, expression::notrack())
}

fn requests(endpoint: SocketAddr) -> String {
    format!("to {endpoint}: untrack the proxy's connections")
}

fn replies(endpoint: SocketAddr) -> String {
    format!("from {endpoint}: untrack")
}

fn rule(purpose: String, matches: Vec<Expressions>, verdict: Expressions) -> Rule {
    let mut expressions = matches;
    expressions.extend([expression::counter(), verdict]);
    Rule {
        purpose,
        expressions,
    }
}

fn chain(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: Some(Base {
            hook,
            priority: tables::PRIORITY_RAW,
        }),
        rules,
        is_filled_later: false,
    }
}

/// The untracked packets to and from each Service since the tables were installed.
///
/// # Errors
///
/// The kernel's error.
pub fn traffic(
    instance: Instance,
    services: &[Service],
) -> Result<Vec<(Service, Traffic, Traffic)>, netfilter::Error> {
    if services.is_empty() {
        return Ok(Vec::new());
    }
    let mut socket = Socket::open()?;
    let mut counts = Vec::new();
    for table in tables::empty_services(instance) {
        for chain in [PREROUTING, OUTPUT] {
            counts.extend(table.counters(chain, &mut socket)?);
        }
    }
    let counted = |purpose: String| {
        let mut traffic = Traffic::NONE;
        for count in counts.iter().filter(|count| count.comment == purpose) {
            traffic.add(Traffic {
                packets: count.packets,
                bytes: count.bytes,
            });
        }
        traffic
    };
    let of = |service: &Service| {
        let end = service.cluster_ip;
        (*service, counted(requests(end)), counted(replies(end)))
    };
    Ok(services.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(cluster_ip: &str) -> Service {
        Service {
            cluster_ip: cluster_ip.parse().unwrap(),
            vip: "10.96.0.2:443".parse().unwrap(),
        }
    }

    #[test]
    fn a_family_without_services_has_no_chain() {
        let own = BTreeSet::new();
        let none = tables(Instance::default(), &[], &own);
        assert!(none.iter().all(|table| table.chains.is_empty()));
        let [ip, ip6]: [Table; 2] = tables(Instance::default(), &[service("10.96.0.1:443")], &own)
            .try_into()
            .unwrap();
        assert_eq!(ip.title(), "ip proxy-agent_services");
        assert_eq!((ip.chains.len(), ip6.chains.len()), (3, 0));
    }

    #[test]
    fn unknown_packets_are_dropped_after_every_port_of_the_address() {
        let services = [service("10.96.0.1:443"), service("10.96.0.1:6443")];
        let input = |own: &[IpAddr]| -> Vec<String> {
            let own = own.iter().copied().collect();
            let tables = tables(Instance::default(), &services, &own);
            let rules = tables[0].chains[1].rules.iter();
            rules.map(|rule| rule.purpose.clone()).collect()
        };
        assert_eq!(
            input(&[]),
            [
                "to 10.96.0.1:443: the proxy's",
                "to 10.96.0.1:6443: the proxy's",
                "to 10.96.0.1: errors",
                "to 10.96.0.1: no connection of the proxy",
            ]
        );
        // Other packets for an address of the node are not dropped.
        assert_eq!(
            input(&[services[0].cluster_ip.ip()]),
            [
                "to 10.96.0.1:443: the proxy's",
                "to 10.96.0.1:6443: the proxy's"
            ]
        );
    }
}
