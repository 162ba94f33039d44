// SPDX-License-Identifier: Apache-2.0

//! The rules for the proxy's own connections in the tables of `decisions`, as `nft list ruleset` prints them (without counters,
//! comments, and the prefix `proxy_` of all names); `connection` stands for `ip saddr . tcp sport . ip daddr . tcp dport`, in
//! `received` with both ends swapped; the sets `opening`, `decided`, `closing` and `closed` are like those for the VIPs:
//!
//! ```text
//!     set left     { … timeout 2m; }
//!     set answered { type ipv4_addr . inet_service; … timeout 1h; }
//!     set repeated { type ipv4_addr . inet_service; … timeout 10m; }
//!     set seen     { … timeout 1m; }
//!
//!     chain output {
//!         ip daddr 192.0.2.1 tcp dport 443 goto sent
//!         ip saddr 192.0.2.1 tcp sport 443 goto received
//!         tcp flags syn / fin,syn,rst,ack goto other
//!     }
//!     chain prerouting {
//!         ip saddr 192.0.2.1 tcp sport 443 goto received
//!     }
//!     chain sent {
//!         … as in request of decisions
//!         plain connection @opening update @decided { connection } delete @opening { connection }
//!             update @answered { ip daddr . tcp dport } notrack accept
//!     }
//!     chain open {
//!         connection @left update @left { connection } accept
//!         connection @opening ip daddr . tcp dport @answered delete @answered { ip daddr . tcp dport }
//!             update @left { connection } delete @opening { connection } accept
//!         connection @opening update @repeated { ip daddr . tcp dport }
//!             update @left { connection } delete @opening { connection } accept
//!         delete @decided { connection } delete @closing … delete @closed …
//!         ip daddr . tcp dport @repeated accept
//!         ip daddr 192.0.2.9 tcp dport 443 accept
//!         socket cgroupv2 level 2 "system.slice/haproxy.service" update @opening { connection } notrack accept
//!     }
//!     chain received {
//!         plain connection @decided notrack accept
//!         tcp flags rst connection @opening delete @opening { connection } notrack accept
//!         connection @opening notrack accept
//!         … as in reply of decisions from "tcp flags rst client @decided" on
//!     }
//!     chain other {
//!         socket cgroupv2 level 2 "system.slice/haproxy.service" update @seen { connection } accept
//!     }
//! ```
//!
//! A connection is decided at its first SYN, by the cgroup of the sending socket; its other packets are matched by the sets. So no
//! socket lookup is needed for them, connections older than the rules stay tracked, and packets from the endpoint that belong to no
//! decided connection are ignored.
//!
//! A repeated SYN was not answered: its packets may need a NAT that only conntrack does, or a filter drops the untracked answer. Its
//! connection is tracked from then on, and so are all new ones to the endpoint for some time, unless an untracked one has been
//! answered since the last repeated SYN, which means that the SYN was lost.
//!
//! The chain `other` has rules if endpoints are learned, for connections of the proxy to unknown endpoints. These are
//! tracked; the agent asks conntrack whether they are translated.

use std::net::SocketAddr;

use netlink_packet_netfilter::nftables::Expressions;
use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::expression::flag::RST;
use proxy_netlink::netfilter::expression::{self, End, Part, SetOperation};
use proxy_netlink::netfilter::{Chain, Family, Rule, Table};

use crate::backend::decisions::of_proxy::{
    ANSWERED, LEFT, OPEN, OTHER, OUTPUT, PREROUTING, RECEIVED, REPEATED, SEEN, SENT, SETS,
};
use crate::backend::decisions::packets::{Packets, chain, entry, leave, opens, rule, untrack};
use crate::backend::tables;
use crate::instance::Instance;

/// The desired rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The destinations.
    pub endpoints: Vec<SocketAddr>,
    /// Destinations that are left to conntrack.
    pub left: Vec<SocketAddr>,
    /// The cgroups whose connections are untracked; empty: no new one is, open ones continue.
    pub cgroups: Vec<Cgroup>,
    /// The families in which connections to unknown endpoints are recorded; empty if endpoints are not learned.
    pub learns_in: Vec<Family>,
}

/// The chains of the tables of these families, with the desired rules.
pub fn tables(instance: Instance, families: &[Family], desired: &Desired) -> Vec<Table> {
    let tables = tables::empty(instance).into_iter();
    tables
        .filter(|table| families.contains(&table.family))
        .map(|table| Table {
            chains: chains(table.family, desired),
            ..table
        })
        .collect()
}

