// SPDX-License-Identifier: Apache-2.0

//! The tables of this backend, as `nft list ruleset` shows them (one of both families; counters and
//! comments left out, `client` for `ip saddr . tcp sport . ip daddr . tcp dport` or, in `reply`,
//! the other way round):
//!
//! ```text
//! table ip proxy-agent {
//!     set decided    { … flags dynamic,timeout; timeout 1h; }
//!     set closing    { … flags dynamic,timeout; timeout 2m; }
//!     set translated { … flags dynamic,timeout; timeout 10m; }
//!     set half_closed { … flags dynamic,timeout; timeout 10m; }
//!     set opening    { typeof ip saddr . tcp sport . tcp sequence; flags dynamic,timeout; timeout 10s; }
//!
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 iif != "lo" goto request
//!     }
//!     chain input {
//!         type filter hook input priority 101; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 goto arrived
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 goto request
//!         ip saddr 10.96.0.2 tcp sport 443 goto reply
//!     }
//!     chain request {
//!         tcp flags syn / fin,syn,rst,ack goto open
//!         tcp flags fin,rst client @decided update @closing { client } delete @decided { client } notrack accept
//!         client @decided update @decided { client } notrack accept
//!         client @closing update @closing { client } notrack accept
//!     }
//!     chain open {
//!         client @translated accept
//!         update @opening { … } update @decided { client } delete @closing { client } notrack accept
//!     }
//!     chain arrived {
//!         tcp flags syn / fin,syn,rst,ack … != @opening update @translated { client } delete … accept
//!         tcp flags syn / fin,syn,rst,ack … != @opening delete @decided { client } delete @closing { client } accept
//!         client @translated client != @decided goto translated
//!     }
//!     chain translated {
//!         tcp flags rst delete @translated { client } accept
//!         tcp flags fin proxy @half_closed delete @translated { client } accept
//!         tcp flags fin update @half_closed { client }
//!         update @translated { client } accept
//!     }
//!     chain reply {
//!         tcp flags syn,rst client @translated delete @decided { client } delete @closing { client } accept
//!         tcp flags fin client @translated client != @decided goto translated_reply
//!         tcp flags fin,rst client @decided update @closing { client } delete @decided { client } notrack accept
//!         client @decided notrack accept
//!         client @closing notrack accept
//!     }
//!     chain translated_reply {
//!         client @half_closed delete @translated { client } accept
//!         update @half_closed { proxy } accept
//!     }
//! }
//! ```
//!
//! A connection is decided at its SYN, before any NAT. A SYN that reaches the proxy and was not
//! seen there came by somebody's DNAT: its client port is remembered as `translated` until both ends
//! have closed the connection, and the answer makes an older decision of the same client port void. `docs/packet-path.md` has the whole
//! story.

use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_netfilter::nftables::Expressions;

use crate::backend::live::{Connection, Live};
use crate::backend::tables;
use crate::netfilter::expression::flag::{ACK, FIN, RST, SYN};
use crate::netfilter::expression::{self, End, Part, SetOperation};
use crate::netfilter::set::{Field, Set, Value};
use crate::netfilter::{Base, Chain, Family, Hook, Rule, Table};

/// Behind the source NAT of the input hook (`NF_IP_PRI_NAT_SRC`, 100): with the client port that
/// the proxy sees.
const PRIORITY_AS_THE_PROXY_SEES: i32 = 101;

/// When a decision is forgotten about a connection without any packet; it is tracked from then on.
/// API clients send something at least every few minutes.
const DECIDED: Duration = Duration::from_hours(1);
/// The same after a FIN or RST: what is still on the way, or a stream in the other direction.
const CLOSING: Duration = Duration::from_mins(2);
/// When it is forgotten that a client port is in use by a translated connection without packets.
const TRANSLATED: Duration = Duration::from_mins(10);
/// From the raw hook to the input hook; a SYN that is sent again begins anew.
const OPENING: Duration = Duration::from_secs(10);

const CONNECTION: &[Field] = &[Field::Address, Field::Port, Field::Address, Field::Port];

/// What the tables are made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The VIPs with each of the ports.
    pub endpoints: Vec<SocketAddr>,
    /// How many connections each set has room for.
    pub max_connections: u32,
}

/// The tables that should be there, or should not: those without a chain. `live` fills them.
pub fn tables(settings: &Settings, live: &Live) -> Vec<Table> {
    [Family::IPv4, Family::IPv6]
        .into_iter()
        .map(|family| {
            let vips = settings.endpoints.iter();
            let vips: Vec<_> = vips
                .copied()
                .filter(|vip| tables::family_of(vip.ip()) == family)
                .collect();
            table(family, &vips, settings.max_connections, live)
        })
        .collect()
}

