// SPDX-License-Identifier: Apache-2.0

//! Carries out operations, and reads the tables' sets.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proxy_netlink::netfilter::{self, Socket};

use super::plan::Op;
use super::{Error, PART, Upstream};
use crate::backend::decisions;
use crate::backend::decisions::collect::{self, Which};
use crate::backend::decisions::of_proxy;
use crate::backend::live::Connection;
use crate::backend::tables;
use crate::reconcile::Report;

impl Upstream {
    /// Carries out one operation.
    pub(super) fn apply(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Table(rewrite @ tables::Op::Rewrite(table)) => {
                let is_nothing = table.chains.iter().all(|chain| chain.rules.is_empty());
                let loses_rules = |one: &Connection| {
                    tables::family_of(one.vip.ip()) == table.family
                        && (is_nothing || !self.endpoints.knows(one.vip))
                };
                decisions::release_those(Which::OfProxy, self.instance, loses_rules)?;
                Ok(rewrite.apply()?)
            }
            Op::Table(op) => {
                decisions::release_separate(self.instance)?;
                Ok(op.apply()?)
            }
            Op::Retry { endpoint } => {
                let mut socket = Socket::open()?;
                for table in tables::empty(self.instance) {
                    let mut keys = table.members(of_proxy::REPEATED, &mut socket)?;
                    keys.retain(|key| collect::endpoint(table.family, key) == Some(*endpoint));
                    table.delete_members(of_proxy::REPEATED, &keys, &mut socket)?;
                }
                Ok(())
            }
        }
    }

    /// New connections of the proxy to endpoints that may be learned.
    pub(super) fn seen_connections(&self) -> Result<Vec<Connection>, netfilter::Error> {
        if self.cgroups.is_empty() || !self.endpoints.are_learned() {
            return Ok(Vec::new());
        }
        let mut seen = self.connections_in(of_proxy::SEEN)?;
        seen.retain(|one| self.endpoints.may_learn(one.vip));
        Ok(seen)
    }

    /// The connections in a set of the tables.
    pub(super) fn connections_in(&self, set: &str) -> Result<Vec<Connection>, netfilter::Error> {
        let mut found = Vec::new();
        let mut socket = Socket::open()?;
        for table in tables::empty(self.instance) {
            found.extend(collect::members(&table, set, &mut socket)?);
        }
        Ok(found)
    }

    /// The endpoints whose SYNs were repeated, so that they are left to conntrack; empty if they cannot be read, which is reported.
    pub(super) fn repeated(&self, report: &mut Report) -> BTreeSet<SocketAddr> {
        let repeated = self.read_endpoints(of_proxy::REPEATED);
        report
            .attempt(PART, "read the endpoints with repeated SYNs", repeated)
            .unwrap_or_default()
    }

    /// The endpoints in a set of the tables.
    pub(super) fn read_endpoints(
        &self,
        set: &str,
    ) -> Result<BTreeSet<SocketAddr>, netfilter::Error> {
        let mut found = BTreeSet::new();
        if self.endpoints.all().is_empty() {
            return Ok(found);
        }
        let mut socket = Socket::open()?;
        for table in tables::empty(self.instance) {
            let keys = table.members(set, &mut socket)?;
            let endpoints = keys
                .iter()
                .filter_map(|key| collect::endpoint(table.family, key));
            found.extend(endpoints);
        }
        Ok(found)
    }
}
