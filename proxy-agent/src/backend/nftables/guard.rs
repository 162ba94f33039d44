// SPDX-License-Identifier: Apache-2.0

//! The tables that guard the VIPs, as `nft list ruleset` prints them (without counters and comments):
//!
//! ```text
//! table ip proxy-agent_guard {
//!     chain prerouting {
//!         type filter hook prerouting priority raw - 10; policy accept;
//!         iif "lo" accept
//!         ip saddr 10.96.0.2 drop
//!         ip daddr 10.96.0.2 tcp dport 443 goto addressed
//!     }
//!     chain addressed {
//!         ip saddr 127.0.0.0/8 ip daddr 10.96.0.2 tcp dport 443 drop
//!         ip saddr 192.0.2.0/24 accept
//!         iif "eth0" ip daddr 10.96.0.2 tcp dport 443 drop
//!     }
//! }
//! ```
//!
//! Their priority is before every chain that could accept or track a packet, and after the reassembly of fragments. They are separate
//! from the tables of decisions because they are replaced when the uplinks change, and the others hold connections.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netlink_packet_netfilter::nftables::Expressions;
use proxy_common::guard::Cause;
use proxy_netlink::netfilter::expression::{self, End};
use proxy_netlink::netfilter::{Base, Chain, Family, Hook, Rule, Table};

use crate::backend::tables;
use crate::config::{Config, Guard};
use crate::guard::Links;

/// The chain for all packets.
pub const ALL: &str = "prerouting";
/// The chain for packets to the proxy.
pub const ADDRESSED: &str = "addressed";

const PRIORITY: i32 = tables::PRIORITY_RAW - 10;

/// The desired tables; one without chains should not exist.
pub fn tables(config: &Config, links: &Links) -> Vec<Table> {
    tables::empty_guard(config.instance)
        .into_iter()
        .map(|table| {
            let endpoints = tables::of_family(table.family, config.endpoints());
            let chains = if endpoints.is_empty() || config.guard == Guard::Off {
                Vec::new()
            } else {
                chains(config, table.family, &endpoints, links)
            };
            Table { chains, ..table }
        })
        .collect()
}

/// The cause for which the rule with this comment drops packets of a VIP; none if it does not drop any of them.
pub fn cause(comment: &str, vip: SocketAddr, is_first: bool) -> Option<Cause> {
    if comment == local_source(vip) || (is_first && comment == own_source(vip.ip())) {
        return Some(Cause::SpoofedSource);
    }
    comment.starts_with(&outside(vip)).then_some(Cause::Outside)
}

fn own_source(vip: IpAddr) -> String {
    format!("from {vip}: nobody but this node")
}

fn local_source(vip: SocketAddr) -> String {
    format!("to {vip} from a loopback address")
}

fn outside(vip: SocketAddr) -> String {
    format!("to {vip} from outside, by ")
}

fn chains(config: &Config, family: Family, endpoints: &[SocketAddr], links: &Links) -> Vec<Chain> {
    let mut vips: Vec<_> = endpoints.iter().map(SocketAddr::ip).collect();
    vips.dedup();
    let mut all = vec![rule(
        "from this node".to_owned(),
        expression::from_loopback().into(),
        expression::accept(),
    )];
    for (index, name) in &links.inner {
        all.push(rule(
            format!("from this node, by {name} (ifindex {index})"),
            expression::by_link(*index).into(),
            expression::accept(),
        ));
    }
    for vip in vips {
        let mut matches = expression::address(End::Source, vip);
        matches.push(expression::counter());
        all.push(rule(own_source(vip), matches, expression::drop_packet()));
    }
    for vip in endpoints {
        let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
        let go = expression::go_to(ADDRESSED);
        all.push(rule(format!("to {vip}"), matches, go));
    }
    vec![
        Chain {
            name: ALL,
            base: Some(Base {
                hook: Hook::Prerouting,
                priority: PRIORITY,
            }),
            rules: all,
            is_filled_later: false,
        },
        Chain {
            name: ADDRESSED,
            base: None,
            rules: addressed(config, family, endpoints, links),
            is_filled_later: false,
        },
    ]
}

fn addressed(
    config: &Config,
    family: Family,
    endpoints: &[SocketAddr],
    links: &Links,
) -> Vec<Rule> {
    let to = |vip: &SocketAddr| expression::endpoint(End::Destination, vip.ip(), vip.port());
    let refuse = |purpose, mut matches: Vec<Expressions>| {
        matches.push(expression::counter());
        rule(purpose, matches, expression::drop_packet())
    };
    let mut rules = Vec::new();
    for vip in endpoints {
        let local = expression::network(End::Source, loopback(vip.ip()));
        rules.push(refuse(local_source(*vip), [local, to(vip)].concat()));
    }
    for network in &config.allow_from {
        if tables::family_of(network.addr()) == family {
            rules.push(rule(
                format!("from {network}"),
                expression::network(End::Source, *network),
                expression::accept(),
            ));
        }
    }
    for (index, name) in &links.guarded {
        for vip in endpoints {
            let purpose = format!("{}{name} (ifindex {index})", outside(*vip));
            let by = expression::by_link(*index).into();
            rules.push(refuse(purpose, [by, to(vip)].concat()));
        }
    }
    rules
}

/// The loopback addresses of the family of an address.
pub fn loopback(of: IpAddr) -> IpNet {
    let text = match of {
        IpAddr::V4(_) => "127.0.0.0/8",
        IpAddr::V6(_) => "::1/128",
    };
    text.parse().expect("a network")
}

fn rule(purpose: String, matches: Vec<Expressions>, verdict: Expressions) -> Rule {
    let mut expressions = matches;
    expressions.push(verdict);
    Rule {
        purpose,
        expressions,
    }
}
