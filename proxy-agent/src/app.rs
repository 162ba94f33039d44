// SPDX-License-Identifier: Apache-2.0

//! The agent: what a pass over the node is, each part in its turn. When passes are due is the
//! business of `daemon.rs`.

mod daemon;
mod earlier;
mod signals;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use netlink_sys::AsyncSocket as _;
use rtnetlink::Handle;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::backend::ebpf::{self, Ids};
use crate::backend::select::Backend;
use crate::backend::tables;
use crate::claims::Claims;
use crate::config::{BackendChoice, Config, Guard};
use crate::conntrack::Repair;
use crate::dnat;
use crate::kernel::author;
use crate::kernel::capabilities::{self, Capability};
use crate::kernel::features;
use crate::kernel::monitor::Interest;
use crate::kernel::sockets;
use crate::link::{self, LinkTable, Vip, VipLink};
use crate::lock::{self, Lock};
use crate::reconcile::told::Told;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Control, Mode, Report, failed, part};
use crate::services::{IPVS_LINK, Refused};
use crate::state::State;
use crate::state::history::History;
use crate::state::owned::Owned;

/// The exit code of a value that cannot stand.
const BAD_USAGE: u8 = 2;
/// What the guard is called in reports.
const PART: &str = part::GUARD;
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
    /// As the last pass left them; empty if it could not look.
    vips: Vec<Vip>,
    /// Listeners that do not count as the proxy.
    refused: Refused,
    /// What earlier starts have put on the node and is not known to be gone, and what this one puts there.
    owned: Owned,
}

/// Runs the agent as it was told to.
///
/// # Errors
///
/// If it cannot start. What it cannot do later is logged, reported and tried again.
pub async fn run(config: Config) -> Result<ExitCode> {
    check_rights()?;
    if config.dry_run {
        return Ok(Node::start(config, Mode::DryRun).await?.tell_plan().await);
    }
    if let Some(refusal) = services_refused(&config).await {
        eprintln!("error: {refusal}");
        return Ok(ExitCode::from(BAD_USAGE));
    }
    // First the claims: one that is refused has not even left a file.
    let _claims = Claims::take(&config).await?;
    let lock = Lock::take(&config.run_dir)?;
    if config.daemon {
        return Box::pin(daemon::run(config, lock)).await;
    }
    Ok(Node::start(config, Mode::Apply).await?.once().await)
}

/// Why a Service cannot end on the proxy on this node, if that is so: it is one of the node's own addresses.
/// With IPVS every ClusterIP is one; there the Services are left to IPVS.
async fn services_refused(config: &Config) -> Option<String> {
    let may_be_ebpf = matches!(config.backend, BackendChoice::Auto | BackendChoice::Ebpf);
    if config.services.is_empty() || !may_be_ebpf || dnat::uses_ipvs() {
        return None;
    }
    let table = link::observe(&[], &config.service_ips()).await.ok()?;
    // What cannot be asked now is reported by the first pass.
    let (handle, _connection) = connect().ok()?;
    for service in &config.services {
        let ip = service.cluster_ip.ip();
        let link = table.services.get(&ip).map(|index| table.name_of(*index));
        if link.as_deref() != Some(IPVS_LINK) && ebpf::is_own_address(&handle, ip).await {
            return Some(format!(
                "invalid value '{}' for '--service-address': {ip} is an address of this node already; \
                 give the ClusterIP of a Service",
                service.cluster_ip
            ));
        }
    }
    None
}

/// Checks that the agent may change anything at all.
///
/// # Errors
///
/// If it may not: says what it needs.
pub fn check_rights() -> Result<()> {
    if !capabilities::has(Capability::NetAdmin).context("cannot read the agent's capabilities")? {
        bail!(
            "proxy-agent needs the capability NET_ADMIN: run it as root, or give it to the \
             container (securityContext.capabilities.add: [NET_ADMIN])"
        );
    }
    Ok(())
}

/// What a pass of the agent that has told `state` would change now. Changes nothing.
///
/// # Errors
///
/// If the node cannot be looked at.
pub async fn drift(state: &State, run_dir: &Path) -> Result<Report> {
    let mut node = Node::open(state.as_dry_run(run_dir), Mode::DryRun).await?;
    // Nothing of it starts this process again: it may be the agent that is asked by others.
    node.backend.go_by(state.programs.clone());
    // Without what only time brings about.
    Ok(node.look(Cause::Event).await)
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
        addresses: [config.vips.clone(), config.service_ips()].concat(),
        tables: vec![
            tables::name(config.instance),
            tables::guard_name(config.instance),
            tables::services_name(config.instance),
            tables::upstream_name(config.instance),
        ],
        routes: config.guard == Guard::Auto,
        local_routes: config.service_ips(),
        chains: IPTABLES_CHAINS.to_vec(),
        pins: matches!(config.backend, BackendChoice::Auto | BackendChoice::Ebpf)
            .then(|| config.bpffs.clone()),
    }
}

impl Node {
    /// As [`Node::open`]; becomes a new process first where that is needed.
    async fn start(config: Config, mode: Mode) -> Result<Self> {
        let node = Self::open(config, mode).await?;
        start_again_if_misjudged(&node.backend);
        Ok(node)
    }

