// SPDX-License-Identifier: Apache-2.0

//! Computes the operations on the tables, and the published state of the endpoints. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::SocketAddr;

use proxy_netlink::netfilter::Table;

use super::proxy::Proxy;
use crate::backend::tables::{self, Observed};
use crate::state::upstream::{Endpoint, Reason, Tracked};

/// An operation.
#[derive(Debug, Clone)]
pub enum Op {
    /// Change a table.
    Table(tables::Op),
    /// Remove an endpoint from the set of those with repeated SYNs, because the reason for them is gone.
    Retry {
        /// The endpoint.
        endpoint: SocketAddr,
    },
}

/// Plans the operations. The backend installs the tables and their sets, so a table that is missing has no rules to change.
pub fn plan(desired: &[Table], observed: &Observed) -> Vec<tables::Op> {
    let differs = |table: &&Table| {
        let there = observed.get(&table.title()).and_then(Option::as_ref);
        there.is_some_and(|there| table.outline().differs_in_rules(there))
    };
    let differing = desired.iter().filter(differs);
    differing.cloned().map(tables::Op::Rewrite).collect()
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(op) => op.fmt(f),
            Self::Retry { endpoint } => write!(f, "retry untracked connections to {endpoint}"),
        }
    }
}

/// The facts that determine the state of an endpoint.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Why no endpoint can be untracked, regardless of the proxy.
    pub unsupported: Option<Tracked>,
    /// The proxy's cgroups.
    pub proxy: &'a Proxy,
    /// Endpoints with NAT on the path, with a description of it.
    pub translated: &'a BTreeMap<SocketAddr, String>,
    /// Endpoints behind a filter that drops untracked packets, with a description of it.
    pub filtered: &'a BTreeMap<SocketAddr, String>,
    /// Endpoints with repeated SYNs.
    pub repeated: &'a BTreeSet<SocketAddr>,
}

impl Facts<'_> {
    /// Why no connection of the proxy can be untracked at the moment.
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

    /// Why no endpoint is learned at the moment: because none can be untracked, because of other processes in the proxy's cgroup, or
    /// because of the limit.
    pub fn learns_not(&self, others: Option<Tracked>, limit: Option<Tracked>) -> Option<Tracked> {
        let reasons = [self.unsupported.clone(), self.of_proxy(), others, limit];
        reasons.into_iter().flatten().next()
    }

    /// The state of new connections to an endpoint.
    pub fn judge(&self, endpoint: SocketAddr) -> Endpoint {
        let translated = self.translated.get(&endpoint);
        let translated = translated.map(|how| Tracked::new(Reason::Nat, how));
        let filtered = self.filtered.get(&endpoint);
        let filtered = filtered.map(|how| Tracked::new(Reason::Filter, how));
        let repeated = self.repeated.contains(&endpoint).then(|| {
            Tracked::new(
                Reason::Repeated,
                "untracked SYNs were answered only after retransmission, by then through conntrack: the API server \
                 is down, the packets need NAT, or a filter drops untracked packets; the next attempt is ten \
                 minutes after the last one",
            )
        });
        // Learned facts come first, because a restarted agent restores them from the state file.
        let unsupported = self.unsupported.clone();
        let reasons = [unsupported, translated, filtered, self.of_proxy(), repeated];
        Endpoint {
            endpoint,
            tracked: reasons.into_iter().flatten().next(),
        }
    }
}
