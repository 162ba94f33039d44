// SPDX-License-Identifier: Apache-2.0

//! Removes this backend's objects from the kernel: all of them, or those of another layout. Objects that connections to Services
//! need are removed after these have ended or were reset at their deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use rtnetlink::Handle;
use tokio::time::sleep;
use tracing::{info, warn};

use super::hook::SocketHook;
use super::plan::Op;
use super::routes::Found;
use super::{Ebpf, PART, drain, filters, layout, maps, observe, qdisc, sockets, xdp};
use crate::backend::decisions::collect::Which;
use crate::backend::{decisions, tables};
use crate::config::{Config, Service};
use crate::link::LinkTable;
use crate::reconcile::{Mode, Report, carry_out};

/// What happens to the tables of decisions when everything else of this backend is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// They are deleted.
    Delete,
    /// Another backend uses them now.
    Keep,
}

/// Whether to wait for the end of connections to Services before the removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Wait; reset them at the deadline.
    Wait,
    /// They have ended, or the deadline has passed.
    Over,
}

impl Ebpf {
    /// Detaches and unpins objects of other layouts, after this one works. Tables and filters are the same in all layouts.
    pub(super) async fn remove_others(&mut self, handle: &Handle, mode: Mode, report: &mut Report) {
        let failures = report.failures.len();
        for bpffs in &self.others {
            let other = with_pins_in(bpffs.clone(), &self.config);
            let links = BTreeMap::new();
            let (_, ops) = everything(&other, &links, &[], handle, report).await;
            Self::remove(&other, handle, ops, mode, report).await;
        }
        if mode == Mode::Apply && report.failures.len() == failures && !report.is_stopped() {
            self.others.clear();
        }
    }

    /// Removes all objects of this backend from the kernel, of any earlier process and any layout.
    pub async fn teardown(
        config: &Config,
        handle: &Handle,
        table: Option<&LinkTable>,
        (of_decisions, drained): (Tables, Drained),
        mode: Mode,
        report: &mut Report,
    ) {
        let services = maps::earlier_services(config);
        let services = report
            .attempt(PART, "read the Services of an earlier agent", services)
            .unwrap_or_default();
        if of_decisions == Tables::Delete {
            Self::remove_decisions(config, handle, mode, report).await;
        }
        if mode == Mode::Apply {
            report.attempt(PART, "stop decisions", maps::stop_deciding(config));
            if drained == Drained::Wait {
                wait(config, &services, report).await;
            }
            let reset = drain::reset(&services);
            report.attempt(PART, "reset connections to Services", reset);
        }
        let addresses: BTreeSet<_> = services.iter().map(|one| one.cluster_ip.ip()).collect();
        let addresses: Vec<_> = addresses.into_iter().collect();
        let links = table
            .map(|table| {
                let links = table.links.iter();
                links.map(|link| (link.index, link.name.clone())).collect()
            })
            .unwrap_or_default();
        let (of_tables, ops) = everything(config, &links, &addresses, handle, report).await;
        let mut all = vec![(config.clone(), ops)];
        let others = layout::earlier(config);
        let others = report.attempt(PART, "search for other layouts of pins", others);
        for bpffs in others.unwrap_or_default() {
            let other = with_pins_in(bpffs, config);
            // The filters on links are the same in all layouts.
            let none = BTreeMap::new();
            let (_, ops) = everything(&other, &none, &[], handle, report).await;
            all.push((other, ops));
        }
        // The tables are removed last: without the rules conntrack would see connections from the middle.
        for (config, ops) in all {
            Self::remove(&config, handle, ops, mode, report).await;
        }
        Self::remove(config, handle, of_tables, mode, report).await;
        if mode == Mode::Apply
            && !report.is_stopped()
            && let Some(table) = table
        {
            let tidied = qdisc::tidy(config, table, true, handle).await;
            report.attempt(PART, "remove unused clsact qdiscs", tidied);
        }
        if mode == Mode::Apply
            && !report.is_stopped()
            && let Err(error) = qdisc::forget_all(config, table)
        {
            warn!(part = PART.name(), "{error}");
        }
    }

