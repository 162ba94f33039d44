// SPDX-License-Identifier: Apache-2.0

//! What rules that decide connections one by one are made of: packets of one direction, and what is done
//! from the first FIN or RST of a connection on. The rules for the VIPs and those for the proxy's own
//! connections are put together from it.

use netlink_packet_netfilter::nftables::Expressions;

use super::DECIDED;
use crate::netfilter::expression::flag::{ACK, FIN, RST, SYN};
use crate::netfilter::expression::{self, End, Part, SetOperation};
use crate::netfilter::{Base, Chain, Family, Hook, Rule};

/// The flags that open, close or reset a connection.
pub const SPECIAL: u8 = FIN | SYN | RST;

/// Packets of one direction: where the client is in them.
pub struct Packets {
    family: Family,
    connection: [Part; 4],
}

impl Packets {
    /// Those that the client sends.
    pub fn requests(family: Family) -> Self {
        Self::from_client(family, End::Source, End::Destination)
    }

    /// Those that the server sends.
    pub fn replies(family: Family) -> Self {
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

    /// Goes on if the connection is a member of a set.
    pub fn is(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::IsMember, name)
    }

    /// Adds the connection to a set, or lets its time begin anew; goes on unless the set is full.
    pub fn update(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::Update, name)
    }

    /// Removes the connection from a set.
    pub fn delete(&self, name: &str) -> Vec<Expressions> {
        self.set(SetOperation::Delete, name)
    }

    /// Nearly every packet of a connection.
    pub fn plain_of_decided(&self) -> Rule {
        rule(
            "plain, decided",
            [plain(), self.is(DECIDED), untrack()].concat(),
        )
    }

    /// What the end that opened the connection sends once it has been answered. `more`: what is done besides when that
    /// is seen for the first time.
    pub fn answered(&self, more: Vec<Expressions>) -> [Rule; 2] {
        [
            rule(
                "answered: decided",
                [
                    plain(),
                    self.is("opening"),
                    self.update(DECIDED),
                    self.delete("opening"),
                    more,
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "answered, and closed with this",
                [
                    expression::has_flag(FIN),
                    self.is("opening"),
                    self.update("closing"),
                    self.delete("opening"),
                    untrack(),
                ]
                .concat(),
            ),
        ]
    }

    /// Forgets every decision about a connection but that it opens. Which end has closed it is named by the end's own
    /// key: `turned` is of the other direction.
    pub fn void(&self, turned: &Self) -> Vec<Expressions> {
        [
            self.delete(DECIDED),
            self.delete("closing"),
            turned.delete("closing"),
            self.delete("closed"),
        ]
        .concat()
    }

    /// Forgets every decision about a connection.
    pub fn forget(&self, turned: &Self) -> Vec<Expressions> {
        [self.delete("opening"), self.void(turned)].concat()
    }

    /// From the first FIN or RST of a decided connection on. `sent` names the end that sends this packet, `other`
    /// the other one. Where there is no room for the next set, the connection stays in the one before.
    pub fn end_of_decided(&self, sent: &Self, other: &Self) -> [Rule; 8] {
        let flags = expression::has_flag;
        [
            rule(
                "decided, and reset with this",
                [
                    flags(RST),
                    self.is(DECIDED),
                    self.update("closed"),
                    self.delete(DECIDED),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "decided, and closed with this",
                [
                    flags(FIN),
                    self.is(DECIDED),
                    sent.update("closing"),
                    self.delete(DECIDED),
                    untrack(),
                ]
                .concat(),
            ),
            rule("decided", [self.is(DECIDED), untrack()].concat()),
            rule(
                "closed with this by the second end",
                [
                    flags(FIN | RST),
                    other.is("closing"),
                    self.update("closed"),
                    other.delete("closing"),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "closed, and reset with this",
                [
                    flags(RST),
                    sent.is("closing"),
                    self.update("closed"),
                    sent.delete("closing"),
                    untrack(),
                ]
                .concat(),
            ),
            rule(
                "closed by the sender",
                [sent.is("closing"), sent.update("closing"), untrack()].concat(),
            ),
            rule(
                "closed by the other end",
                [other.is("closing"), other.update("closing"), untrack()].concat(),
            ),
            rule(
                "closed by both",
                [self.is("closed"), self.update("closed"), untrack()].concat(),
            ),
        ]
    }
}

/// Neither opens, closes nor resets: nearly every packet.
pub fn plain() -> Vec<Expressions> {
    expression::flags_are(0, SPECIAL)
}

/// A SYN and no SYN-ACK.
pub fn opens() -> Vec<Expressions> {
    expression::flags_are(SYN, FIN | SYN | RST | ACK)
}

/// Counts the packet, and leaves it untracked.
pub fn untrack() -> Vec<Expressions> {
    vec![
        expression::counter(),
        expression::notrack(),
        expression::accept(),
    ]
}

/// Counts the packet, and leaves it to conntrack.
pub fn leave() -> Vec<Expressions> {
    vec![expression::counter(), expression::accept()]
}

/// A rule of a base chain: what matches goes to `chain`.
pub fn entry(purpose: String, mut matches: Vec<Expressions>, chain: &str) -> Rule {
    matches.push(expression::counter());
    matches.push(expression::go_to(chain));
    Rule {
        purpose,
        expressions: matches,
    }
}

/// A rule for packets that are known to be TCP; nft is not, and could not name their fields.
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

/// A chain that rules go to.
pub fn chain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: None,
        rules,
    }
}
