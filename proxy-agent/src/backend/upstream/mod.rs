// SPDX-License-Identifier: Apache-2.0

//! The proxy's own connections to the API servers: rules of `nf_tables` keep them out of conntrack, in the tables of the
//! backends with native rules, which reserve sets and chains for them. The rules match the cgroup in which a VIP's
//! listener was created; the destinations are named on the command line, or learned from the proxy's connections without
//! NAT according to conntrack.
//!
//! The rules outlive the agent, as those of the backends do.

mod apply;
mod endpoints;
mod filters;
mod nat;
mod other_processes;
mod plan;
mod proxy;
mod publish;
mod rules;
mod support;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::{Family, Table};
use proxy_netlink::sock_diag::list::Sock;
use tracing::debug;

use self::endpoints::Endpoints;
use self::plan::Op;
use self::proxy::{Listeners, Proxy};
use self::rules::Desired;
use super::decisions::Error;
use super::decisions::collect::{self, Which};
use super::decisions::of_proxy::{self, Known};
use super::live::Connection;
use super::{live, tables};
use crate::config::Config;
use crate::instance::Instance;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Mode, Part, Report, carry_out};
use crate::state::State;
use crate::state::upstream::{self as published, Reason, Tracked};

/// The name of this part in reports and logs.
pub const PART: Part = Part::Upstream;

/// Delay until the proxy's connections are checked again after new rules.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The rules for the proxy's own connections, and the learned endpoints.
pub struct Upstream {
    instance: Instance,
    vips: Vec<SocketAddr>,
    /// Addresses at which the proxy accepts connections: the VIPs, and Services that end on it.
    own: Vec<SocketAddr>,
    /// The families whose tables have a place for the rules.
    families: Vec<Family>,
    endpoints: Endpoints,
    /// Why the kernel rejects the rules. None: it accepts them, or they have not been tried.
    unsupported: Option<String>,
    /// The rules have been tried.
    is_tried: bool,
    /// The cgroups in the rules: those of the proxy, or the last ones while it does not listen.
    cgroups: Vec<Cgroup>,
    /// Cgroups that were found before, by id.
    known: BTreeMap<u64, Cgroup>,
    /// The findings of this pass; none if they are unknown.
    stage: Option<Stage>,
    /// The rules of the proxy's cgroups are new: connections opened before are not in the sets.
    is_new: bool,
    /// The desired state of the last pass.
    wanted: Option<Desired>,
    /// The endpoints for which the filters were last checked.
    filtered_for: Option<Vec<SocketAddr>>,
    /// The proxy did not listen in the last pass.
    is_away: bool,
    /// The listeners before the last pass.
    seen: Option<Vec<Option<Sock>>>,
    /// The separate tables of version 0.2.0, until a pass without failures has removed them.
    separate: Option<[Table; 2]>,
    /// The state as of the last pass.
    published: published::Upstream,
}

/// The findings at the start of a pass.
struct Stage {
    /// The backend in use installs the tables.
    backend_has_tables: bool,
    /// Why no endpoint can be untracked, regardless of the proxy.
    unsupported: Option<Tracked>,
    /// The proxy's cgroups.
    proxy: Proxy,
    /// Why nothing is learned from its connections.
    others: Option<Tracked>,
}

impl Upstream {
    /// Reads nothing from the kernel. Learned endpoints are restored from the state of an earlier agent.
    pub fn open(config: &Config) -> Self {
        let earlier = State::load(&config.run_dir).ok().flatten();
        let earlier = earlier.map(|state| state.upstream);
        let earlier = earlier.unwrap_or_default();
        let known = earlier.cgroups.iter().map(|one| (one.id, one.clone()));
        let services = config.services.iter().map(|service| service.cluster_ip);
        Self {
            instance: config.instance,
            vips: config.endpoints().collect(),
            own: config.endpoints().chain(services).collect(),
            families: of_proxy::families(config),
            endpoints: Endpoints::open(config, &earlier, Instant::now()),
            known: known.collect(),
            unsupported: earlier.unsupported,
            is_tried: false,
            cgroups: earlier.cgroups,
            stage: None,
            is_new: false,
            wanted: None,
            filtered_for: None,
            is_away: false,
            seen: None,
            separate: Some(tables::empty_separate_upstream(config.instance)),
            published: published::Upstream::default(),
        }
    }

    /// The state as of the last pass.
    pub fn published(&self) -> &published::Upstream {
        &self.published
    }

    /// Whether the state depends on the proxy.
    pub fn follows_proxy(&self) -> bool {
        !self.endpoints.are_off()
    }

