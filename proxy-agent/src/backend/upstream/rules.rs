// SPDX-License-Identifier: Apache-2.0

//! The tables for the proxy's own connections, as `nft list ruleset` prints them (without counters and comments); `connection` stands
//! for `ip saddr . tcp sport . ip daddr . tcp dport`, in `received` with both ends swapped; the sets `opening`, `decided`, `closing`
//! and `closed` are those of `decisions`:
//!
//! ```text
//! table ip proxy-agent_upstream {
//!     set left     { … timeout 2m; }
//!     set answered { type ipv4_addr . inet_service; … timeout 1h; }
//!     set repeated { type ipv4_addr . inet_service; … timeout 10m; }
//!     set seen     { … timeout 1m; }
//!
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 192.0.2.1 tcp dport 443 goto sent
//!         ip saddr 192.0.2.1 tcp sport 443 goto received
//!         tcp flags syn / fin,syn,rst,ack goto other
//!     }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
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
//! }
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
//! The set `seen` and the chain `other` exist if endpoints are learned, for connections of the proxy to unknown endpoints. These are
//! tracked; the agent asks conntrack whether they are translated.

use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_netfilter::nftables::Expressions;
use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::expression::flag::RST;
use proxy_netlink::netfilter::expression::{self, End, Part, SetOperation};
use proxy_netlink::netfilter::set::{Field, Set};
use proxy_netlink::netfilter::{Chain, Family, Hook, Rule, Table};

use crate::backend::decisions::packets::{
    Packets, base, chain, entry, leave, opens, rule, untrack,
};
use crate::backend::decisions::{CLOSED, CONNECTION, DECIDED, FOR_GOOD, PASSING};
use crate::backend::tables;
use crate::instance::Instance;

/// The set of untracked connections that were not answered yet.
pub const OPENING: &str = "opening";
/// The set of endpoints with repeated SYNs.
pub const REPEATED: &str = "repeated";
/// The set of the proxy's new connections to unknown endpoints.
pub const SEEN: &str = "seen";
/// Their timeout: the agent checks them about once a second.
const SEEN_FOR: Duration = Duration::from_mins(1);
/// Capacity of that set.
const SEEN_SIZE: u32 = 1024;
/// The set of endpoints that have answered since the last repeated SYN.
pub const ANSWERED: &str = "answered";
/// The set of connections whose SYN was repeated, once or more.
const LEFT: &str = "left";
/// How long an endpoint is left to conntrack after a repeated SYN.
const LEFT_FOR: Duration = Duration::from_mins(10);
/// How long an answer counts.
const ANSWER_COUNTS: Duration = Duration::from_hours(1);
/// Capacity of the sets of endpoints.
const ENDPOINTS: u32 = 1024;
const ENDPOINT: &[Field] = &[Field::Address, Field::Port];

/// The desired content of the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The destinations; empty: there are no tables.
    pub endpoints: Vec<SocketAddr>,
    /// Destinations that are left to conntrack.
    pub left: Vec<SocketAddr>,
    /// The cgroups whose connections are untracked; empty: no new one is, open ones continue.
    pub cgroups: Vec<Cgroup>,
    /// The families in which connections to unknown endpoints are recorded; empty if endpoints are not learned.
    pub learns_in: Vec<Family>,
}

impl Desired {
    /// Whether no tables are desired.
    pub fn is_nothing(&self) -> bool {
        self.endpoints.is_empty() && (self.learns_in.is_empty() || self.cgroups.is_empty())
    }

    fn learns(&self, family: Family) -> bool {
        self.learns_in.contains(&family)
    }
}

/// The desired tables; one without chains should not exist.
pub fn tables(instance: Instance, size: u32, desired: &Desired) -> Vec<Table> {
    tables::empty_upstream(instance)
        .into_iter()
        .map(|table| {
            let of_family =
                |endpoints: &[SocketAddr]| tables::of_family(table.family, endpoints.to_vec());
            let endpoints = of_family(&desired.endpoints);
            let learns = desired.learns(table.family);
            if endpoints.is_empty() && (desired.cgroups.is_empty() || !learns) {
                return table;
            }
            let mut chains = chains(
                table.family,
                &endpoints,
                &of_family(&desired.left),
                &desired.cgroups,
            );
            let mut sets = sets(size);
            if learns {
                note_others(table.family, &desired.cgroups, &mut sets, &mut chains);
            }
            Table {
                sets,
                chains,
                ..table
            }
        })
        .collect()
}

