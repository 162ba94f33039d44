// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent cleanup` and `--cleanup`: removes all objects of an agent from the node, of any backend and version. The
//! agent must not run.
//!
//! Each part recognises its own objects; this module defines their order and finds out settings without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_kernel::capabilities;

use crate::backend::discover;
use crate::backend::ebpf::{self, Drained, Ebpf, Tables};
use crate::backend::iptables::Iptables;
use crate::config::Config;
use crate::instance::{Instance, paths};
use crate::link::{self, LinkTable, VipLink};
use crate::lock::Lock;
use crate::reconcile::{Mode, Part, Report, carry_out, exit_code};
use crate::state;
use crate::state::owned::{self, Owned};

/// The part for files of the run directory.
const PART: Part = Part::State;

/// The options of the subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Only print what would be removed.
    pub dry_run: bool,
    /// The name of the agent.
    pub instance: Instance,
    /// Run directory of the agent.
    pub run_dir: PathBuf,
    /// Directory of the pins, if given.
    pub bpffs: Option<PathBuf>,
    /// The VIPs, if given.
    pub vips: Vec<IpAddr>,
    /// The link that carries them, if given.
    pub interface: Option<String>,
    /// How long open connections to Services may continue.
    pub drain_timeout: Duration,
}

/// The objects to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The name of the agent.
    pub instance: Instance,
    /// The VIPs; empty if they are unknown.
    pub vips: Vec<IpAddr>,
    /// The link that should carry them, if known.
    pub interface: Option<String>,
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Run directory of the agent.
    pub run_dir: PathBuf,
    /// How long open connections to Services may continue.
    pub drain_timeout: Duration,
    /// Objects without marks of all agents with this run directory, including earlier starts.
    pub owned: Owned,
}

impl From<&Config> for Scope {
    fn from(config: &Config) -> Self {
        Self {
            instance: config.instance,
            vips: config.vips.clone(),
            interface: Some(config.interface.clone()),
            bpffs: config.bpffs.clone(),
            run_dir: config.run_dir.clone(),
            drain_timeout: config.drain_timeout,
            owned: Owned::default(),
        }
    }
}

/// Removes the objects, or lists them in a dry run, and prints the result. The exit code is 0 if nothing is left.
///
/// # Errors
///
/// If an agent runs, or the process lacks capabilities.
pub async fn run(request: &Request) -> Result<ExitCode> {
    capabilities::check()?;
    let used = Lock::was_used(&request.run_dir);
    let lock = if request.dry_run {
        None
    } else {
        let taken = Lock::take(&request.run_dir);
        Some(taken.context("nothing was removed")?)
    };
    let mode = if request.dry_run {
        Mode::DryRun
    } else {
        Mode::Apply
    };
    let mut report = Report::default();
    let scope = scope(request, &mut report).await;
    remove_everything(&scope, mode, &mut report).await;
    let mut left = Report::default();
    if let Some(lock) = lock {
        remove_everything(&scope, Mode::DryRun, &mut left).await;
        if report.failures.is_empty() && lock.remove() && used {
            report.changed(PART, format!("remove {}", request.run_dir.display()));
        }
    }
    print(&scope, mode, &report, &left);
    Ok(exit_code(report.failures.is_empty() && left.is_clean()))
}

/// Determines the scope: options take precedence over the agent's state file, and that over its rules and maps. A failure to
/// read those is in the report, because VIPs may then remain.
async fn scope(request: &Request, report: &mut Report) -> Scope {
    let remembered = state::remembered(&request.run_dir);
    let bpffs = request.bpffs.clone().or(remembered.bpffs);
    let bpffs = bpffs.unwrap_or_else(|| paths::bpffs(request.instance));
    let vips = match (&request.vips[..], &remembered.vips[..]) {
        ([], []) => discover::vips(request.instance, &bpffs, report).await,
        ([], remembered) => remembered.to_vec(),
        (given, _) => given.to_vec(),
    };
    let owned = Owned::load(&request.run_dir).without_claimed(&vips).await;
    Scope {
        instance: request.instance,
        owned,
        vips,
        interface: request.interface.clone().or(remembered.interface),
        bpffs,
        run_dir: request.run_dir.clone(),
        drain_timeout: request.drain_timeout,
    }
}

