// SPDX-License-Identifier: Apache-2.0

//! The node as the agent keeps it: a pass, which reconciles each part in its turn. `app` decides when a
//! pass is due.

mod earlier;

use std::net::SocketAddr;
use std::path::Path;
use std::process;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use proxy_kernel::sockets;
use proxy_netlink::route;
use rtnetlink::Handle;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::backend::select::Backend;
use crate::config::{Config, Guard};
use crate::conntrack::Repair;
use crate::link::{self, LinkTable, Vip, VipLink};
use crate::reconcile::events::PendingEvents;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Control, Mode, Part, Report};
use crate::services::Refused;
use crate::state::State;
use crate::state::history::History;
use crate::state::owned::Owned;

/// What the guard is called in reports.
const PART: Part = Part::Guard;

/// The node as the agent keeps it.
pub struct Node {
    handle: Handle,
    /// The task that carries the requests of `handle`; it ends at the first error of its socket.
    connection: JoinHandle<()>,
    /// The settings.
    pub config: Config,
    link: VipLink,
    /// The backend in use.
    pub backend: Backend,
    repair: Repair,
    started: SystemTime,
    /// What the passes of this agent have done.
    pub history: History,
    /// As the last pass left them; empty if it could not look.
    pub vips: Vec<Vip>,
    /// Listeners that do not count as the proxy.
    refused: Refused,
    /// What earlier starts have put on the node and is not known to be gone, and what this one puts there.
    owned: Owned,
}

/// What a pass of the agent that has published `state` would change now. Changes nothing.
///
/// # Errors
///
/// If the node cannot be looked at.
pub async fn drift(state: &State, run_dir: &Path) -> Result<Report> {
    let mut node = Node::open(state.as_dry_run(run_dir), Mode::DryRun).await?;
    // This does not restart the process, which may be the agent that serves the request.
    node.backend.assume_programs(state.programs.clone());
    // Without changes that only become due with time.
    Ok(node.look(Cause::Event).await)
}

/// The ClusterIPs that stale conntrack entries must not keep clients from.
fn repaired(config: &Config) -> Vec<SocketAddr> {
    let translated = config.services.iter().map(|service| service.cluster_ip);
    translated.chain(config.repair.iter().copied()).collect()
}

impl Node {
    /// Opens the backend and what else the passes need. Nothing of the data plane is changed.
    pub async fn open(config: Config, mode: Mode) -> Result<Self> {
        let (handle, connection) = link::connect().context("cannot open an rtnetlink socket")?;
        let owned = earlier::owned(&config).await;
        // Before the first change: the next process then knows all of them.
        if mode == Mode::Apply {
            earlier::publish(&owned, &config.run_dir);
        }
        let mut link =
            VipLink::new(&config.vips, &config.interface).with_scope(config.address_scope);
        link.set_earlier(owned.of_links());
        Ok(Self {
            handle,
            connection,
            link,
            owned,
            backend: Backend::open(&config, mode).await,
            repair: Repair::new(repaired(&config)),
            started: SystemTime::now(),
            history: History::default(),
            vips: Vec::new(),
            refused: Refused::default(),
            config,
        })
    }

    /// One pass: every part, also if others fail. Parts that no event reports are reconciled in a resync
    /// only.
    pub async fn pass(
        &mut self,
        mode: Mode,
        cause: Cause,
        events: PendingEvents,
        control: Control,
    ) -> Report {
        let mut report = Report {
            events,
            control,
            ..Report::default()
        };
        self.reconnect(&mut report);
        self.vips.clear();
        if cause == Cause::Resync {
            self.repair.reconcile(mode, &mut report).await;
        }
        let Some(mut table) = self.observe(&mut report).await else {
            // Without the list of links the other parts cannot be reconciled.
            return report;
        };
        let changes = report.changes.len();
        self.link
            .reconcile(&self.handle, &table, mode, &mut report)
            .await;
        if mode == Mode::Apply && report.changes.len() > changes {
            match self.observe(&mut report).await {
                Some(fresh) => table = fresh,
                None => return report,
            }
        }
        self.vips = table.vips(&self.config.vips, &self.config.interface);
        if mode == Mode::Apply {
            self.forget_gone(&table);
        }
        if report.is_stopped() {
            return report;
        }
        if self.config.guard == Guard::Auto {
            let uplinks = route::uplinks().await;
            table.uplinks = report.attempt(PART, "look for the node's uplinks", uplinks);
        }
        self.backend
            .reconcile(&self.handle, &table, (mode, cause), &mut report)
            .await;
        if mode == Mode::Apply {
            self.log_refused_listeners();
            if cause == Cause::Resync {
                self.backend.forget_counters(&table);
            }
        }
        link::report_if_lost(&self.connection, &mut report);
        report
    }

    /// Logs what listens in the proxy's place and does not count as the proxy.
    fn log_refused_listeners(&mut self) {
        let Config {
            services,
            proxy_listener,
            ..
        } = &self.config;
        if services.is_empty() || !self.backend.ends_services() {
            return;
        }
        // Health and `doctor` report what cannot be read now.
        if let Ok(listeners) = sockets::listeners() {
            self.refused.update(services, &listeners, *proxy_listener);
        }
    }

    /// A pass that changes nothing.
    pub async fn look(&mut self, cause: Cause) -> Report {
        let (events, control) = (PendingEvents::default(), Control::default());
        self.pass(Mode::DryRun, cause, events, control).await
    }

    /// Replaces an rtnetlink connection that was lost.
    fn reconnect(&mut self, report: &mut Report) {
        if !self.connection.is_finished() {
            return;
        }
        if let Some(opened) =
            report.attempt(link::PART, "open an rtnetlink socket", link::connect())
        {
            (self.handle, self.connection) = opened;
        }
    }

    async fn observe(&self, report: &mut Report) -> Option<LinkTable> {
        let mut vips = self.owned.ips();
        vips.extend(&self.config.vips);
        let vips: Vec<_> = vips.into_iter().collect();
        let table = link::observe(&vips, &self.config.service_ips()).await;
        report.attempt(link::PART, "look at the node's links", table)
    }

    /// The state that the agent publishes.
    pub fn state(&self) -> State {
        State {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            started: self.started,
            settings: self.config.clone(),
            backend: self.backend.choice(),
            guard: self.backend.guarded(),
            upstream: self.backend.upstream().clone(),
            programs: self.backend.programs(),
            history: self.history.clone(),
        }
    }

    /// For `status` and `doctor`.
    pub fn store_state(&self, state: &State) {
        if let Err(error) = state.store(&self.config.run_dir) {
            warn!("{error}");
        }
    }
}