fn set(
    name: &'static str,
    (key, size): (&'static [Field], u32),
    timeout: Duration,
    comment: &'static str,
) -> Set {
    Set {
        name,
        key,
        timeout,
        size,
        comment,
        members: Vec::new(),
    }
}

fn sets(size: u32) -> Vec<Set> {
    let connections = (CONNECTION, size);
    let endpoints = (ENDPOINT, ENDPOINTS);
    vec![
        set(
            DECIDED,
            connections,
            FOR_GOOD,
            "untracked connections: proxy, API server",
        ),
        set(
            OPENING,
            connections,
            PASSING,
            "untracked connections that are not answered yet",
        ),
        set(
            "closing",
            connections,
            PASSING,
            "untracked connections that one end has closed: which end, the other",
        ),
        set(
            "closed",
            connections,
            CLOSED,
            "untracked connections that are over, for what is still on the way",
        ),
        set(
            LEFT,
            connections,
            PASSING,
            "connections whose SYN was repeated: tracked",
        ),
        set(
            ANSWERED,
            endpoints,
            ANSWER_COUNTS,
            "endpoints that answer untracked SYNs",
        ),
        set(
            REPEATED,
            endpoints,
            LEFT_FOR,
            "endpoints that did not answer until a SYN was repeated: tracked",
        ),
    ]
}

fn chains(
    family: Family,
    endpoints: &[SocketAddr],
    left: &[SocketAddr],
    cgroups: &[Cgroup],
) -> Vec<Chain> {
    let (request, reply) = (Packets::requests(family), Packets::replies(family));
    let from = |endpoint: &SocketAddr| {
        let matches = expression::endpoint(End::Source, endpoint.ip(), endpoint.port());
        entry(format!("from {endpoint}"), matches, "received")
    };
    let to = |endpoint: &SocketAddr| {
        let matches = expression::endpoint(End::Destination, endpoint.ip(), endpoint.port());
        entry(format!("to {endpoint}"), matches, "sent")
    };
    let raw = tables::PRIORITY_RAW;
    // Answers of an API server on this node pass output too.
    let output = endpoints.iter().flat_map(|one| [to(one), from(one)]);
    vec![
        base("output", Hook::Output, raw, output.collect()),
        base(
            "prerouting",
            Hook::Prerouting,
            raw,
            endpoints.iter().map(from).collect(),
        ),
        chain("sent", sent_rules(family, &request, &reply)),
        chain("open", open_rules(family, left, cgroups, &request, &reply)),
        chain("received", received_rules(&reply, &request)),
    ]
}

fn sent_rules(family: Family, packet: &Packets, turned: &Packets) -> Vec<Rule> {
    let mut rules = vec![
        packet.plain_of_decided(),
        rule("a SYN", [opens(), vec![expression::go_to("open")]].concat()),
    ];
    rules.extend(packet.answered(endpoint(SetOperation::Update, ANSWERED, family)));
    rules.push(rule("opening", [packet.is(OPENING), untrack()].concat()));
    rules.extend(packet.end_of_decided(packet, turned));
    rules
}

/// Only SYNs reach this chain.
fn open_rules(
    family: Family,
    left: &[SocketAddr],
    cgroups: &[Cgroup],
    packet: &Packets,
    turned: &Packets,
) -> Vec<Rule> {
    let mut rules = vec![
        rule(
            "repeated once more",
            [packet.is(LEFT), packet.update(LEFT), leave()].concat(),
        ),
        rule(
            "repeated, and the endpoint has answered others: this one is tracked",
            [
                packet.is(OPENING),
                endpoint(SetOperation::IsMember, ANSWERED, family),
                endpoint(SetOperation::Delete, ANSWERED, family),
                packet.update(LEFT),
                packet.delete(OPENING),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "repeated: the endpoint is left to conntrack",
            [
                packet.is(OPENING),
                endpoint(SetOperation::Update, REPEATED, family),
                packet.update(LEFT),
                packet.delete(OPENING),
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
    let decide = [packet.update(OPENING), counter, untrack()].concat();
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
                packet.is(OPENING),
                packet.delete(OPENING),
                untrack(),
            ]
            .concat(),
        ),
        rule("opening", [packet.is(OPENING), untrack()].concat()),
    ];
    rules.extend(packet.end_of_decided(sent, packet));
    rules
}

/// Adds the rules that record connections to unknown endpoints.
fn note_others(family: Family, cgroups: &[Cgroup], sets: &mut Vec<Set>, chains: &mut Vec<Chain>) {
    sets.push(set(
        SEEN,
        (CONNECTION, SEEN_SIZE),
        SEEN_FOR,
        "tracked connections of the proxy: proxy, server",
    ));
    let packet = Packets::requests(family);
    let rules = of_cgroups(cgroups, &[packet.update(SEEN), leave()].concat());
    chains.push(chain("other", rules));
    let output = chains.iter_mut().find(|chain| chain.name == "output");
    let to_others = [opens(), vec![expression::go_to("other")]];
    output
        .expect("each of these tables has it")
        .rules
        .push(rule("a SYN to others", to_others.concat()));
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