    /// Leaves open and new connections to the VIPs and of the proxy to conntrack: removes the tables of decisions, and those
    /// of another backend's guard.
    pub async fn remove_decisions(
        config: &Config,
        handle: &Handle,
        mode: Mode,
        report: &mut Report,
    ) {
        if mode == Mode::Apply {
            for (which, what) in [
                (
                    Which::OfProxy,
                    "hand the proxy's connections over to conntrack",
                ),
                (
                    Which::ToVips,
                    "hand connections to the VIPs over to conntrack",
                ),
            ] {
                report.attempt(PART, what, decisions::release(which, config.instance));
            }
        }
        let instance = config.instance;
        let ops = [
            tables::empty(instance),
            tables::empty_guard(instance),
            tables::empty_separate_upstream(instance),
        ]
        .into_iter()
        .flat_map(|tables| tables::removals(PART, tables, report))
        .map(Op::Tables)
        .collect();
        Self::remove(config, handle, ops, mode, report).await;
    }

    async fn remove(
        config: &Config,
        handle: &Handle,
        ops: Vec<Op>,
        mode: Mode,
        report: &mut Report,
    ) {
        let mut backend = Self::without_programs(config.clone());
        carry_out(PART, mode, ops, report, async |op| {
            backend.apply(op, handle).await
        })
        .await;
    }
}

/// The settings of an agent whose pins are in this directory.
fn with_pins_in(bpffs: PathBuf, config: &Config) -> Config {
    Config {
        bpffs,
        ..config.clone()
    }
}

/// Waits until no connection to any of the Services is open, or their deadline has passed.
async fn wait(config: &Config, services: &[Service], report: &mut Report) {
    let until = Instant::now() + config.drain_timeout;
    let mut is_logged = false;
    while Instant::now() < until && !report.is_stopped() {
        let is_over = drain::is_over(services);
        if report.attempt(PART, "drain connections to Services", is_over) != Some(false) {
            return;
        }
        if !is_logged {
            is_logged = true;
            info!(
                part = PART.name(),
                "waiting for connections to Services to end, at most {:?}", config.drain_timeout
            );
        }
        report.control.step();
        sleep(drain::LOOK).await;
    }
}

/// The operations that remove all objects, in order: first those for the tables of Services, then the others. Decisions have been
/// stopped before, and connections to Services have ended.
async fn everything(
    config: &Config,
    links: &BTreeMap<u32, String>,
    services: &[IpAddr],
    handle: &Handle,
    report: &mut Report,
) -> (Vec<Op>, Vec<Op>) {
    let mut ops: Vec<Op> = SocketHook::ALL
        .into_iter()
        .rev()
        .filter(|hook| sockets::is_pinned(*hook, config))
        .map(|hook| Op::DetachSocket { hook })
        .collect();
    for address in services {
        if let Some(Found::Ours(_)) = observe::read_route(handle, *address, report).await {
            ops.push(Op::RemoveRoute { address: *address });
        }
    }
    let pins = observe::read_pins(config, report);
    let filters = filters::read(links, config, report).await;
    ops.extend(pins.iter().map(|(hook, index)| Op::RemovePin {
        hook: *hook,
        index: *index,
    }));
    ops.extend(
        filters
            .into_values()
            .map(|filter| Op::RemoveFilter { filter }),
    );
    let links = report.attempt(PART, "read the pinned XDP links", xdp::pinned_links(config));
    let links = links.unwrap_or_default().into_iter();
    ops.extend(links.map(|index| Op::RemoveXdp { index }));
    if config.bpffs.exists() {
        ops.push(Op::RemovePins {
            directory: config.bpffs.clone(),
        });
    }
    let of_services = tables::removals(PART, tables::empty_services(config.instance), report);
    (of_services.into_iter().map(Op::Tables).collect(), ops)
}
