// SPDX-License-Identifier: Apache-2.0

//! The rules that are ours: what they are, how they are written and how they are recognised.
//!
//! Ownership lives here and nowhere else: a rule is ours if its comment says so, whatever else it
//! looks like. What the rules do is in `rules/kind.rs`, how they are recognised in
//! `rules/recognise.rs`. Which rules are in the kernel is `observe.rs`'s business.

mod detail;
mod kind;
mod recognise;

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

pub use detail::{Detail, Guard, LinkName};
pub use kind::{Kind, Place, Way};

use crate::instance::{self, Instance};

/// An address family, each with iptables programs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4: iptables
    V4,
    /// IPv6: ip6tables
    V6,
}

/// A table we write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Before conntrack: NOTRACK
    Raw,
    /// Behind conntrack and DNAT: what they did is seen
    Mangle,
    /// ACCEPT
    Filter,
}

/// One rule of ours. Two rules are the same whatever words their comments have behind the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// What it does.
    pub kind: Kind,
    /// The VIP it is for; of the proxy's own connections the API server.
    pub vip: IpAddr,
    /// The port there.
    pub port: u16,
    /// Whose it is.
    pub owner: Instance,
    /// What else it depends on.
    pub detail: Detail,
}

/// The rules for every VIP of `family` and every port that belong into `table`, in the order in
/// which they stand in their chains.
pub fn desired(
    owner: Instance,
    table: Table,
    family: Family,
    way: Way,
    vips: &[IpAddr],
    ports: &[u16],
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &vip in vips.iter().filter(|vip| Family::of(**vip) == family) {
        for &port in ports {
            let of_table = Kind::of(way).filter(|kind| kind.table() == table);
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

/// The rules of the guard for every VIP of `family` and every port, in the order in which they stand in
/// their chains. All of them belong into the raw table.
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
                // One rule for all ports.
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

/// The rules that let untracked packets between the proxy and API servers of `family` pass. All of them belong into the
/// filter table.
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

/// Whose a rule with this comment is; none if it is foreign. An agent's comments are its mark alone,
/// or begin with it and a colon.
pub fn owner(comment: &str) -> Option<Instance> {
    let mark = comment.split(':').next()?;
    Instance::of_mark(mark)
}

/// False if a printed rule cannot be an agent's: a cheap look before [`owner`] is asked.
pub fn may_be_owned(spec: &str) -> bool {
    spec.contains(instance::PROGRAM)
}

impl Family {
    /// Both families, in the order in which they are handled.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name of its program, without flavour and function.
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    fn host_bits(self) -> &'static str {
        match self {
            Self::V4 => "32",
            Self::V6 => "128",
        }
    }
}

impl Table {
    /// All tables. Filter comes first: an untracked packet may already need its ACCEPT rule.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Mangle, Self::Raw];

    /// Its name as iptables knows it.
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
    /// Everything behind the chain, as `iptables-save` prints it.
    pub fn spec(&self) -> String {
        self.kind
            .spec(self.owner, self.vip, self.port, &self.detail)
    }

    /// The chain it belongs into.
    pub fn chain(&self) -> Cow<'static, str> {
        self.kind.chain(self.owner)
    }

    /// Rules of the same group depend on their order: they are set together or not at all.
    pub fn group(&self) -> (Place, IpAddr, u16) {
        match self.kind.place() {
            // What the guard drops must not have been decided before: whoever sends it could fill the
            // set of decisions.
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
