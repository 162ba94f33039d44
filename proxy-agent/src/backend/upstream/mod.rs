// SPDX-License-Identifier: Apache-2.0

//! The proxy's own connections on to the API servers: kept from conntrack with rules and sets of `nf_tables`,
//! beside the backends that decide connections natively. Whose connections they are is told by the cgroup
//! in which a VIP's listener was made.
//!
//! The tables live on without the agent, as the backends' do.

mod nat;
mod plan;
mod proxy;
mod removal;
mod rules;
mod support;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tracing::{debug, info, warn};

use self::nat::Way;
use self::plan::{Facts, Op};
use self::proxy::{Listeners, Proxy};
pub use self::removal::remove_everything;
use self::rules::Desired;
use super::decisions::DECIDED;
use super::decisions::collect::{self, Which};
use super::{decisions, live, tables};
use crate::config::Config;
use crate::instance::Instance;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::conntrack;
use crate::kernel::sock_diag::list::Sock;
use crate::netfilter::{self, Socket, Table};
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Mode, Report, carry_out, failed, part};
use crate::state::State;
use crate::state::upstream::{self as published, Reason, Tracked};

/// The name of this part in reports and logs.
pub const PART: &str = part::UPSTREAM;

/// Something that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nf_tables or conntrack.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// Decided connections could not be read.
    #[error(transparent)]
    Decided(#[from] collect::Error),
    /// The proxy's connections could not be read.
    #[error(transparent)]
    Live(#[from] live::Error),
}

/// The tables for the proxy's own connections, and what was learned for them.
pub struct Upstream {
    instance: Instance,
    vips: Vec<SocketAddr>,
    endpoints: Vec<SocketAddr>,
    size: u32,
    /// Why the kernel does not take the rules. None: it does, or was not asked.
    unsupported: Option<String>,
    /// The kernel was asked.
    is_tried: bool,
    /// The cgroups of the rules: those of the proxy, or while it does not listen those where it did last.
    cgroups: Vec<Cgroup>,
    /// Cgroups that were found before, by id.
    known: BTreeMap<u64, Cgroup>,
    /// Endpoints on a translated way, and how.
    translated: BTreeMap<SocketAddr, String>,
    /// Endpoints that were on a translated way, and are not any more.
    freed: BTreeSet<SocketAddr>,
    /// What the last pass wanted.
    wanted: Option<Desired>,
    /// The proxy did not listen in the last pass.
    is_away: bool,
    /// The listeners before the last pass.
    seen: Option<Vec<Option<Sock>>>,
    /// As of the last pass.
    published: published::Upstream,
}

impl Upstream {
    /// Nothing is read of the kernel yet. What an earlier agent has learned is taken from its state.
    pub fn open(config: &Config) -> Self {
        let endpoints = config.proxy_upstream.endpoints().to_vec();
        let earlier = State::load(&config.run_dir).ok().flatten();
        let earlier = earlier.map(|state| state.upstream);
        let earlier = earlier.unwrap_or_default();
        let translated = earlier.endpoints.iter().filter_map(|known| {
            let tracked = known.tracked.as_ref()?;
            let is_still_named = endpoints.contains(&known.endpoint);
            (tracked.reason == Reason::Nat && is_still_named)
                .then(|| (known.endpoint, tracked.detail.clone()))
        });
        let known = earlier.cgroups.iter().map(|one| (one.id, one.clone()));
        Self {
            instance: config.instance,
            vips: config.endpoints().collect(),
            size: config.max_connections,
            translated: translated.collect(),
            freed: BTreeSet::new(),
            known: known.collect(),
            unsupported: earlier.unsupported,
            is_tried: false,
            cgroups: earlier.cgroups,
            wanted: None,
            is_away: false,
            seen: None,
            published: published::Upstream::default(),
            endpoints,
        }
    }

    /// As of the last pass.
    pub fn published(&self) -> &published::Upstream {
        &self.published
    }

    /// Whether there is anything that depends on the proxy.
    pub fn follows_proxy(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Whether somebody else listens on the VIPs than before the last pass, or the proxy's cgroup has gone.
    pub fn has_proxy_changed(&self) -> bool {
        if self.seen.is_none() {
            return false;
        }
        if self.is_away && self.cgroups.iter().any(proxy::is_gone) {
            return true;
        }
        // What cannot be read is reported by the passes.
        proxy::glance(&self.vips).is_ok_and(|now| self.seen.as_ref() != Some(&now))
    }

    /// Makes the tables as desired. `unfit`: the backend in use, where it does not keep connections from
    /// conntrack natively.
    pub async fn reconcile(
        &mut self,
        unfit: Option<&str>,
        (mode, cause): (Mode, Cause),
        report: &mut Report,
    ) {
        let unsupported = self.find_unsupported(unfit, mode);
        let mut desired = Desired::default();
        let mut proxy = Proxy::Away;
        if unsupported.is_none() && !self.endpoints.is_empty() {
            match self.find_proxy() {
                Ok(found) => proxy = found,
                Err(error) => {
                    return failed(PART, "list the listeners of the VIPs", &error, report);
                }
            }
            match &proxy {
                Proxy::In(cgroups) => self.cgroups.clone_from(cgroups),
                // nft(8) loads no rule again that names a cgroup which is gone.
                Proxy::Away => self.cgroups.retain(|cgroup| !proxy::is_gone(cgroup)),
                Proxy::Unusable(_) => self.cgroups.clear(),
            }
            self.is_away = proxy == Proxy::Away;
            if cause == Cause::Resync {
                self.look_for_nat(report);
            }
            desired = Desired {
                endpoints: self.endpoints.clone(),
                left: self.translated.keys().copied().collect(),
                cgroups: self.cgroups.clone(),
            };
        }
        let mut ops: Vec<_> = if desired.endpoints.is_empty() {
            // A kernel without nf_tables has nothing to be removed.
            let there = tables::existing(PART, tables::empty_upstream(self.instance), report);
            there
                .into_iter()
                .map(|table| Op::Delete { table })
                .collect()
        } else {
            let tables = rules::tables(self.instance, self.size, &desired);
            plan::plan(&tables, &tables::read(PART, &tables, report))
        };
        ops.extend(self.retries(report));
        let follows = self.wanted.as_ref() != Some(&desired);
        let is_routine = |op: &&Op| follows || matches!(op, Op::Retry { .. });
        let routine = ops.iter().filter(is_routine).map(Op::to_string);
        let routine: Vec<_> = routine.collect();
        self.wanted = Some(desired);
        carry_out(PART, mode, ops, report, async |op| self.apply(op)).await;
        report.mark_routine(PART, &routine);
        if mode == Mode::Apply && cause == Cause::Resync {
            self.collect(report);
        }
        self.publish(unsupported, &proxy, report);
    }

    /// Why no endpoint can be untracked, whoever connects.
    fn find_unsupported(&mut self, unfit: Option<&str>, mode: Mode) -> Option<Tracked> {
        if let Some(backend) = unfit {
            let detail = format!("backend {backend} tracks the proxy's own connections");
            return Some(Tracked::new(Reason::Backend, detail));
        }
        if mode == Mode::Apply && !self.is_tried && !self.endpoints.is_empty() {
            let refused = support::rehearse(self.instance, &self.endpoints).err();
            self.is_tried = refused.as_ref().is_none_or(support::is_final);
            self.unsupported = refused.map(|error| {
                format!("the kernel does not take `socket cgroupv2` in rules, as Linux 5.13 does: {error}")
            });
        }
        let refused = self.unsupported.as_ref()?;
        Some(Tracked::new(Reason::Kernel, refused))
    }

    fn find_proxy(&mut self) -> std::io::Result<Proxy> {
        // First: what changes after it leads to another pass.
        self.seen = Some(proxy::glance(&self.vips)?);
        let listeners = Listeners::read(&self.vips)?;
        Ok(proxy::find(&listeners, &mut self.known))
    }

    fn look_for_nat(&mut self, report: &mut Report) {
        match nat::ways(&self.endpoints, &self.cgroups) {
            Ok(ways) => {
                for (endpoint, way) in ways {
                    match way {
                        Way::Free => {
                            if self.translated.remove(&endpoint).is_some() {
                                self.freed.insert(endpoint);
                            }
                        }
                        // The words about the first one: those about each connection differ.
                        Way::Translated(how) => {
                            self.translated.entry(endpoint).or_insert(how);
                        }
                    }
                }
            }
            Err(error) => failed(
                PART,
                "look for NAT of the proxy's connections",
                &error,
                report,
            ),
        }
    }

    /// What was repeated while there was NAT says nothing any more.
    fn retries(&mut self, report: &mut Report) -> Vec<Op> {
        if self.freed.is_empty() {
            return Vec::new();
        }
        let repeated = self.repeated(report);
        let freed = std::mem::take(&mut self.freed).into_iter();
        let freed = freed.filter(|endpoint| repeated.contains(endpoint));
        freed.map(|endpoint| Op::Retry { endpoint }).collect()
    }

    /// Forgets connections that are over.
    fn collect(&self, report: &mut Report) {
        if self.endpoints.is_empty() {
            return;
        }
        match collect::collect(Which::OfProxy, self.instance) {
            Ok(0) => {}
            Ok(over) => debug!(part = PART, "{over} of the proxy's connections were over"),
            Err(error) => failed(PART, "forget connections that are over", &error, report),
        }
    }

    fn apply(&self, op: &Op) -> Result<(), Error> {
        let mut socket = Socket::open()?;
        match op {
            Op::Install { table, .. } => {
                let table = self.filled(table.clone(), &mut socket)?;
                Ok(Table::replace(&[table], &mut socket)?)
            }
            Op::Rewrite { table } => Ok(table.rewrite(&mut socket)?),
            Op::Delete { table } => {
                decisions::hand_over(Which::OfProxy, self.instance)?;
                Ok(table.delete(&mut socket)?)
            }
            Op::Retry { endpoint } => {
                for table in tables::empty_upstream(self.instance) {
                    let mut keys = table.members(rules::REPEATED, &mut socket)?;
                    keys.retain(|key| collect::endpoint(table.family, key) == Some(*endpoint));
                    table.delete_members(rules::REPEATED, &keys, &mut socket)?;
                }
                Ok(())
            }
        }
    }

    /// A table with the connections that are untracked now. Where another program has removed the one before,
    /// conntrack picks them up, and they stay tracked; where it would not, they hang unless they are known.
    fn filled(&self, mut table: Table, socket: &mut Socket) -> Result<Table, Error> {
        let mut untracked = collect::members(&table, socket)?;
        if untracked.is_empty() && !conntrack::picks_up() {
            for endpoint in &self.endpoints {
                for sock in nat::connections(*endpoint, &self.cgroups)? {
                    let (client, server) = (sock.local, sock.remote);
                    if netfilter::conntrack::opened_by(socket, client, server)?.is_none() {
                        let vip = server;
                        untracked.push(live::Connection { client, vip });
                    }
                }
            }
        }
        for set in table.sets.iter_mut().filter(|set| set.name == DECIDED) {
            let of_family = untracked
                .iter()
                .filter(|one| tables::family_of(one.vip.ip()) == table.family);
            set.members = of_family.map(live::Connection::member).collect();
        }
        Ok(table)
    }

    /// Notes and logs what has become of each endpoint.
    fn publish(&mut self, unsupported: Option<Tracked>, proxy: &Proxy, report: &mut Report) {
        let repeated = self.repeated(report);
        let facts = Facts {
            unsupported,
            proxy,
            translated: &self.translated,
            repeated: &repeated,
        };
        let endpoints = self.endpoints.iter().map(|one| facts.judge(*one));
        let now = published::Upstream {
            endpoints: endpoints.collect(),
            cgroups: self.cgroups.clone(),
            unsupported: self.unsupported.clone(),
        };
        for endpoint in &now.endpoints {
            if self.published.endpoints.contains(endpoint) && self.published.cgroups == now.cgroups
            {
                continue;
            }
            match &endpoint.tracked {
                None => info!(
                    part = PART,
                    "the proxy's connections to {} are untracked: those of cgroup {}",
                    endpoint.endpoint,
                    now.places()
                ),
                Some(tracked) => warn!(
                    part = PART,
                    "the proxy's connections to {} are tracked: {}",
                    endpoint.endpoint,
                    tracked.detail
                ),
            }
        }
        self.published = now;
    }

    /// The endpoints that are left to conntrack for a repeated SYN; none if they cannot be read, which is reported.
    fn repeated(&self, report: &mut Report) -> BTreeSet<SocketAddr> {
        self.read_repeated().unwrap_or_else(|error| {
            let what = "read the endpoints that are left alone";
            failed(PART, what, &error, report);
            BTreeSet::new()
        })
    }

    fn read_repeated(&self) -> Result<BTreeSet<SocketAddr>, netfilter::Error> {
        let mut repeated = BTreeSet::new();
        if self.endpoints.is_empty() {
            return Ok(repeated);
        }
        let mut socket = Socket::open()?;
        for table in tables::empty_upstream(self.instance) {
            let keys = table.members(rules::REPEATED, &mut socket)?;
            let endpoints = keys
                .iter()
                .filter_map(|key| collect::endpoint(table.family, key));
            repeated.extend(endpoints);
        }
        Ok(repeated)
    }
}
