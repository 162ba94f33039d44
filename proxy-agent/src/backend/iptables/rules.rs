// SPDX-License-Identifier: Apache-2.0

//! The agent's rules: their definition (`rules/kind.rs`), and how they are recognised (`rules/recognise.rs`). A rule belongs to the agent
//! whose mark its comment has, whatever else it contains; `xtables` reads the tables.

mod detail;
mod kind;
mod recognise;

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

pub use detail::{Detail, Guard, LinkName};
pub use kind::{Kind, Place, RuleSet};
use proxy_rules::xtables::Family;

use crate::instance::Instance;

/// A table that contains rules of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Before conntrack: NOTRACK
    Raw,
    /// After conntrack and DNAT
    Mangle,
    /// ACCEPT
    Filter,
}

/// A rule of the agent. Rules are equal regardless of the text after the mark in their comments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its kind.
    pub kind: Kind,
    /// Its VIP; for the proxy's own connections the API server.
    pub vip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its owner.
    pub owner: Instance,
    /// Further parameters.
    pub detail: Detail,
}

/// The rules in `table` for every VIP of `family` and every port, in the order of their chains.
pub fn desired(
    owner: Instance,
    table: Table,
    family: Family,
    rule_set: RuleSet,
    vips: &[IpAddr],
    ports: &[u16],
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &vip in vips.iter().filter(|vip| Family::of(**vip) == family) {
        for &port in ports {
            let of_table = Kind::of(rule_set).filter(|kind| kind.table() == table);
            rules.extend(of_table.map(|kind| Rule {
                kind,
                vip,
                port,
                owner,
                detail: Detail::None,
            }));
        }
    }
    rules
}

/// The rules of the guard for every VIP of `family` and every port, in the order of their chains, all in the raw table.
pub fn guarding(
    owner: Instance,
    family: Family,
    guard: &Guard,
    vips: &[IpAddr],
    ports: &[u16],
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &vip in vips.iter().filter(|vip| Family::of(**vip) == family) {
        for (nth, &port) in ports.iter().enumerate() {
            for (kind, detail) in Kind::guarding(guard, vip) {
                // Kinds without a port need one rule for each VIP.
                let port = if kind.has_port() { port } else { 0 };
                if port != 0 || nth == 0 {
                    rules.push(Rule {
                        kind,
                        vip,
                        port,
                        owner,
                        detail,
                    });
                }
            }
        }
    }
    rules
}

/// The rules that accept untracked packets between the proxy and API servers of `family`, all in the filter table.
pub fn accepting_upstream(owner: Instance, family: Family, endpoints: &[SocketAddr]) -> Vec<Rule> {
    let of_family = endpoints
        .iter()
        .filter(|endpoint| Family::of(endpoint.ip()) == family);
    let rules = of_family.flat_map(|endpoint| {
        Kind::of_upstream().map(|kind| Rule {
            kind,
            vip: endpoint.ip(),
            port: endpoint.port(),
            owner,
            detail: Detail::None,
        })
    });
    rules.collect()
}

impl Table {
    /// All tables. Filter comes first, because an untracked packet may need its ACCEPT rule.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Mangle, Self::Raw];

    /// Its name in iptables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Filter => "filter",
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Rule {
    /// The rule after the chain's name, as `iptables-save` prints it.
    pub fn spec(&self) -> String {
        self.kind
            .spec(self.owner, self.vip, self.port, &self.detail)
    }

    /// Its chain.
    pub fn chain(&self) -> Cow<'static, str> {
        self.kind.chain(self.owner)
    }

    /// Rules of one group depend on their order: they are set together or not at all.
    pub fn group(&self) -> (Place, IpAddr, u16) {
        match self.kind.place() {
            // Packets that the guard drops must not be decided before: their senders could fill the set of decisions.
            Place::Incoming | Place::Spoofed => (Place::Incoming, self.vip, 0),
            place => (place, self.vip, self.port),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-A {} {}", self.chain(), self.spec())
    }
}