    /// Whether the listeners of the VIPs have changed since the last pass, the proxy's cgroup is gone, or the proxy has connections
    /// from which an endpoint is learned.
    pub fn has_proxy_changed(&self) -> bool {
        if self.seen.is_none() {
            return false;
        }
        if self.is_away && self.cgroups.iter().any(proxy::is_gone) {
            return true;
        }
        // The next pass reports read errors.
        let has_moved =
            || proxy::glance(&self.vips).is_ok_and(|now| self.seen.as_ref() != Some(&now));
        let has_news = || {
            let seen = self.seen_connections().unwrap_or_default();
            !seen.is_empty()
                && other_processes::found_in(&self.cgroups).is_none()
                && nat::paths(&seen).is_ok_and(|paths| !paths.is_empty())
        };
        has_moved() || has_news()
    }

    /// The endpoints whose untracked packets this node's filters should accept.
    pub fn accepted(&self) -> Vec<SocketAddr> {
        match &self.stage {
            Some(stage) if stage.unsupported.is_some() => Vec::new(),
            _ => self.endpoints.all(),
        }
    }

    /// What was known after the last pass, at first to an earlier agent, for tables that a backend installs before the first
    /// part of a pass.
    pub fn known(&self) -> Known {
        if self.unsupported.is_some() || self.endpoints.are_off() {
            return Known::default();
        }
        Known {
            rules: rules::tables(self.instance, &self.families, &self.desired()),
            cgroups: self.cgroups.clone(),
            endpoints: self.endpoints.all(),
        }
    }

    /// First part of a pass: finds the proxy, and learns from its connections. `unfit` is the backend in use, if it has no native
    /// rules.
    pub fn prepare(
        &mut self,
        unfit: Option<&str>,
        (mode, cause): (Mode, Cause),
        report: &mut Report,
    ) {
        self.stage = None;
        let mut unsupported = unfit.map(support::of_backend).or_else(|| self.refused());
        let mut proxy = Proxy::Away;
        let mut others = None;
        if unsupported.is_none() && !self.endpoints.are_off() {
            let found = self.find_proxy();
            let Some(found) = report.attempt(PART, "list the listeners of the VIPs", found) else {
                return;
            };
            proxy = found;
            // Not earlier: a trial takes an RCU grace period, which would delay the start.
            if matches!(proxy, Proxy::In(_)) && mode == Mode::Apply && !self.is_tried {
                self.try_rules();
                unsupported = self.refused();
            }
        }
        if unsupported.is_none() && !self.endpoints.are_off() {
            let all = cause == Cause::Resync || std::mem::take(&mut self.is_new);
            let before = self.cgroups.clone();
            match &proxy {
                Proxy::In(cgroups) => self.cgroups.clone_from(cgroups),
                // nft(8) cannot restore a rule with a cgroup that is gone.
                Proxy::Away => self.cgroups.retain(|cgroup| !proxy::is_gone(cgroup)),
                Proxy::Unusable(_) => self.cgroups.clear(),
            }
            self.is_away = proxy == Proxy::Away;
            if self.endpoints.are_learned() {
                others = other_processes::found_in(&self.cgroups);
                self.is_new = before != self.cgroups;
            }
            if self.is_new {
                report.look_again_after(LOOK_AGAIN);
            }
            if mode == Mode::Apply {
                let learned = self.learn(others.is_none(), all);
                report.attempt(PART, "check the proxy's connections for NAT", learned);
            }
        }
        self.stage = Some(Stage {
            backend_has_tables: unfit.is_none(),
            unsupported,
            proxy,
            others: others.map(|why| Tracked::new(Reason::Company, why)),
        });
    }

    /// Second part of a pass: makes the rules as desired.
    pub async fn reconcile(&mut self, (mode, cause): (Mode, Cause), report: &mut Report) {
        let Some(stage) = self.stage.take() else {
            return;
        };
        let mut desired = Desired::default();
        if stage.unsupported.is_none() && !self.endpoints.are_off() {
            if mode == Mode::Apply {
                self.look_at_filters(cause, report).await;
            }
            desired = self.desired();
        }
        let failures = report.failures.len();
        let ops = self.plan(&desired, stage.backend_has_tables, report);
        let follows = self.wanted.as_ref() != Some(&desired);
        let is_routine = |op: &&Op| follows || matches!(op, Op::Retry { .. });
        let routine = ops.iter().filter(is_routine).map(Op::to_string);
        let routine: Vec<_> = routine.collect();
        self.wanted = Some(desired);
        carry_out(PART, mode, ops, report, async |op| self.apply(op)).await;
        report.mark_routine(PART, &routine);
        if mode == Mode::Apply && report.failures.len() == failures {
            self.separate = None;
        }
        if mode == Mode::Apply && cause == Cause::Resync {
            self.collect(report);
        }
        self.publish(&stage, report);
        self.stage = Some(stage);
    }

