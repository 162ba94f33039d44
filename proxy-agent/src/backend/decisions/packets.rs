// SPDX-License-Identifier: Apache-2.0

//! Building blocks of rules that decide connections one by one: matches for packets of one direction, and the rules for the end
//! of connections. The rules for the VIPs and those for the proxy's own connections consist of them.

use netlink_packet_netfilter::nftables::Expressions;
use proxy_netlink::netfilter::expression::flag::{ACK, FIN, RST, SYN};
use proxy_netlink::netfilter::expression::{self, End, Part, SetOperation};
use proxy_netlink::netfilter::{Base, Chain, Family, Hook, Rule};

use super::{OF_VIPS, Sets};

/// The flags that open, close or reset a connection.
pub const SPECIAL: u8 = FIN | SYN | RST;

/// Packets of one direction, which determines where the client's address is in them.
pub struct Packets {
    family: Family,
    connection: [Part; 4],
    sets: Sets,
}

impl Packets {
    /// Packets from the client.
    pub fn requests(family: Family) -> Self {
        Self::from_client(family, End::Source, End::Destination)
    }

    /// Packets from the server.
    pub fn replies(family: Family) -> Self {
        Self::from_client(family, End::Destination, End::Source)
    }

    fn from_client(family: Family, client: End, vip: End) -> Self {
        Self {
            family,
            sets: OF_VIPS,
            connection: [
                Part::Address(client),
                Part::Port(client),
                Part::Address(vip),
                Part::Port(vip),
            ],
        }
    }

    /// The same packets, whose decisions are in other sets.
    pub fn decided_in(self, sets: Sets) -> Self {
        Self { sets, ..self }
    }

    fn set(&self, operation: SetOperation, name: &str) -> Vec<Expressions> {
        expression::set(operation, name, &self.connection, self.family)
    }

    /// Matches if the connection is a member of a set.
    pub fn is(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::IsMember, name)
    }

    /// Adds the connection to a set, or restarts its timeout; matches unless the set is full.
    pub fn update(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::Update, name)
    }

    /// Removes the connection from a set.
    pub fn delete(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::Delete, name)
    }

    /// The rule for most packets of a decided connection.
    pub fn plain_of_decided(&self) -> Rule {
        rule(
            "plain, decided",
            [plain(), self.is(self.sets.decided), untrack()].concat(),
        )
    }

    /// The rules for the packets of the opening end after the connection was answered. `more` is executed for the first of them.
    pub fn answered(&self, more: Vec<Expressions>) -> [Rule; 2] {
        [
            rule(
                "answered: decided",
                [
                    plain(),
                    self.is(self.sets.opening),
                    self.update(self.sets.decided),
                    self.delete(self.sets.opening),
                    more,
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "answered, and closed with this",
                [
                    expression::has_flag(FIN),
                    self.is(self.sets.opening),
                    self.update(self.sets.closing),
                    self.delete(self.sets.opening),
                    untrack(),
                ]
                .concat(),
            ),
        ]
    }

    /// Deletes the decisions about a connection except that it opens. The key in `closing` names the end that has closed it
    /// first, so `turned` has the ends swapped.
    pub fn void(&self, turned: &Self) -> Vec<Expressions> {
        [
            self.delete(self.sets.decided),
            self.delete(self.sets.closing),
            turned.delete(self.sets.closing),
            self.delete(self.sets.closed),
        ]
        .concat()
    }

    /// Deletes all decisions about a connection.
    pub fn forget(&self, turned: &Self) -> Vec<Expressions> {
        [self.delete(self.sets.opening), self.void(turned)].concat()
    }

    /// The rules from the first FIN or RST of a decided connection on. `sent` has the sender of the packet first, `other` the
    /// other end. If the next set is full, the connection stays in the set before.
    pub fn end_of_decided(&self, sent: &Self, other: &Self) -> [Rule; 8] {
        let flags = expression::has_flag;
        [
            rule(
                "decided, and reset with this",
                [
                    flags(RST),
                    self.is(self.sets.decided),
                    self.update(self.sets.closed),
                    self.delete(self.sets.decided),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "decided, and closed with this",
                [
                    flags(FIN),
                    self.is(self.sets.decided),
                    sent.update(self.sets.closing),
                    self.delete(self.sets.decided),
                    untrack(),
                ]
                .concat(),
            ),
            rule("decided", [self.is(self.sets.decided), untrack()].concat()),
            rule(
                "closed with this by the second end",
                [
                    flags(FIN | RST),
                    other.is(self.sets.closing),
                    self.update(self.sets.closed),
                    other.delete(self.sets.closing),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "closed, and reset with this",
                [
                    flags(RST),
                    sent.is(self.sets.closing),
                    self.update(self.sets.closed),
                    sent.delete(self.sets.closing),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "closed by the sender",
                [
                    sent.is(self.sets.closing),
                    sent.update(self.sets.closing),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "closed by the other end",
                [
                    other.is(self.sets.closing),
                    other.update(self.sets.closing),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "closed by both",
                [
                    self.is(self.sets.closed),
                    self.update(self.sets.closed),
                    untrack(),
                ]
                .concat(),
            ),
        ]
    }
}

/// Matches packets without SYN, FIN and RST: most packets.
pub fn plain() -> Vec<Expressions> {
    expression::flags_are(0, SPECIAL)
}

/// Matches a SYN that is no SYN-ACK.
pub fn opens() -> Vec<Expressions> {
    expression::flags_are(SYN, FIN | SYN | RST | ACK)
}

/// Untracks the packet. A counter would cost each packet of a connection as much as two matches.
pub fn untrack() -> Vec<Expressions> {
    vec![expression::notrack(), expression::accept()]
}

/// Counts the packet and leaves it to conntrack.
pub fn leave() -> Vec<Expressions> {
    vec![expression::counter(), expression::accept()]
}

/// A rule of a base chain: matching packets go to `chain`.
pub fn entry(purpose: String, mut matches: Vec<Expressions>, chain: &str) -> Rule {
    matches.push(expression::go_to(chain));
    Rule {
        purpose,
        expressions: matches,
    }
}

/// A rule for packets that are known to be TCP; without this match nft(8) could not name their fields.
pub fn rule(purpose: &str, expressions: Vec<Expressions>) -> Rule {
    Rule {
        purpose: purpose.to_owned(),
        expressions: [expression::is_tcp().into(), expressions].concat(),
    }
}

/// A base chain.
pub fn base(name: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        base: Some(Base { hook, priority }),
        ..chain(name, rules)
    }
}

/// A chain that is the target of rules.
pub fn chain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: None,
        rules,
        is_filled_later: false,
    }
}
