// SPDX-License-Identifier: Apache-2.0

//! The agent: one pass over the node after the other, each part in its turn.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use rtnetlink::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};
use tracing::{info, warn};

use crate::backend::ebpf::Ids;
use crate::backend::select::Backend;
use crate::config::{BackendChoice, Config};
use crate::conntrack::Repair;
use crate::kernel::capabilities::{self, Capability};
use crate::kernel::monitor::{Interest, Monitor};
use crate::link::{self, LinkTable, VipLink};
use crate::lock::{self, Lock};
use crate::reconcile::told::Told;
use crate::reconcile::trigger::{Cause, Trigger};
use crate::reconcile::{Mode, Report, failed};
use crate::state::State;
use crate::state::history::History;

/// How often debug lines of the eBPF programs are fetched.
const LOG_INTERVAL: Duration = Duration::from_millis(200);
/// Tables and chains of iptables-nft that hold rules of ours.
const IPTABLES_CHAINS: [(&str, &str); 5] = [
    ("raw", "PREROUTING"),
    ("raw", "OUTPUT"),
    ("mangle", "INPUT"),
    ("filter", "INPUT"),
    ("filter", "OUTPUT"),
];

/// The node as the agent keeps it.
struct Node {
    handle: Handle,
    /// Carries what is asked by `handle`; it ends for good at the first error of its socket.
    connection: JoinHandle<()>,
    config: Config,
    link: VipLink,
    backend: Backend,
    repair: Repair,
    started: SystemTime,
    history: History,
}

/// Runs the agent as it was told to.
///
/// # Errors
///
/// If it cannot start. What it cannot do later is logged, reported and tried again.
pub async fn run(config: Config) -> Result<ExitCode> {
    if !capabilities::has(Capability::NetAdmin).context("cannot read the agent's capabilities")? {
        bail!(
            "proxy-agent needs the capability NET_ADMIN: run it as root, or give it to the \
             container (securityContext.capabilities.add: [NET_ADMIN])"
        );
    }
    let mode = if config.dry_run {
        Mode::DryRun
    } else {
        Mode::Apply
    };
    let _lock = match mode {
        Mode::Apply => Some(Lock::take(&config.run_dir)?),
        Mode::DryRun => None,
    };
    // Before the first look, so that nothing that happens after it is missed.
    let monitor = Monitor::open(interest(&config)).context("cannot listen to kernel events")?;
    let mut node = Node::open(config, mode).await?;
    match (mode, node.config.daemon) {
        (Mode::DryRun, _) => Ok(node.tell_plan().await),
        (Mode::Apply, false) => Ok(node.once().await),
        (Mode::Apply, true) => node.daemon(monitor).await,
    }
}

/// What a pass of the agent that has told `state` would change now. Changes nothing.
///
/// # Errors
///
/// If the node cannot be looked at.
pub async fn drift(state: &State, run_dir: &Path) -> Result<Report> {
    let mut node = Node::open(state.as_dry_run(run_dir), Mode::DryRun).await?;
    node.backend.go_by(state.programs.clone());
    // Without what only time brings about.
    Ok(node.pass(Mode::DryRun, Cause::Event, Told::default()).await)
}

/// The eBPF programs of the agent that runs with this run directory; none if none does.
fn programs_of_running(run_dir: &Path) -> Ids {
    match (lock::is_held(run_dir), State::load(run_dir)) {
        (Ok(true), Ok(Some(state))) => state.programs,
        _ => Ids::new(),
    }
}

/// The ClusterIPs that stale conntrack entries must not keep clients from.
fn repaired(config: &Config) -> Vec<SocketAddr> {
    let translated = config.services.iter().map(|service| service.cluster_ip);
    translated.chain(config.repair.iter().copied()).collect()
}

fn interest(config: &Config) -> Interest {
    Interest {
        vips: config.vips.clone(),
        tables: vec![crate::backend::tables::NAME],
        chains: IPTABLES_CHAINS.to_vec(),
        pins: matches!(config.backend, BackendChoice::Auto | BackendChoice::Ebpf)
            .then(|| config.bpffs.clone()),
    }
}

impl Node {
    /// Opens the backend and what else the passes need. Nothing of the data plane is changed.
    async fn open(config: Config, mode: Mode) -> Result<Self> {
        let (handle, connection) = connect().context("cannot open an rtnetlink socket")?;
        Ok(Self {
            handle,
            connection,
            link: VipLink::new(&config.vips, &config.interface),
            backend: Backend::open(&config, mode).await,
            repair: Repair::new(repaired(&config)),
            started: SystemTime::now(),
            history: History::default(),
            config,
        })
    }

