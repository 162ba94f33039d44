// SPDX-License-Identifier: Apache-2.0

//! One tenant: its agents, and the only way to dial them. Code that holds a tenant reaches that tenant's agents and no
//! others, since there is no list of the agents of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use thiserror::Error;

use super::limits::{Allowance, Limits, Permit, Reached};
use crate::client::Mode;
use crate::flow::{Budget, Inbox};
use crate::identifiers::Identifiers;
use crate::metrics::server::DialFailure;
use crate::metrics::tenants::TenantMetrics;
use crate::server::backend::tunnel::{Event, Tunnel};
use crate::server::backend::{self, Backend, Shared};
use crate::server::strategies::{Agents, NO_AGENT, Strategy};
use crate::wire::DialRequest;
use crate::wire::metadata::Extensions;

/// The parts that all tenants share.
#[derive(Debug)]
pub struct Parts {
    /// How agents are chosen.
    pub strategies: Vec<Strategy>,
    /// Counters, the memory for all inboxes, and the bounds of one.
    pub shared: Arc<Shared>,
}

/// Why a dial does not even begin.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialRefused {
    /// No strategy finds an agent.
    #[error("{NO_AGENT}")]
    NoAgent,
    /// The tenant has as much as it may.
    #[error("tenant {0}: {1}")]
    Limit(Arc<str>, Reached),
    /// The tenant is in the rules no more.
    #[error("tenant {0} was removed")]
    Removed(Arc<str>),
    /// The agent does not take it.
    #[error(transparent)]
    Backend(#[from] backend::DialRefused),
}

impl DialRefused {
    /// How it is counted.
    #[must_use]
    pub const fn failure(&self) -> DialFailure {
        match self {
            Self::NoAgent => DialFailure::NoAgent,
            Self::Limit(..) | Self::Removed(_) => DialFailure::Tenant,
            Self::Backend(_) => DialFailure::BackendClose,
        }
    }
}

/// Why an agent is refused that belongs to a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinRefused {
    /// The tenant has as many as it may.
    #[error("tenant {0}: {1}")]
    Limit(Arc<str>, Reached),
    /// The tenant is in the rules no more.
    #[error("tenant {0} was removed")]
    Removed(Arc<str>),
}

/// Why a client of a tenant is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("tenant {0}: {1}")]
pub struct ConnectRefused(Arc<str>, Reached);

/// A tunnel of a tenant, with its place among those that the tenant may have.
#[derive(Debug)]
pub struct Dialed {
    /// The tunnel.
    pub tunnel: Arc<Tunnel>,
    _permit: Permit,
}

/// One tenant.
#[derive(Debug)]
pub struct Tenant {
    name: Arc<str>,
    agents: Agents,
    shared: Arc<Shared>,
    allowance: Allowance,
    is_removed: AtomicBool,
    metrics: Option<TenantMetrics>,
}

impl Tenant {
    /// The only tenant of a server: it has everything, and no name.
    #[must_use]
    pub(super) fn only(parts: Parts) -> Self {
        Self {
            name: "".into(),
            agents: Agents::new(parts.strategies, Arc::clone(&parts.shared.metrics)),
            shared: parts.shared,
            allowance: Allowance::default(),
            is_removed: AtomicBool::new(false),
            metrics: None,
        }
    }

    /// One of several, with a part of the memory.
    #[must_use]
    pub(super) fn one_of(parts: &Parts, name: &Arc<str>, limits: Limits) -> Self {
        let metrics = parts.shared.metrics.tenants.of(name);
        let refused = metrics.limited("buffered");
        let budget = Budget::part_of(&parts.shared.budget, limits.buffered, &refused);
        let tenant = Self {
            name: Arc::clone(name),
            agents: Agents::new(parts.strategies.clone(), Arc::clone(&parts.shared.metrics)),
            shared: Arc::new(Shared {
                metrics: Arc::clone(&parts.shared.metrics),
                budget: Arc::new(budget),
                limits: parts.shared.limits,
            }),
            allowance: Allowance::default(),
            is_removed: AtomicBool::new(false),
            metrics: Some(metrics),
        };
        tenant.allowance.set(limits);
        tenant
    }

