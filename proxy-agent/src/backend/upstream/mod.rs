// SPDX-License-Identifier: Apache-2.0

//! The proxy's own connections on to the API servers: kept from conntrack with rules and sets of `nf_tables`,
//! beside the backends that decide connections natively. Whose connections they are is told by the cgroup
//! in which a VIP's listener was made; whereto by the command line, or by what conntrack shows of connections that
//! the proxy has.
//!
//! The tables live on without the agent, as the backends' do.

mod apply;
mod company;
mod endpoints;
mod filters;
mod nat;
mod plan;
mod proxy;
mod publish;
mod removal;
mod rules;
mod support;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::debug;

use self::endpoints::Endpoints;
use self::plan::Op;
use self::proxy::{Listeners, Proxy};
pub use self::removal::remove_everything;
use self::rules::Desired;
use super::decisions::collect::{self, Which};
use super::live::Connection;
use super::{live, tables};
use crate::config::Config;
use crate::instance::Instance;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::sock_diag::list::Sock;
use crate::netfilter;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Mode, Report, carry_out, failed, part};
use crate::state::State;
use crate::state::upstream::{self as published, Reason, Tracked};

/// The name of this part in reports and logs.
pub const PART: &str = part::UPSTREAM;

/// When the proxy's connections are looked at again after its rules have come to be.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

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
    /// Where the proxy is connected to: the VIPs, and Services that end on it.
    own: Vec<SocketAddr>,
    endpoints: Endpoints,
    size: u32,
    /// Why the kernel does not take the rules. None: it does, or was not asked.
    unsupported: Option<String>,
    /// The kernel was asked.
    is_tried: bool,
    /// The cgroups of the rules: those of the proxy, or while it does not listen those where it did last.
    cgroups: Vec<Cgroup>,
    /// Cgroups that were found before, by id.
    known: BTreeMap<u64, Cgroup>,
    /// What this pass goes by; none: it is not known.
    stage: Option<Stage>,
    /// The rules of the proxy's cgroups are new: it may have connected before they noted it.
    is_new: bool,
    /// What the last pass wanted.
    wanted: Option<Desired>,
    /// The endpoints when the filters were last looked at.
    filtered_for: Option<Vec<SocketAddr>>,
    /// The proxy did not listen in the last pass.
    is_away: bool,
    /// The listeners before the last pass.
    seen: Option<Vec<Option<Sock>>>,
    /// As of the last pass.
    published: published::Upstream,
}

/// What was found at the start of a pass.
struct Stage {
    /// Why no endpoint can be untracked, whoever connects.
    unsupported: Option<Tracked>,
    /// Whose connections.
    proxy: Proxy,
    /// Why nothing is learned from them.
    company: Option<Tracked>,
}