fn chains(family: Family, desired: &Desired) -> Vec<Chain> {
    let of_family = |endpoints: &[SocketAddr]| tables::of_family(family, endpoints.to_vec());
    let endpoints = of_family(&desired.endpoints);
    let from = |endpoint: &SocketAddr| {
        let matches = expression::endpoint(End::Source, endpoint.ip(), endpoint.port());
        entry(format!("from {endpoint}"), matches, RECEIVED)
    };
    let to = |endpoint: &SocketAddr| {
        let matches = expression::endpoint(End::Destination, endpoint.ip(), endpoint.port());
        entry(format!("to {endpoint}"), matches, SENT)
    };
    // Answers of an API server on this node pass output too.
    let mut output: Vec<_> = endpoints
        .iter()
        .flat_map(|one| [to(one), from(one)])
        .collect();
    let prerouting = endpoints.iter().map(from).collect();
    let request = Packets::requests(family).decided_in(SETS);
    let reply = Packets::replies(family).decided_in(SETS);
    let (mut sent, mut open, mut received) = Default::default();
    if !endpoints.is_empty() {
        sent = sent_rules(family, &request, &reply);
        open = open_rules(
            family,
            &of_family(&desired.left),
            &desired.cgroups,
            (&request, &reply),
        );
        received = received_rules(&reply, &request);
    }
    let mut other = Vec::new();
    if desired.learns_in.contains(&family) {
        other = of_cgroups(&desired.cgroups, &[request.update(SEEN), leave()].concat());
    }
    if !other.is_empty() {
        let to_others = [opens(), vec![expression::go_to(OTHER)]];
        output.push(rule("a SYN to others", to_others.concat()));
    }
    vec![
        chain(OUTPUT, output),
        chain(PREROUTING, prerouting),
        chain(SENT, sent),
        chain(OPEN, open),
        chain(RECEIVED, received),
        chain(OTHER, other),
    ]
}

fn sent_rules(family: Family, packet: &Packets, turned: &Packets) -> Vec<Rule> {
    let mut rules = vec![
        packet.plain_of_decided(),
        rule("a SYN", [opens(), vec![expression::go_to(OPEN)]].concat()),
    ];
    rules.extend(packet.answered(endpoint(SetOperation::Update, ANSWERED, family)));
    rules.push(rule(
        "opening",
        [packet.is(SETS.opening), untrack()].concat(),
    ));
    rules.extend(packet.end_of_decided(packet, turned));
    rules
}

/// Only SYNs reach this chain.
fn open_rules(
    family: Family,
    left: &[SocketAddr],
    cgroups: &[Cgroup],
    (packet, turned): (&Packets, &Packets),
) -> Vec<Rule> {
    let mut rules = vec![
        rule(
            "repeated once more",
            [packet.is(LEFT), packet.update(LEFT), leave()].concat(),
        ),
        rule(
            "repeated, and the endpoint has answered others: this one is tracked",
            [
                packet.is(SETS.opening),
                endpoint(SetOperation::IsMember, ANSWERED, family),
                endpoint(SetOperation::Delete, ANSWERED, family),
                packet.update(LEFT),
                packet.delete(SETS.opening),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "repeated: the endpoint is left to conntrack",
            [
                packet.is(SETS.opening),
                endpoint(SetOperation::Update, REPEATED, family),
                packet.update(LEFT),
                packet.delete(SETS.opening),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "older decisions of this port are void",
            packet.forget(turned),
        ),
        rule(
            "the endpoint is left to conntrack",
            [endpoint(SetOperation::IsMember, REPEATED, family), leave()].concat(),
        ),
    ];
    for endpoint in left {
        let matches = expression::endpoint(End::Destination, endpoint.ip(), endpoint.port());
        rules.push(Rule {
            purpose: format!("to {endpoint}: left to conntrack"),
            expressions: [matches, leave()].concat(),
        });
    }
    let counter = vec![expression::counter()];
    let decide = [packet.update(SETS.opening), counter, untrack()].concat();
    rules.extend(of_cgroups(cgroups, &decide));
    rules
}

/// `packet` has the proxy first, as in the sets; `sent` has the sender first.
fn received_rules(packet: &Packets, sent: &Packets) -> Vec<Rule> {
    let mut rules = vec![
        packet.plain_of_decided(),
        rule(
            "refused",
            [
                expression::has_flag(RST),
                packet.is(SETS.opening),
                packet.delete(SETS.opening),
                untrack(),
            ]
            .concat(),
        ),
        rule("opening", [packet.is(SETS.opening), untrack()].concat()),
    ];
    rules.extend(packet.end_of_decided(sent, packet));
    rules
}

/// A rule for each cgroup and level that applies `actions` to packets of its sockets.
fn of_cgroups(cgroups: &[Cgroup], actions: &[Expressions]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for cgroup in cgroups {
        for level in &cgroup.levels {
            let sender = expression::socket_cgroup(*level, cgroup.id);
            let purpose = format!("of cgroup {}, level {level}", cgroup.id);
            rules.push(rule(&purpose, [&sender[..], actions].concat()));
        }
    }
    rules
}

/// An operation on a set of endpoints, with the destination of a packet.
fn endpoint(operation: SetOperation, name: &str, family: Family) -> Vec<Expressions> {
    let parts = [
        Part::Address(End::Destination),
        Part::Port(End::Destination),
    ];
    expression::set(operation, name, &parts, family)
}
