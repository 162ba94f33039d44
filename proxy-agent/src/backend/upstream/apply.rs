// SPDX-License-Identifier: Apache-2.0

//! Carries out operations, and reads the tables' sets.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proxy_kernel::conntrack;
use proxy_netlink::netfilter::{self, Socket, Table};

use super::plan::Op;
use super::{Error, PART, Upstream, nat, rules};
use crate::backend::decisions::collect::{self, Which};
use crate::backend::decisions::{self, DECIDED};
use crate::backend::live::Connection;
use crate::backend::tables;
use crate::reconcile::Report;

impl Upstream {
    /// Carries out one operation.
    pub(super) fn apply(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Table(tables::Op::Install(tables)) => {
                let mut socket = Socket::open()?;
                let mut filled = Vec::new();
                for (table, reason) in tables {
                    filled.push((self.filled(table.clone(), &mut socket)?, *reason));
                }
                Ok(tables::Op::Install(filled).apply()?)
            }
            Op::Table(delete @ tables::Op::Delete(_)) => {
                decisions::release(Which::OfProxy, self.instance)?;
                Ok(delete.apply()?)
            }
            Op::Table(rewrite @ tables::Op::Rewrite(_)) => Ok(rewrite.apply()?),
            Op::Retry { endpoint } => {
                let mut socket = Socket::open()?;
                for table in tables::empty_upstream(self.instance) {
                    let mut keys = table.members(rules::REPEATED, &mut socket)?;
                    keys.retain(|key| collect::endpoint(table.family, key) == Some(*endpoint));
                    table.delete_members(rules::REPEATED, &keys, &mut socket)?;
                }
                Ok(())
            }
        }
    }

    /// A table filled with the connections that are untracked now. If another program has removed the previous table, conntrack picks
    /// up its connections, and they stay tracked; if it does not pick them up, they are added, because they would hang.
    fn filled(&self, mut table: Table, socket: &mut Socket) -> Result<Table, Error> {
        let mut untracked = collect::members(&table, DECIDED, socket)?;
        if untracked.is_empty() && !conntrack::picks_up() {
            for one in nat::connections(&self.cgroups)? {
                let Connection { client, vip } = one;
                if self.endpoints.knows(vip)
                    && netfilter::conntrack::opened_by(socket, client, vip)?.is_none()
                {
                    untracked.push(one);
                }
            }
        }
        for set in table.sets.iter_mut().filter(|set| set.name == DECIDED) {
            let of_family = untracked
                .iter()
                .filter(|one| tables::family_of(one.vip.ip()) == table.family);
            set.members = of_family.map(Connection::member).collect();
        }
        Ok(table)
    }

    /// New connections of the proxy to endpoints that may be learned.
    pub(super) fn seen_connections(&self) -> Result<Vec<Connection>, netfilter::Error> {
        if self.cgroups.is_empty() || !self.endpoints.are_learned() {
            return Ok(Vec::new());
        }
        let mut seen = self.connections_in(rules::SEEN)?;
        seen.retain(|one| self.endpoints.may_learn(one.vip));
        Ok(seen)
    }

    /// The connections in a set of the tables.
    pub(super) fn connections_in(&self, set: &str) -> Result<Vec<Connection>, netfilter::Error> {
        let mut found = Vec::new();
        let mut socket = Socket::open()?;
        for table in tables::empty_upstream(self.instance) {
            found.extend(collect::members(&table, set, &mut socket)?);
        }
        Ok(found)
    }

    /// The endpoints whose SYNs were repeated, so that they are left to conntrack; empty if they cannot be read, which is reported.
    pub(super) fn repeated(&self, report: &mut Report) -> BTreeSet<SocketAddr> {
        let repeated = self.read_endpoints(rules::REPEATED);
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
        for table in tables::empty_upstream(self.instance) {
            let keys = table.members(set, &mut socket)?;
            let endpoints = keys
                .iter()
                .filter_map(|key| collect::endpoint(table.family, key));
            found.extend(endpoints);
        }
        Ok(found)
    }
}
