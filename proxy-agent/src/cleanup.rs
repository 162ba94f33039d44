// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent cleanup`, and what `--cleanup` does on exit: removes everything of ours from the
//! node, of whichever backend and version. No agent needs to run, and none may.
//!
//! What is ours is decided by each part; here is only in which order they come, and what is known
//! without an agent's settings.

mod known;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::app::{check_rights, connect, exit_code, tell_if_lost};
use crate::backend::ebpf::{self, Drained, Ebpf, Tables};
use crate::backend::iptables::Iptables;
use crate::backend::upstream;
use crate::config::Config;
use crate::instance::Instance;
use crate::link::{self, LinkTable, VipLink};
use crate::lock::Lock;
use crate::reconcile::{Mode, Report, carry_out, failed, part};
use crate::state;
use crate::state::owned::{self, Owned};

pub use known::left_vips;

/// The name of this part in reports: files of the run directory.
const PART: &str = part::STATE;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Only tell what would be removed.
    pub dry_run: bool,
    /// Which agent's.
    pub instance: Instance,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// Where maps and links are pinned, if that was said.
    pub bpffs: Option<PathBuf>,
    /// The VIPs, if they were said.
    pub vips: Vec<IpAddr>,
    /// The link that carries them, if that was said.
    pub interface: Option<String>,
    /// How long live connections to Services may go on.
    pub drain_timeout: Duration,
}

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Which agent's.
    pub instance: Instance,
    /// The VIPs; none if they are not known.
    pub vips: Vec<IpAddr>,
    /// The link that should carry them, if that is known.
    pub interface: Option<String>,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// How long live connections to Services may go on.
    pub drain_timeout: Duration,
    /// What agents with this run directory have put on the node, of earlier starts too.
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

/// Removes, or tells, and says what became of it. The exit code tells whether nothing is left.
///
/// # Errors
///
/// If an agent runs, or nothing can be removed at all.
pub async fn run(request: &Request) -> Result<ExitCode> {
    check_rights()?;
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
    let scope = known::scope(request, &mut report).await;
    remove_everything(&scope, mode, &mut report).await;
    let mut left = Report::default();
    if let Some(lock) = lock {
        remove_everything(&scope, Mode::DryRun, &mut left).await;
        if report.failures.is_empty() && lock.remove() && used {
            report.changed(PART, format!("remove {}", request.run_dir.display()));
        }
    }
    tell(&scope, mode, &report, &left);
    Ok(exit_code(report.failures.is_empty() && left.is_clean()))
}

fn tell(scope: &Scope, mode: Mode, report: &Report, left: &Report) {
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
            "the VIP addresses are not known: no agent has told them in {}, and no rule or map names \
             them; if the node may still carry one, give --ip-address",
            scope.run_dir.display()
        );
    }
    let settled = report.failures.is_empty() && left.is_clean();
    match (settled, mode) {
        (false, _) => println!("something of proxy-agent is left, or could not be looked for"),
        (true, _) if report.changes.is_empty() => println!("nothing to do"),
        (true, Mode::Apply) => println!("nothing of proxy-agent is left"),
        (true, Mode::DryRun) => println!("nothing was changed"),
    }
}

/// Removes everything, in the reverse order of a pass. A part that fails is in the report and keeps
/// none of the others from being removed.
pub async fn remove_everything(scope: &Scope, mode: Mode, report: &mut Report) {
    let (mut handle, mut connection) = match connect() {
        Ok(opened) => opened,
        Err(error) => return failed(link::PART, "open an rtnetlink socket", &error, report),
    };
    let all: BTreeSet<_> = scope
        .owned
        .ips()
        .into_iter()
        .chain(scope.vips.clone())
        .collect();
    let all: Vec<_> = all.into_iter().collect();
    let table = link::observe(&all, &[]).await;
    let table = table
        .inspect_err(|error| failed(link::PART, "look at the node's links", error, report))
        .ok();
    let settings = ebpf::Settings::to_remove(
        scope.instance,
        &scope.bpffs,
        &scope.run_dir,
        scope.drain_timeout,
    );
    upstream::remove_everything(scope.instance, mode, report).await;
    Ebpf::teardown(
        &settings,
        &handle,
        table.as_ref(),
        (Tables::Delete, Drained::Wait),
        mode,
        report,
    )
    .await;
    // Behind what untracks: until then a filter may drop what it does not know.
    Iptables::remove_everything(scope.instance, mode, report).await;
    if connection.is_finished() {
        // It was lost on the way.
        match connect() {
            Ok(fresh) => (handle, connection) = fresh,
            Err(error) => failed(link::PART, "open an rtnetlink socket", &error, report),
        }
    }
    for (carrier, vips) in carriers(scope, table.as_ref()) {
        let vips: Vec<_> = vips.into_iter().collect();
        let link = VipLink::new(&vips, &carrier);
        link.teardown(&handle, mode, report).await;
    }
    tell_if_lost(&connection, report);
    if mode == Mode::Apply && !report.failures.is_empty() {
        // Something may be left: the next clean-up needs to know of what.
        return;
    }
    let files = files(&scope.run_dir)
        .into_iter()
        .filter(|path| path.exists());
    let ops: Vec<_> = files.map(Removal).collect();
    carry_out(PART, mode, ops, report, async |op| remove(&op.0)).await;
}

/// The links that may carry VIPs, each with those that are removed from it: the VIPs themselves from every
/// link, those of earlier starts from the link on which an agent has put them.
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

/// What an agent keeps in its run directory, apart from the lock.
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