    fn plan(
        &mut self,
        desired: &Desired,
        backend_has_tables: bool,
        report: &mut Report,
    ) -> Vec<Op> {
        let mut of_tables = Vec::new();
        if backend_has_tables {
            let tables = rules::tables(self.instance, &self.families, desired);
            of_tables = plan::plan(&tables, &tables::read(PART, &tables, report));
        }
        if let Some(separate) = self.separate.clone() {
            of_tables.extend(tables::removals(PART, separate, report));
        }
        let of_tables = of_tables.into_iter().map(Op::Table);
        of_tables.chain(self.retries(report)).collect()
    }

    fn desired(&self) -> Desired {
        Desired {
            endpoints: self.endpoints.all(),
            left: self.endpoints.left(),
            cgroups: self.cgroups.clone(),
            learns_in: self.endpoints.learned_in(),
        }
    }

    /// Lets the kernel check the rules, once.
    fn try_rules(&mut self) {
        let endpoints = self.endpoints.all();
        let families = self.endpoints.learned_in();
        let refused = support::rehearse(self.instance, &self.families, &endpoints, families).err();
        self.is_tried = refused.as_ref().is_none_or(support::is_final);
        self.unsupported = refused.map(|error| {
            format!(
                "the kernel rejects `socket cgroupv2` in rules, which Linux 5.13 supports: {error}"
            )
        });
    }

    /// Why no endpoint can be untracked, if the kernel has rejected the rules.
    fn refused(&self) -> Option<Tracked> {
        let refused = self.unsupported.as_ref()?;
        Some(Tracked::new(Reason::Kernel, refused))
    }

    fn find_proxy(&mut self) -> std::io::Result<Proxy> {
        // First, so that later changes lead to another pass.
        self.seen = Some(proxy::glance(&self.vips)?);
        let listeners = Listeners::read(&self.vips)?;
        Ok(proxy::find(&listeners, &mut self.known))
    }

    /// Queries conntrack for `all` of the proxy's connections, or for new ones to unknown endpoints. Unknown endpoints are learned
    /// if `learn` is set.
    fn learn(&mut self, learn: bool, all: bool) -> Result<(), Error> {
        let now = Instant::now();
        let connections = match all {
            false if !learn => return Ok(()),
            false => self.seen_connections()?,
            true => {
                let all = live::of_cgroups(&self.cgroups)?;
                let mut used: BTreeSet<_> = all.iter().map(|one| one.vip).collect();
                used.extend(self.read_endpoints(of_proxy::ANSWERED)?);
                // A health check may end before its answer matches the rules.
                let opening = self.connections_in(of_proxy::SETS.opening)?;
                used.extend(opening.iter().map(|one| one.vip));
                self.endpoints.expire(&used, now);
                let is_of_interest = |one: &Connection| {
                    let is_onward = !self.own.contains(&one.client);
                    self.endpoints.knows(one.vip)
                        || (is_onward && self.endpoints.may_learn(one.vip))
                };
                all.into_iter().filter(is_of_interest).collect()
            }
        };
        let paths = nat::paths(&connections)?;
        self.endpoints.record(paths, learn, now);
        Ok(())
    }

    /// Searches for filters that drop the proxy's untracked packets.
    async fn look_at_filters(&mut self, cause: Cause, report: &mut Report) {
        let endpoints = self.endpoints.all();
        let is_new = self.filtered_for.as_ref() != Some(&endpoints);
        if cause == Cause::Event && !is_new {
            return;
        }
        let found = filters::dropping(&endpoints).await;
        if let Some(found) = report.attempt(PART, "check this node's filters", found) {
            self.endpoints.filter(found);
            self.filtered_for = Some(endpoints);
        }
    }

    /// Endpoints whose SYNs were repeated because of a NAT or a filter that is gone are tried again.
    fn retries(&mut self, report: &mut Report) -> Vec<Op> {
        let freed = self.endpoints.take_freed();
        if freed.is_empty() {
            return Vec::new();
        }
        let repeated = self.repeated(report);
        let freed = freed.into_iter();
        let freed = freed.filter(|endpoint| repeated.contains(endpoint));
        freed.map(|endpoint| Op::Retry { endpoint }).collect()
    }

    /// Removes ended connections from the sets.
    fn collect(&self, report: &mut Report) {
        if self.endpoints.all().is_empty() {
            return;
        }
        let over = collect::collect(Which::OfProxy, self.instance);
        if let Some(over @ 1..) = report.attempt(PART, "remove ended connections", over) {
            debug!(
                part = PART.name(),
                "removed {over} ended connections of the proxy"
            );
        }
    }
}
