// SPDX-License-Identifier: Apache-2.0

//! One tenant: its agents, and the only way to dial through them. Code that holds a tenant reaches the agents of that
//! tenant and no others, because there is no list of all agents.

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

/// The values that all tenants share.
#[derive(Debug)]
pub struct Parts {
    /// The strategies for choosing an agent, in order.
    pub strategies: Vec<Strategy>,
    /// The metrics, the memory of all inboxes, and the limits of one inbox.
    pub shared: Arc<Shared>,
}

/// Why a dial is refused before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialRefused {
    /// No strategy finds an agent.
    #[error("{NO_AGENT}")]
    NoAgent,
    /// A limit of the tenant is reached.
    #[error("tenant {0}: {1}")]
    Limit(Arc<str>, Reached),
    /// The tenant was removed from the rules.
    #[error("tenant {0} was removed")]
    Removed(Arc<str>),
    /// The agent's stream has just ended.
    #[error(transparent)]
    Backend(#[from] backend::DialRefused),
}

impl DialRefused {
    /// Returns the reason under which the refusal is counted.
    #[must_use]
    pub const fn failure(&self) -> DialFailure {
        match self {
            Self::NoAgent => DialFailure::NoAgent,
            Self::Limit(..) | Self::Removed(_) => DialFailure::Tenant,
            Self::Backend(_) => DialFailure::BackendClose,
        }
    }
}

/// Why the stream of an agent of this tenant is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinRefused {
    /// The tenant's limit of agents is reached.
    #[error("tenant {0}: {1}")]
    Limit(Arc<str>, Reached),
    /// The tenant was removed from the rules.
    #[error("tenant {0} was removed")]
    Removed(Arc<str>),
}

/// The error of a client's connection if the tenant's limit of connections is reached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("tenant {0}: {1}")]
pub struct ConnectRefused(Arc<str>, Reached);

/// A tunnel, together with its permit from the tenant's limit of tunnels.
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
    /// Creates a server's only tenant. It gets all the memory, and its name is empty.
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

    /// Creates one of several tenants; it gets a part of the memory.
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

    /// Returns the tenant's name in the rules; empty for a server's only tenant.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Replaces the limits.
    pub(super) fn limit(&self, limits: Limits) {
        self.allowance.set(limits);
        self.shared.budget.limit(limits.buffered);
    }

    /// Creates an inbox for a tunnel of a client in this mode.
    #[must_use]
    pub fn inbox(&self, mode: Mode) -> Inbox<Event> {
        self.shared.inbox(mode)
    }

    /// Sends a dial request to one of the tenant's agents. The outcome is added to `inbox`.
    ///
    /// # Errors
    /// Returns an error if there is no agent, if a limit is reached, if the tenant was removed, or if the agent's
    /// stream has just ended.
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

    /// Returns a permit for a client's connection. The connection counts until the permit is dropped.
    ///
    /// # Errors
    /// Returns an error if the tenant's limit of client connections is reached.
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

    /// Adds an agent's stream.
    ///
    /// # Errors
    /// Returns an error if the tenant's limit of agents is reached, or if the tenant was removed.
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

    /// Removes an agent's stream that has ended.
    pub fn leave(&self, backend: &Arc<Backend>) {
        self.agents.remove(backend);
        backend.lost();
    }

    /// Returns whether the first strategy has an agent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.agents.is_ready()
    }

    /// Returns all streams of the tenant's agents, so that the caller can end or count them.
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Backend>> {
        self.agents.all()
    }

    /// Returns the number of tunnels, dialed or established.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.allowance.tunnels()
    }

    /// Returns the number of bytes that the tenant's tunnels hold.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.shared.budget.used()
    }

    /// Publishes the tenant's state in the metrics.
    pub(super) fn publish(&self) {
        let Some(metrics) = &self.metrics else { return };
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.agents.set(gauge(self.agents.connected()));
        metrics.tunnels.set(gauge(self.tunnels()));
        metrics.buffered.set(gauge(self.buffered()));
    }

    /// Marks the tenant as removed from the rules: further dials are refused, and its agents' streams end.
    pub(super) fn remove(&self) {
        self.is_removed.store(true, Ordering::Release);
        for backend in self.streams() {
            backend.outbox.finish(None);
        }
    }
}