impl Upstream {
    /// Nothing is read of the kernel yet. What an earlier agent has learned is taken from its state.
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
            size: config.max_connections,
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
            published: published::Upstream::default(),
        }
    }

    /// As of the last pass.
    pub fn published(&self) -> &published::Upstream {
        &self.published
    }

    /// Whether there is anything that depends on the proxy.
    pub fn follows_proxy(&self) -> bool {
        !self.endpoints.are_off()
    }

    /// Whether somebody else listens on the VIPs than before the last pass, the proxy's cgroup has gone, or the proxy has
    /// connections from which an endpoint is learned.
    pub fn has_proxy_changed(&self) -> bool {
        if self.seen.is_none() {
            return false;
        }
        if self.is_away && self.cgroups.iter().any(proxy::is_gone) {
            return true;
        }
        // What cannot be read is reported by the passes.
        let has_moved =
            || proxy::glance(&self.vips).is_ok_and(|now| self.seen.as_ref() != Some(&now));
        let has_news = || {
            let seen = self.seen_connections().unwrap_or_default();
            !seen.is_empty()
                && company::found_in(&self.cgroups).is_none()
                && nat::ways(&seen).is_ok_and(|ways| !ways.is_empty())
        };
        has_moved() || has_news()
    }

    /// The endpoints whose untracked packets are to pass the filters of this node.
    pub fn accepted(&self) -> Vec<SocketAddr> {
        match &self.stage {
            Some(stage) if stage.unsupported.is_some() => Vec::new(),
            _ => self.endpoints.all(),
        }
    }

    /// The start of a pass: finds the proxy, and learns from its connections. `unfit`: the backend in use, where it does
    /// not keep connections from conntrack natively.
    pub fn prepare(
        &mut self,
        unfit: Option<&str>,
        (mode, cause): (Mode, Cause),
        report: &mut Report,
    ) {
        self.stage = None;
        let unsupported = self.find_unsupported(unfit, mode);
        let mut proxy = Proxy::Away;
        let mut company = None;
        if unsupported.is_none() && !self.endpoints.are_off() {
            match self.find_proxy() {
                Ok(found) => proxy = found,
                Err(error) => {
                    return failed(PART, "list the listeners of the VIPs", &error, report);
                }
            }
            let all = cause == Cause::Resync || std::mem::take(&mut self.is_new);
            let before = self.cgroups.clone();
            match &proxy {
                Proxy::In(cgroups) => self.cgroups.clone_from(cgroups),
                // nft(8) loads no rule again that names a cgroup which is gone.
                Proxy::Away => self.cgroups.retain(|cgroup| !proxy::is_gone(cgroup)),
                Proxy::Unusable(_) => self.cgroups.clear(),
            }
            self.is_away = proxy == Proxy::Away;
            if self.endpoints.are_learned() {
                company = company::found_in(&self.cgroups);
                self.is_new = before != self.cgroups;
            }
            if self.is_new {
                report.look_again_after(LOOK_AGAIN);
            }
            if mode == Mode::Apply {
                let learned = self.learn(company.is_none(), all);
                learned.unwrap_or_else(|error| {
                    let what = "look for NAT of the proxy's connections";
                    failed(PART, what, &error, report);
                });
            }
        }
        self.stage = Some(Stage {
            unsupported,
            proxy,
            company: company.map(|why| Tracked::new(Reason::Company, why)),
        });
    }

    /// The rest of a pass: makes the tables as desired.
    pub async fn reconcile(&mut self, (mode, cause): (Mode, Cause), report: &mut Report) {
        let Some(stage) = self.stage.take() else {
            return;
        };
        let mut desired = Desired::default();
        if stage.unsupported.is_none() && !self.endpoints.are_off() {
            if mode == Mode::Apply {
                self.look_at_filters(cause, report).await;
            }
            desired = Desired {
                endpoints: self.endpoints.all(),
                left: self.endpoints.left(),
                cgroups: self.cgroups.clone(),
                learns_in: self.endpoints.learned_in(),
            };
        }
        let mut ops: Vec<_> = if desired.is_nothing() {
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
        self.publish(&stage, report);
        self.stage = Some(stage);
    }

    /// Why no endpoint can be untracked, whoever connects.
    fn find_unsupported(&mut self, unfit: Option<&str>, mode: Mode) -> Option<Tracked> {
        if let Some(backend) = unfit {
            // `cgroup_mt_reg` of net/netfilter/xt_cgroup.c: LOCAL_OUT, POST_ROUTING, LOCAL_IN.
            let why = match backend {
                "iptables" => {
                    ": the cgroup match of iptables does not see an answer before conntrack does"
                }
                _ => "",
            };
            let detail = format!("backend {backend} tracks the proxy's own connections{why}");
            return Some(Tracked::new(Reason::Backend, detail));
        }
        if mode == Mode::Apply && !self.is_tried && !self.endpoints.are_off() {
            let endpoints = self.endpoints.all();
            let families = self.endpoints.learned_in();
            let refused = support::rehearse(self.instance, &endpoints, families).err();
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

    /// Asks conntrack about `all` of the proxy's connections, or about new ones to endpoints that are not known. `learn`:
    /// endpoints that are not known may become so.
    fn learn(&mut self, learn: bool, all: bool) -> Result<(), Error> {
        let now = Instant::now();
        let connections = match all {
            false if !learn => return Ok(()),
            false => self.seen_connections()?,
            true => {
                let all = nat::connections(&self.cgroups)?;
                let mut used: BTreeSet<_> = all.iter().map(|one| one.vip).collect();
                used.extend(self.read_endpoints(rules::ANSWERED)?);
                // A health check may be over before it is answered in the sense of the rules.
                let opening = self.connections_in(rules::OPENING)?;
                used.extend(opening.iter().map(|one| one.vip));
                self.endpoints.keep(&used, now);
                let is_of_interest = |one: &Connection| {
                    let is_onward = !self.own.contains(&one.client);
                    self.endpoints.knows(one.vip)
                        || (is_onward && self.endpoints.may_learn(one.vip))
                };
                all.into_iter().filter(is_of_interest).collect()
            }
        };
        let ways = nat::ways(&connections)?;
        self.endpoints.note(ways, learn, now);
        Ok(())
    }

    /// Looks for filters that drop the proxy's untracked packets.
    async fn look_at_filters(&mut self, cause: Cause, report: &mut Report) {
        let endpoints = self.endpoints.all();
        let is_new = self.filtered_for.as_ref() != Some(&endpoints);
        if cause == Cause::Event && !is_new {
            return;
        }
        match filters::dropping(&endpoints).await {
            Ok(found) => {
                self.endpoints.filter(found);
                self.filtered_for = Some(endpoints);
            }
            Err(error) => failed(PART, "look for filters of this node", &error, report),
        }
    }

    /// What was repeated while there was NAT or a filter says nothing any more.
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

    /// Forgets connections that are over.
    fn collect(&self, report: &mut Report) {
        if self.endpoints.all().is_empty() {
            return;
        }
        match collect::collect(Which::OfProxy, self.instance) {
            Ok(0) => {}
            Ok(over) => debug!(part = PART, "{over} of the proxy's connections were over"),
            Err(error) => failed(PART, "forget connections that are over", &error, report),
        }
    }
}