fn print(scope: &Scope, mode: Mode, report: &Report, left: &Report) {
    for change in &report.changes {
        match mode {
            Mode::Apply => println!("done: {change}"),
            Mode::DryRun => println!("{change}"),
        }
    }
    for failure in &report.failures {
        println!("failed: {}: {failure}", failure.part);
    }
    let is_new = |failure: &&_| !report.failures.contains(failure);
    for failure in left.failures.iter().filter(is_new) {
        println!("failed: {}: {failure}", failure.part);
    }
    for change in &left.changes {
        println!("still to do: {change}");
    }
    if scope.vips.is_empty() {
        println!(
            "the VIPs are unknown: {} has no state file of an agent, and no rule or map contains them; if the \
             node may still carry one, give it with --ip-address",
            scope.run_dir.display()
        );
    }
    let settled = report.failures.is_empty() && left.is_clean();
    match (settled, mode) {
        (false, _) => println!("objects of proxy-agent are left, or could not be searched for"),
        (true, _) if report.changes.is_empty() => println!("nothing to do"),
        (true, Mode::Apply) => println!("no objects of proxy-agent are left"),
        (true, Mode::DryRun) => println!("dry run: nothing was changed"),
    }
}

/// Removes all objects, in the reverse order of a pass. A failure is recorded and does not keep the other parts from being
/// removed.
pub async fn remove_everything(scope: &Scope, mode: Mode, report: &mut Report) {
    let opened = report.attempt(link::PART, "open an rtnetlink socket", link::connect());
    let Some((mut handle, mut connection)) = opened else {
        return;
    };
    let all: BTreeSet<_> = scope
        .owned
        .ips()
        .into_iter()
        .chain(scope.vips.clone())
        .collect();
    let all: Vec<_> = all.into_iter().collect();
    let table = link::observe(&all, &[]).await;
    let table = report.attempt(link::PART, "read the list of links", table);
    let config = Config {
        instance: scope.instance,
        bpffs: scope.bpffs.clone(),
        run_dir: scope.run_dir.clone(),
        drain_timeout: scope.drain_timeout,
        ..Config::default()
    };
    Ebpf::teardown(
        &config,
        &handle,
        table.as_ref(),
        (Tables::Delete, Drained::Wait),
        mode,
        report,
    )
    .await;
    // After everything that untracks: until then filters may drop untracked packets without these ACCEPT rules.
    Iptables::remove_everything(scope.instance, mode, report).await;
    if connection.is_finished() {
        // The connection was lost in the meantime.
        let opened = report.attempt(link::PART, "open an rtnetlink socket", link::connect());
        if let Some(fresh) = opened {
            (handle, connection) = fresh;
        }
    }
    for (carrier, vips) in carriers(scope, table.as_ref()) {
        let vips: Vec<_> = vips.into_iter().collect();
        let link = VipLink::new(&vips, &carrier);
        link.teardown(&handle, mode, report).await;
    }
    link::report_if_lost(&connection, report);
    if mode == Mode::Apply && !report.failures.is_empty() {
        // Something may be left; the next clean-up needs these files to find it.
        return;
    }
    let files = files(&scope.run_dir)
        .into_iter()
        .filter(|path| path.exists());
    let ops: Vec<_> = files.map(Removal).collect();
    carry_out(PART, mode, ops, report, async |op| remove(&op.0)).await;
}

/// Links that may carry VIPs, with the addresses to remove from each: the current VIPs from all of them, former ones only
/// from the link to which an agent added them.
fn carriers(scope: &Scope, table: Option<&LinkTable>) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut names: BTreeSet<_> = scope
        .interface
        .iter()
        .chain(&scope.owned.links)
        .cloned()
        .collect();
    if let Some(table) = table {
        let copies = table.addresses.iter();
        let copies = copies.filter(|copy| scope.vips.contains(&copy.ip));
        names.extend(copies.map(|copy| table.name_of(copy.index)));
    }
    let vips: BTreeSet<_> = scope.vips.iter().copied().collect();
    let carriers = names.into_iter().map(|name| (name, vips.clone()));
    let mut carriers: BTreeMap<_, _> = carriers.collect();
    for address in &scope.owned.addresses {
        let of_link = carriers.entry(address.link.clone()).or_default();
        of_link.insert(address.ip);
    }
    carriers
}

/// The files of an agent in its run directory, without the lock.
fn files(run_dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![ebpf::notes_dir(run_dir)];
    files.extend(state::files(run_dir));
    files.extend(owned::files(run_dir));
    files
}

/// The removal of a file or directory.
struct Removal(PathBuf);

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "remove {}", self.0.display())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
