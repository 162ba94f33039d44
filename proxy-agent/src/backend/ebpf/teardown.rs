// SPDX-License-Identifier: Apache-2.0

//! Removes what this backend keeps in the kernel: all of it, or what another layout left. Connections to
//! Services end first, or are reset at their deadline; until then what they need stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rtnetlink::Handle;
use tokio::time::sleep;
use tracing::{info, warn};

use super::attach::{self, AttachMode};
use super::load::Ids;
use super::plan::Op;
use super::{Ebpf, PART, Settings, drain, observe, qdisc, xdp};
use crate::backend::decisions::collect::Which;
use crate::backend::{decisions, tables};
use crate::config::Service;
use crate::guard;
use crate::link::LinkTable;
use crate::reconcile::{Mode, Report, carry_out, failed};

/// What becomes of the tables of decisions when everything else of this backend is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// They are deleted.
    Delete,
    /// They are another backend's now.
    Keep,
}

/// Whether connections to Services have ended before what they need is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// It is waited for, and at the deadline they are reset.
    Wait,
    /// They have, or their time is over.
    Over,
}

impl Ebpf {
    /// Detaches and unpins what other layouts have, now that this one stands. The tables are ours
    /// already, and so are the filters on links.
    pub(super) async fn remove_others(&mut self, handle: &Handle, mode: Mode, report: &mut Report) {
        let failures = report.failures.len();
        for other in &self.others {
            let links = BTreeMap::new();
            let (_, ops) = observe::everything(other, &links, &[], handle, report).await;
            Self::remove(other, handle, ops, mode, report).await;
        }
        if mode == Mode::Apply && report.failures.len() == failures && !report.is_stopped() {
            self.others.clear();
        }
    }

    /// Removes everything that this backend keeps in the kernel, whoever put it there, of whichever
    /// layout.
    pub async fn teardown(
        settings: &Settings,
        handle: &Handle,
        table: Option<&LinkTable>,
        (of_decisions, drained): (Tables, Drained),
        mode: Mode,
        report: &mut Report,
    ) {
        let services = settings.earlier_services().unwrap_or_else(|error| {
            failed(PART, "read the Services of before", &error, report);
            Vec::new()
        });
        if of_decisions == Tables::Delete {
            Self::remove_decisions(settings, handle, mode, report).await;
        }
        if mode == Mode::Apply {
            if let Err(error) = settings.stop_deciding() {
                failed(PART, "decide no more connections", &error, report);
            }
            if drained == Drained::Wait {
                wait(settings, &services, report).await;
            }
            if let Err(error) = drain::reset(&services) {
                failed(PART, "reset connections to Services", &error, report);
            }
        }
        let addresses: BTreeSet<_> = services.iter().map(|one| one.cluster_ip.ip()).collect();
        let addresses: Vec<_> = addresses.into_iter().collect();
        let links = table
            .map(|table| {
                let links = table.links.iter();
                links.map(|link| (link.index, link.name.clone())).collect()
            })
            .unwrap_or_default();
        let (of_tables, ops) =
            observe::everything(settings, &links, &addresses, handle, report).await;
        let mut all = vec![(settings.clone(), ops)];
        for other in settings.other_layouts_or(report) {
            // The filters on links are the same in all layouts.
            let none = BTreeMap::new();
            let (_, ops) = observe::everything(&other, &none, &[], handle, report).await;
            all.push((other, ops));
        }
        // Behind the programs that steer: without the rules conntrack would see connections half-way.
        for (settings, ops) in all {
            Self::remove(&settings, handle, ops, mode, report).await;
        }
        Self::remove(settings, handle, of_tables, mode, report).await;
        if mode == Mode::Apply
            && !report.is_stopped()
            && let Some(table) = table
            && let Err(error) = qdisc::tidy(settings, table, true, handle).await
        {
            failed(PART, "remove what is left of clsact", &error, report);
        }
        if mode == Mode::Apply
            && !report.is_stopped()
            && let Err(error) = qdisc::forget_all(settings, table)
        {
            warn!(part = PART, "{error}");
        }
    }

    /// Leaves connections to the VIPs to conntrack, live and new ones: removes the tables that decide them, and
    /// those of another backend that guard.
    pub async fn remove_decisions(
        settings: &Settings,
        handle: &Handle,
        mode: Mode,
        report: &mut Report,
    ) {
        if mode == Mode::Apply
            && let Err(error) = decisions::hand_over(Which::ToVips, settings.instance)
        {
            failed(PART, "hand connections to the VIPs over", &error, report);
        }
        let instance = settings.instance;
        let ops = [tables::empty(instance), tables::empty_guard(instance)]
            .into_iter()
            .flat_map(|tables| tables::existing(PART, tables, report))
            .map(|table| Op::DeleteTable { table })
            .collect();
        Self::remove(settings, handle, ops, mode, report).await;
    }

    async fn remove(
        settings: &Settings,
        handle: &Handle,
        ops: Vec<Op>,
        mode: Mode,
        report: &mut Report,
    ) {
        let mut backend = Self {
            settings: settings.clone(),
            attach_mode: AttachMode::Tcx,
            programs: None,
            known: Ids::new(),
            cgroup: None,
            look_for_leftovers: false,
            is_first: false,
            others: Vec::new(),
            seen: BTreeSet::new(),
            links: guard::Links::default(),
            front: xdp::Front::default(),
            left: BTreeSet::new(),
            drain: drain::Drain::new(&[], settings.drain_timeout),
            young: attach::Young::default(),
        };
        carry_out(PART, mode, ops, report, async |op| {
            backend.apply(op, handle).await
        })
        .await;
    }
}

/// Waits until no connection to any of the Services is left, or their time is over.
async fn wait(settings: &Settings, services: &[Service], report: &mut Report) {
    let until = Instant::now() + settings.drain_timeout;
    let mut has_said = false;
    while Instant::now() < until && !report.is_stopped() {
        match drain::is_over(services) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => return failed(PART, "drain connections to Services", &error, report),
        }
        if !has_said {
            has_said = true;
            info!(
                part = PART,
                "waiting for connections to Services to end, {:?} at most", settings.drain_timeout
            );
        }
        report.control.step();
        sleep(drain::LOOK).await;
    }
}
