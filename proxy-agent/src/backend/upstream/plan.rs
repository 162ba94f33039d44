// SPDX-License-Identifier: Apache-2.0

//! What has to be done to the tables, and what is published about the endpoints. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::SocketAddr;

use super::proxy::Proxy;
use crate::backend::tables::{self, Observed};
use crate::netfilter::Table;
use crate::state::upstream::{Endpoint, Reason, Tracked};

/// One change.
#[derive(Debug, Clone)]
pub enum Op {
    /// Put a table in place, whole.
    Install {
        /// The table.
        table: Table,
        /// Why.
        reason: &'static str,
    },
    /// Change the rules of a table. Its sets keep their members.
    Rewrite {
        /// The table as it should be.
        table: Table,
    },
    /// Delete a table that is not needed.
    Delete {
        /// The table.
        table: Table,
    },
    /// Forget that SYNs to an endpoint were repeated: what kept them from being answered is gone.
    Retry {
        /// The endpoint.
        endpoint: SocketAddr,
    },
}

/// What to do about the tables.
pub fn plan(desired: &[Table], observed: &Observed) -> Vec<Op> {
    let drift = tables::drift(desired, observed);
    let install = drift.install.into_iter().map(|(table, reason)| {
        let there = observed.get(&table.title()).and_then(Option::as_ref);
        match there {
            Some(there) if table.outline().differs_in_rules_only(there) => Op::Rewrite { table },
            _ => Op::Install { table, reason },
        }
    });
    let delete = drift.delete.into_iter().map(|table| Op::Delete { table });
    install.chain(delete).collect()
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install { table, reason } => {
                write!(f, "install nf_tables table {} ({reason})", table.title())
            }
            Self::Rewrite { table } => {
                write!(f, "change the rules of nf_tables table {}", table.title())
            }
            Self::Delete { table } => write!(f, "delete nf_tables table {}", table.title()),
            Self::Retry { endpoint } => write!(f, "try untracked connections to {endpoint} again"),
        }
    }
}

/// What the state of an endpoint follows from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Why no endpoint can be untracked here, whoever connects.
    pub unsupported: Option<Tracked>,
    /// Whose connections.
    pub proxy: &'a Proxy,
    /// Endpoints on a translated way, and how.
    pub translated: &'a BTreeMap<SocketAddr, String>,
    /// Endpoints behind a filter that drops untracked packets, and which.
    pub filtered: &'a BTreeMap<SocketAddr, String>,
    /// Endpoints whose SYNs were repeated.
    pub repeated: &'a BTreeSet<SocketAddr>,
}

impl Facts<'_> {
    /// Why nothing is untracked that the proxy sends now.
    pub fn of_proxy(&self) -> Option<Tracked> {
        match self.proxy {
            Proxy::In(_) => None,
            Proxy::Unusable(why) => Some(why.clone()),
            Proxy::Away => Some(Tracked::new(
                Reason::NoListener,
                "the proxy does not listen on a VIP",
            )),
        }
    }

    /// Why no endpoint is learned now: beside what keeps every endpoint from being untracked the company of the proxy, and
    /// the limit.
    pub fn learns_not(&self, company: Option<Tracked>, limit: Option<Tracked>) -> Option<Tracked> {
        let reasons = [self.unsupported.clone(), self.of_proxy(), company, limit];
        reasons.into_iter().flatten().next()
    }

    /// Whether new connections to an endpoint are untracked.
    pub fn judge(&self, endpoint: SocketAddr) -> Endpoint {
        let translated = self.translated.get(&endpoint);
        let translated = translated.map(|how| Tracked::new(Reason::Nat, how));
        let filtered = self.filtered.get(&endpoint);
        let filtered = filtered.map(|how| Tracked::new(Reason::Filter, how));
        let repeated = self.repeated.contains(&endpoint).then(|| {
            Tracked::new(
                Reason::Repeated,
                "untracked SYNs were not answered until they were repeated, by conntrack: the API server \
                 is away, the packets need a NAT, or a filter drops untracked packets; it is tried again \
                 ten minutes after the last one",
            )
        });
        // What was learned first: it is what an agent that is started anew goes on from.
        let unsupported = self.unsupported.clone();
        let reasons = [unsupported, translated, filtered, self.of_proxy(), repeated];
        Endpoint {
            endpoint,
            tracked: reasons.into_iter().flatten().next(),
        }
    }
}