    /// One pass: every part, whatever becomes of the others. What no event tells of is looked at in
    /// a resync only.
    async fn pass(&mut self, mode: Mode, cause: Cause, told: Told) -> Report {
        let mut report = Report {
            told,
            ..Report::default()
        };
        self.reconnect(&mut report);
        if cause == Cause::Resync {
            self.repair.reconcile(mode, &mut report).await;
        }
        let Some(mut table) = self.observe(&mut report).await else {
            // Without the list of links only what needs none can be looked at.
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
        self.backend
            .reconcile(&self.handle, &table, (mode, cause), &mut report)
            .await;
        if mode == Mode::Apply && cause == Cause::Resync {
            self.backend.forget_counters(&table);
        }
        report
    }

    /// Replaces an rtnetlink connection that was lost.
    fn reconnect(&mut self, report: &mut Report) {
        if !self.connection.is_finished() {
            return;
        }
        match connect() {
            Ok((handle, connection)) => (self.handle, self.connection) = (handle, connection),
            Err(error) => failed("link", "open an rtnetlink socket", &error, report),
        }
    }

    async fn observe(&self, report: &mut Report) -> Option<LinkTable> {
        link::observe(&self.config.vips)
            .await
            .inspect_err(|error| failed("link", "look at the node's links", error, report))
            .ok()
    }

    /// `--dry-run`.
    async fn tell_plan(&mut self) -> ExitCode {
        self.backend
            .go_by(programs_of_running(&self.config.run_dir));
        let report = self
            .pass(Mode::DryRun, Cause::Resync, Told::default())
            .await;
        for change in &report.changes {
            println!("{change}");
        }
        if report.is_clean() {
            println!("nothing to do: the node is as desired");
        }
        exit_code(report.failures.is_empty())
    }

    /// `--daemon=false`: a pass, and a second look that must find nothing left to do.
    async fn once(&mut self) -> ExitCode {
        let done = self.pass(Mode::Apply, Cause::Resync, Told::default()).await;
        // Without what only time brings about, as conntrack entries that have become stale.
        let left = self.pass(Mode::DryRun, Cause::Event, Told::default()).await;
        for change in &left.changes {
            warn!("not as desired after the pass: {change}");
        }
        let settled = done.failures.is_empty() && left.is_clean();
        if settled {
            info!("the node is as desired");
        }
        exit_code(settled)
    }

    async fn daemon(&mut self, monitor: Monitor) -> Result<ExitCode> {
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut trigger = Trigger::new(monitor, self.config.sync_interval);
        let mut logs = interval(LOG_INTERVAL);
        let debug = self.config.log.ebpf_debug();
        let mut ready = None;
        let mut due = Some(Cause::Resync);
        let by = loop {
            if let Some(cause) = due {
                let (begun, at) = (Instant::now(), SystemTime::now());
                let report = self.pass(Mode::Apply, cause, trigger.told()).await;
                let works = report.failures.is_empty();
                trigger.passed(begun, !works);
                tell_readiness(&mut ready, works);
                let news = self.history.record(&report, cause, at, begun.elapsed());
                // Without news too if somebody has removed it.
                if news || !State::exists(&self.config.run_dir) {
                    self.tell_state();
                }
            }
            due = tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                cause = trigger.wait() => Some(cause),
                _ = logs.tick(), if debug => {
                    self.backend.forward_logs();
                    None
                }
            };
        };
        info!("{by}: stopping");
        if !self.config.cleanup {
            info!("the VIP and the data plane stay in place; --cleanup would remove them");
            return Ok(ExitCode::SUCCESS);
        }
        let report = self.teardown().await;
        Ok(exit_code(report.failures.is_empty()))
    }

    /// For `status` and `doctor`.
    fn tell_state(&self) {
        let state = State::new(
            &self.config,
            self.started,
            self.backend.choice(),
            self.backend.programs(),
            self.history.clone(),
        );
        if let Err(error) = state.store(&self.config.run_dir) {
            warn!("{error}");
        }
    }

    /// Removes everything of ours, in the reverse order of a pass.
    async fn teardown(&mut self) -> Report {
        let mut report = Report::default();
        self.reconnect(&mut report);
        let table = self.observe(&mut report).await;
        self.backend
            .teardown(&self.handle, table.as_ref(), &mut report)
            .await;
        self.reconnect(&mut report);
        self.link.teardown(&self.handle, &mut report).await;
        if let Err(error) = State::remove(&self.config.run_dir) {
            failed("state", "remove the state", &error, &mut report);
        }
        if report.failures.is_empty() {
            info!("cleaned up");
        }
        report
    }
}

fn connect() -> io::Result<(Handle, JoinHandle<()>)> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    Ok((handle, tokio::spawn(connection)))
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("cannot listen to signals")
}

fn tell_readiness(ready: &mut Option<bool>, works: bool) {
    if *ready == Some(works) {
        return;
    }
    *ready = Some(works);
    if works {
        info!("ready");
    } else {
        warn!("not ready: see the errors above; trying again");
    }
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
