// SPDX-License-Identifier: Apache-2.0

//! The agent as a program: checks before the start, dry run, single pass, and the daemon.

mod daemon;
mod signals;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use proxy_kernel::capabilities;
use proxy_netlink::events::Interest;
use proxy_rules::dnat;
use tracing::{info, warn};

use crate::backend::ebpf::{self, Ids};
use crate::backend::select::Backend;
use crate::backend::tables;
use crate::claims::Claims;
use crate::config::{AcceptRules, BackendChoice, Config, Guard};
use crate::features;
use crate::link;
use crate::lock::{self, Lock};
use crate::node::Node;
use crate::reconcile::events::PendingEvents;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Control, Mode, exit_code};
use crate::services::IPVS_LINK;
use crate::state::State;

/// Exit code for invalid settings that only the node's state reveals.
const BAD_USAGE: u8 = 2;
/// Tables and chains of iptables-nft that hold rules of the agent.
const IPTABLES_CHAINS: [(&str, &str); 5] = [
    ("raw", "PREROUTING"),
    ("raw", "OUTPUT"),
    ("mangle", "INPUT"),
    FILTERS[0],
    FILTERS[1],
];
/// Those that get ACCEPT rules as soon as they drop packets.
const FILTERS: [(&str, &str); 2] = [("filter", "INPUT"), ("filter", "OUTPUT")];

/// Runs the agent in the mode of `config`: dry run, single pass or daemon.
///
/// # Errors
///
/// If it cannot start. Later failures are logged, reported and retried.
pub async fn run(config: Config) -> Result<ExitCode> {
    capabilities::check()?;
    if config.dry_run {
        return Ok(print_plan(&mut start(config, Mode::DryRun).await?).await);
    }
    if let Some(refusal) = services_refused(&config).await {
        eprintln!("error: {refusal}");
        return Ok(ExitCode::from(BAD_USAGE));
    }
    // The claims come first: an agent that is refused must not leave files behind.
    let _claims = Claims::take(&config, ebpf::filter_handle(config.instance)).await?;
    let lock = Lock::take(&config.run_dir)?;
    if config.daemon {
        return Box::pin(daemon::run(config, lock)).await;
    }
    Ok(once(&mut start(config, Mode::Apply).await?).await)
}

/// The error for a ClusterIP that cannot end on the proxy because it is one of the node's own addresses. With IPVS every
/// ClusterIP is an address of the node; Services are left to IPVS then.
async fn services_refused(config: &Config) -> Option<String> {
    let may_be_ebpf = matches!(config.backend, BackendChoice::Auto | BackendChoice::Ebpf);
    if config.services.is_empty() || !may_be_ebpf || dnat::uses_ipvs() {
        return None;
    }
    let table = link::observe(&[], &config.service_ips()).await.ok()?;
    // A failed lookup is reported by the first pass.
    let (handle, _connection) = link::connect().ok()?;
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

/// Ids of the eBPF programs of the agent that runs with this run directory; empty if none runs.
fn programs_of_running(run_dir: &Path) -> Ids {
    match (lock::is_held(run_dir), State::load(run_dir)) {
        (Ok(true), Ok(Some(state))) => state.programs,
        _ => Ids::new(),
    }
}

fn interest(config: &Config) -> Interest {
    Interest {
        addresses: [config.vips.clone(), config.service_ips()].concat(),
        tables: vec![
            tables::name(config.instance),
            tables::guard_name(config.instance),
            tables::services_name(config.instance),
        ],
        routes: config.guard == Guard::Auto,
        local_routes: config.service_ips(),
        chains: IPTABLES_CHAINS.to_vec(),
        filters: if config.accept_rules == AcceptRules::Never {
            Vec::new()
        } else {
            FILTERS.to_vec()
        },
    }
}

/// The directory of pins to watch, if the backend may have pins.
fn watched_pins(config: &Config) -> Option<PathBuf> {
    matches!(config.backend, BackendChoice::Auto | BackendChoice::Ebpf)
        .then(|| config.bpffs.clone())
}

/// Opens the node; re-executes the process first if its cached kernel features are stale.
async fn start(config: Config, mode: Mode) -> Result<Node> {
    let node = Node::open(config, mode).await?;
    reexec_if_features_are_stale(&node.backend);
    Ok(node)
}

/// `--dry-run`: prints the plan.
async fn print_plan(node: &mut Node) -> ExitCode {
    node.backend
        .assume_programs(programs_of_running(&node.config.run_dir));
    let report = node.look(Cause::Resync).await;
    for change in &report.changes {
        println!("{change}");
    }
    if report.is_clean() {
        println!("nothing to do: the node is as desired");
    }
    exit_code(report.failures.is_empty())
}

/// `--daemon=false`: one pass, verified by a dry run that must find nothing to do.
async fn once(node: &mut Node) -> ExitCode {
    let (events, control) = (PendingEvents::default(), Control::default());
    let done = node.pass(Mode::Apply, Cause::Resync, events, control).await;
    // Without checks that only a resync makes, such as for conntrack entries that have become stale since.
    let left = node.look(Cause::Event).await;
    for change in &left.changes {
        warn!("still to do after the pass: {change}");
    }
    let settled = done.failures.is_empty() && left.is_clean();
    if settled {
        info!("the node is as desired");
    }
    exit_code(settled)
}

/// The status line for the service manager.
fn status(node: &Node, works: bool) -> String {
    let state = if works {
        "the node is as desired"
    } else {
        "not ready, retrying"
    };
    format!("backend {}; {state}", node.backend.choice())
}

/// Re-executes the process if it cached wrong results of kernel feature probes, which it cannot correct.
fn reexec_if_features_are_stale(backend: &Backend) {
    if backend.has_stale_features() {
        warn!("re-executing: the cached results of kernel feature probes are wrong");
        let error = features::start_again();
        warn!("cannot re-execute: {error}");
    }
}