    /// Opens the backend and what else the passes need. Nothing of the data plane is changed.
    async fn open(config: Config, mode: Mode) -> Result<Self> {
        let (handle, connection) = connect().context("cannot open an rtnetlink socket")?;
        let owned = earlier::owned(&config).await;
        // Before the first change: whoever comes after this process then knows of all of it.
        if mode == Mode::Apply {
            earlier::tell(&owned, &config.run_dir);
        }
        let mut link =
            VipLink::new(&config.vips, &config.interface).with_scope(config.address_scope);
        link.go_by(&owned);
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

    /// One pass: every part, whatever becomes of the others. What no event tells of is looked at in
    /// a resync only.
    async fn pass(&mut self, mode: Mode, cause: Cause, told: Told, control: Control) -> Report {
        let mut report = Report {
            told,
            control,
            ..Report::default()
        };
        self.reconnect(&mut report);
        self.vips.clear();
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
        self.vips = table.vips(&self.config.vips, &self.config.interface);
        if mode == Mode::Apply {
            self.forget_gone(&table);
        }
        if report.is_stopped() {
            return report;
        }
        if self.config.guard == Guard::Auto {
            table.uplinks = link::uplinks()
                .await
                .inspect_err(|error| {
                    failed(PART, "look for the node's uplinks", error, &mut report);
                })
                .ok();
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
        tell_if_lost(&self.connection, &mut report);
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
        // What cannot be read now is told by the endpoints of health and by `doctor`.
        if let Ok(listeners) = sockets::listeners() {
            self.refused.update(services, &listeners, *proxy_listener);
        }
    }

    /// A pass that changes nothing.
    async fn look(&mut self, cause: Cause) -> Report {
        let (told, control) = (Told::default(), Control::default());
        self.pass(Mode::DryRun, cause, told, control).await
    }

    /// Replaces an rtnetlink connection that was lost.
    fn reconnect(&mut self, report: &mut Report) {
        if !self.connection.is_finished() {
            return;
        }
        match connect() {
            Ok((handle, connection)) => (self.handle, self.connection) = (handle, connection),
            Err(error) => failed(link::PART, "open an rtnetlink socket", &error, report),
        }
    }

    async fn observe(&self, report: &mut Report) -> Option<LinkTable> {
        let mut vips = self.owned.ips();
        vips.extend(&self.config.vips);
        let vips: Vec<_> = vips.into_iter().collect();
        link::observe(&vips, &self.config.service_ips())
            .await
            .inspect_err(|error| failed(link::PART, "look at the node's links", error, report))
            .ok()
    }

    /// `--dry-run`.
    async fn tell_plan(&mut self) -> ExitCode {
        self.backend
            .go_by(programs_of_running(&self.config.run_dir));
        let report = self.look(Cause::Resync).await;
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
        let (told, control) = (Told::default(), Control::default());
        let done = self.pass(Mode::Apply, Cause::Resync, told, control).await;
        // Without what only time brings about, as conntrack entries that have become stale.
        let left = self.look(Cause::Event).await;
        for change in &left.changes {
            warn!("not as desired after the pass: {change}");
        }
        let settled = done.failures.is_empty() && left.is_clean();
        if settled {
            info!("the node is as desired");
        }
        exit_code(settled)
    }

    /// For the service manager.
    fn status(&self, works: bool) -> String {
        let state = if works {
            "the node is as desired"
        } else {
            "not ready, trying again"
        };
        format!("backend {}; {state}", self.backend.choice())
    }

    /// What others are told.
    fn state(&self) -> State {
        State::new(
            &self.config,
            self.started,
            (
                self.backend.choice(),
                self.backend.guarded(),
                self.backend.upstream().clone(),
            ),
            self.backend.programs(),
            self.history.clone(),
        )
    }

    /// For `status` and `doctor`.
    fn tell_state(&self, state: &State) {
        if let Err(error) = state.store(&self.config.run_dir) {
            warn!("{error}");
        }
    }
}

/// Becomes a new process where this one is wrong about the kernel for good.
fn start_again_if_misjudged(backend: &Backend) {
    if backend.misjudges_kernel() {
        warn!("starting again: this process has misjudged what the kernel can do");
        let error = features::start_again();
        warn!("cannot start again: {error}");
    }
}

/// Opens an rtnetlink socket; the task ends when the connection is lost.
///
/// # Errors
///
/// The kernel's answer.
pub fn connect() -> io::Result<(Handle, JoinHandle<()>)> {
    let (mut connection, handle, _) = rtnetlink::new_connection()?;
    author::note_own_port(
        connection
            .socket_mut()
            .socket_mut()
            .bind_auto()?
            .port_number(),
    );
    Ok((handle, tokio::spawn(connection)))
}

/// rtnetlink takes a request for done when the connection is lost before the answer.
pub fn tell_if_lost(connection: &JoinHandle<()>, report: &mut Report) {
    if connection.is_finished() {
        let lost = io::Error::from(io::ErrorKind::ConnectionAborted);
        failed(link::PART, "make sure of the last change", &lost, report);
    }
}

/// 0 or 1.
pub fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