fn table(family: Family, vips: &[SocketAddr], size: u32, live: &Live) -> Table {
    let (sets, chains) = if vips.is_empty() {
        (Vec::new(), Vec::new())
    } else {
        (sets(family, size, live), chains(family, vips))
    };
    Table {
        family,
        name: tables::NAME,
        sets,
        chains,
    }
}

fn sets(family: Family, size: u32, live: &Live) -> Vec<Set> {
    let set = |name, key, timeout, comment| Set {
        name,
        key,
        timeout,
        size,
        comment,
        members: Vec::new(),
    };
    vec![
        Set {
            members: members(family, &live.untracked),
            ..set(
                "decided",
                CONNECTION,
                DECIDED,
                "untracked connections: client, VIP",
            )
        },
        set(
            "closing",
            CONNECTION,
            CLOSING,
            "untracked connections that one end has closed",
        ),
        Set {
            members: members(family, &live.translated),
            ..set(
                "translated",
                CONNECTION,
                TRANSLATED,
                "tracked connections that came by DNAT",
            )
        },
        set(
            "half_closed",
            CONNECTION,
            TRANSLATED,
            "translated connections that one end has closed: which end, the other",
        ),
        set(
            "opening",
            &[Field::Address, Field::Port, Field::Sequence],
            OPENING,
            "SYNs that were addressed to a VIP",
        ),
    ]
}

fn members(family: Family, connections: &[Connection]) -> Vec<Vec<Value>> {
    connections
        .iter()
        .filter(|connection| tables::family_of(connection.vip.ip()) == family)
        .map(|Connection { client, vip }| {
            [client, vip]
                .iter()
                .flat_map(|end| [Value::Address(end.ip()), Value::Port(end.port())])
                .collect()
        })
        .collect()
}

fn chains(family: Family, vips: &[SocketAddr]) -> Vec<Chain> {
    let each = |rule: &dyn Fn(SocketAddr) -> Rule| vips.iter().map(|vip| rule(*vip)).collect();
    let (request, reply) = (Packets::requests(family), Packets::replies(family));
    vec![
        base(
            "prerouting",
            Hook::Prerouting,
            tables::PRIORITY_RAW,
            each(&from_elsewhere),
        ),
        base(
            "input",
            Hook::Input,
            PRIORITY_AS_THE_PROXY_SEES,
            each(&at_the_proxy),
        ),
        base(
            "output",
            Hook::Output,
            tables::PRIORITY_RAW,
            vips.iter()
                .flat_map(|vip| [from_here(*vip), from_the_proxy(*vip)])
                .collect(),
        ),
        chain("request", request_rules(&request)),
        chain("open", open_rules(&request)),
        chain("arrived", arrived_rules(&request, &reply)),
        chain("translated", translated_rules(&request, &reply)),
        chain("reply", reply_rules(&reply)),
        chain("translated_reply", translated_reply_rules(&reply, &request)),
    ]
}

/// Packets on `lo` were seen at output and come by prerouting as that left them.
fn from_elsewhere(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    let not_here = expression::not_from_loopback();
    entry(
        format!("to {vip}"),
        [matches, not_here.into()].concat(),
        "request",
    )
}

fn at_the_proxy(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    entry(format!("to {vip}, at the proxy"), matches, "arrived")
}

fn from_here(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    entry(format!("to {vip} from this host"), matches, "request")
}

fn from_the_proxy(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Source, vip.ip(), vip.port());
    entry(format!("from {vip}"), matches, "reply")
}

fn request_rules(packet: &Packets) -> Vec<Rule> {
    vec![
        rule("a SYN", [opens(), vec![expression::go_to("open")]].concat()),
        packet.closes_decided(),
        rule(
            "decided",
            [packet.is("decided"), packet.update("decided"), untrack()].concat(),
        ),
        rule(
            "closing",
            [packet.is("closing"), packet.update("closing"), untrack()].concat(),
        ),
    ]
}

fn open_rules(packet: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "undecided: the client port is in use by a translated connection",
            [packet.is("translated"), leave()].concat(),
        ),
        rule(
            "decide",
            [
                packet.syn(SetOperation::Update),
                packet.update("decided"),
                packet.delete("closing"),
                untrack(),
            ]
            .concat(),
        ),
        rule("undecided: a set is full", leave()),
    ]
}