    /// Its name in the rules; empty for the only one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Other limits from now on.
    pub(super) fn limit(&self, limits: Limits) {
        self.allowance.set(limits);
        self.shared.budget.limit(limits.buffered);
    }

    /// An inbox for a tunnel of a client that speaks like this.
    #[must_use]
    pub fn inbox(&self, mode: Mode) -> Inbox<Event> {
        self.shared.inbox(mode)
    }

    /// Dials by one of its agents. What becomes of it is reported to `inbox`.
    ///
    /// # Errors
    /// There is no agent, a limit is reached, or the agent has just gone.
    pub fn dial(
        &self,
        request: DialRequest,
        inbox: Arc<Inbox<Event>>,
    ) -> Result<Dialed, DialRefused> {
        if self.is_removed.load(Ordering::Acquire) {
            return Err(DialRefused::Removed(Arc::clone(&self.name)));
        }
        if let Some(metrics) = &self.metrics {
            metrics.dials.inc();
        }
        let permit = self
            .allowance
            .dial(Instant::now())
            .map_err(|reached| DialRefused::Limit(self.reached(reached), reached))?;
        let backend = self
            .agents
            .choose(&request.address)
            .ok_or(DialRefused::NoAgent)?;
        let tunnel = backend.dial(request, inbox)?;
        Ok(Dialed {
            tunnel,
            _permit: permit,
        })
    }

    /// Room for a client's connection, until it is dropped.
    ///
    /// # Errors
    /// The tenant's clients have as many as they may.
    pub fn connect(&self) -> Result<Permit, ConnectRefused> {
        let connected = self.allowance.connect();
        connected.map_err(|reached| ConnectRefused(self.reached(reached), reached))
    }

    fn reached(&self, limit: Reached) -> Arc<str> {
        if let Some(metrics) = &self.metrics {
            metrics.limited(limit.label()).inc();
        }
        Arc::clone(&self.name)
    }

    /// Takes an agent's stream.
    ///
    /// # Errors
    /// The tenant has as many as it may, or was removed.
    pub fn join(
        &self,
        agent_id: String,
        identifiers: Identifiers,
        extensions: Extensions,
    ) -> Result<Arc<Backend>, JoinRefused> {
        let shared = Arc::clone(&self.shared);
        let backend = Backend::new(agent_id, identifiers, extensions, shared);
        if let Some(most) = self.allowance.limits().agents {
            if !self.agents.add_within(&backend, most) {
                let reached = Reached::Agents(most);
                return Err(JoinRefused::Limit(self.reached(reached), reached));
            }
        } else {
            self.agents.add(&backend);
        }
        if self.is_removed.load(Ordering::Acquire) {
            self.agents.remove(&backend);
            return Err(JoinRefused::Removed(Arc::clone(&self.name)));
        }
        Ok(backend)
    }

    /// An agent's stream has ended.
    pub fn leave(&self, backend: &Arc<Backend>) {
        self.agents.remove(backend);
        backend.lost();
    }

    /// Whether the first strategy has an agent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.agents.is_ready()
    }

    /// All streams of its agents, to end or to count them.
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Backend>> {
        self.agents.all()
    }

    /// Its tunnels, dialled or established.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.allowance.tunnels()
    }

    /// Bytes that its tunnels hold.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.shared.budget.used()
    }

    /// Publishes its state in the metrics.
    pub(super) fn publish(&self) {
        let Some(metrics) = &self.metrics else { return };
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.agents.set(gauge(self.agents.connected()));
        metrics.tunnels.set(gauge(self.tunnels()));
        metrics.buffered.set(gauge(self.buffered()));
    }

    /// The rules have it no more: it dials nothing, and its agents' streams end.
    pub(super) fn remove(&self) {
        self.is_removed.store(true, Ordering::Release);
        for backend in self.streams() {
            backend.outbox.finish(None);
        }
    }
}