fn arrived_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    let translated_syn = [opens(), packet.syn(SetOperation::IsNoMember)].concat();
    vec![
        rule(
            "a translated SYN",
            [
                translated_syn.clone(),
                packet.update("translated"),
                packet.delete("half_closed"),
                turned.delete("half_closed"),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "a translated SYN, and no room to remember it",
            [
                translated_syn,
                packet.delete("decided"),
                packet.delete("closing"),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "translated",
            [
                packet.is("translated"),
                packet.is_not("decided"),
                vec![expression::go_to("translated")],
            ]
            .concat(),
        ),
    ]
}

/// A connection that came by somebody's DNAT is over once both ends have sent a FIN, or one a RST.
fn translated_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "reset",
            [
                expression::has_flag(RST),
                packet.delete("translated"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        rule(
            "closed, after the proxy",
            [
                expression::has_flag(FIN),
                turned.is("half_closed"),
                packet.delete("translated"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        rule(
            "closed, before the proxy",
            [expression::has_flag(FIN), packet.update("half_closed")].concat(),
        ),
        rule(
            "alive",
            [packet.update("translated"), vec![expression::accept()]].concat(),
        ),
    ]
}

fn translated_reply_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "closed, after the client",
            [
                packet.is("half_closed"),
                packet.delete("translated"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        rule(
            "closed, before the client",
            [turned.update("half_closed"), vec![expression::accept()]].concat(),
        ),
    ]
}

fn reply_rules(packet: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "the answer to a translated SYN: an older decision is void",
            [
                expression::has_flag(SYN | RST),
                packet.is("translated"),
                packet.delete("decided"),
                packet.delete("closing"),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "translated, and closed with this",
            [
                expression::has_flag(FIN),
                packet.is("translated"),
                packet.is_not("decided"),
                vec![expression::go_to("translated_reply")],
            ]
            .concat(),
        ),
        packet.closes_decided(),
        rule("decided", [packet.is("decided"), untrack()].concat()),
        rule("closing", [packet.is("closing"), untrack()].concat()),
    ]
}

/// A SYN and no SYN-ACK.
fn opens() -> Vec<Expressions> {
    expression::flags_are(SYN, FIN | SYN | RST | ACK)
}

fn untrack() -> Vec<Expressions> {
    vec![
        expression::counter(),
        expression::notrack(),
        expression::accept(),
    ]
}

fn leave() -> Vec<Expressions> {
    vec![expression::counter(), expression::accept()]
}

/// Packets of one direction: where the client is in them.
struct Packets {
    family: Family,
    connection: [Part; 4],
}

impl Packets {
    fn requests(family: Family) -> Self {
        Self::from_client(family, End::Source, End::Destination)
    }

    fn replies(family: Family) -> Self {
        Self::from_client(family, End::Destination, End::Source)
    }

    fn from_client(family: Family, client: End, vip: End) -> Self {
        Self {
            family,
            connection: [
                Part::Address(client),
                Part::Port(client),
                Part::Address(vip),
                Part::Port(vip),
            ],
        }
    }

    fn set(&self, operation: SetOperation, name: &str) -> Vec<Expressions> {
        expression::set(operation, name, &self.connection, self.family)
    }

    fn is(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::IsMember, name)
    }

    fn is_not(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::IsNoMember, name)
    }

    fn update(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::Update, name)
    }

    fn delete(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::Delete, name)
    }

    /// The SYN itself, told by its sequence number.
    fn syn(&self, operation: SetOperation) -> Vec<Expressions> {
        let [client, port, ..] = self.connection;
        let parts = [client, port, Part::Sequence];
        expression::set(operation, "opening", &parts, self.family)
    }

    /// The first packet with which either end closes a decided connection. If there is no room for
    /// it among those that close, it stays decided.
    fn closes_decided(&self) -> Rule {
        rule(
            "decided, and closed with this",
            [
                expression::has_flag(FIN | RST),
                self.is("decided"),
                self.update("closing"),
                self.delete("decided"),
                untrack(),
            ]
            .concat(),
        )
    }
}

fn entry(purpose: String, mut matches: Vec<Expressions>, chain: &str) -> Rule {
    matches.push(expression::counter());
    matches.push(expression::go_to(chain));
    Rule {
        purpose,
        program: None,
        expressions: matches,
    }
}

/// A rule for packets that are known to be TCP; nft is not, and could not name their fields.
fn rule(purpose: &str, expressions: Vec<Expressions>) -> Rule {
    Rule {
        purpose: purpose.to_owned(),
        program: None,
        expressions: [expression::is_tcp().into(), expressions].concat(),
    }
}

fn base(name: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        base: Some(Base { hook, priority }),
        ..chain(name, rules)
    }
}

fn chain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: None,
        rules,
    }
}
