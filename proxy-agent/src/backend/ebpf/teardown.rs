// SPDX-License-Identifier: Apache-2.0

//! Removes what this backend keeps in the kernel: all of it, or what another layout left. In which
//! order is explained at [`observe::Everything`].

use std::collections::BTreeSet;

use rtnetlink::Handle;
use tracing::warn;

use super::attach::AttachMode;
use super::load::Ids;
use super::plan::Op;
use super::{Ebpf, PART, Settings, maps, observe, qdisc, xdp};
use crate::guard;
use crate::link::LinkTable;
use crate::reconcile::{Mode, Report, carry_out, failed};

/// What becomes of our tables when everything else of this backend is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// They are deleted.
    Delete,
    /// They are another backend's now.
    Keep,
}

impl Ebpf {
    /// What another layout translates is conntrack's from now on: its decisions may mean something
    /// else in this one.
    pub(super) async fn take_over_translated(
        &self,
        handle: &Handle,
        mode: Mode,
        report: &mut Report,
    ) {
        for other in &self.others {
            if other.bpffs.join(maps::CONNECTIONS).exists() {
                let ops = vec![Op::HandOver { services: None }];
                Self::remove(other, handle, ops, mode, report).await;
            }
        }
    }

    /// Detaches and unpins what other layouts have, now that this one stands. The tables are ours
    /// already, and so are the filters on links.
    pub(super) async fn remove_others(&mut self, handle: &Handle, mode: Mode, report: &mut Report) {
        let failures = report.failures.len();
        for other in &self.others {
            let ops = observe::everything(other, handle, None, report).await;
            // Those that it has decided in the meantime are handed over as well.
            let ops = [ops.deciding, ops.rest].concat();
            Self::remove(other, handle, ops, mode, report).await;
        }
        if mode == Mode::Apply && report.failures.len() == failures && !report.is_stopped() {
            self.others.clear();
        }
    }

    /// The first half of [`Ebpf::teardown`]: detaches what decides and hands over what is
    /// translated. The tables are left, for others to take their place.
    pub async fn stop_deciding(
        settings: &Settings,
        handle: &Handle,
        table: Option<&LinkTable>,
        report: &mut Report,
    ) {
        let mode = Mode::Apply;
        let ops = observe::everything(settings, handle, table, report).await;
        Self::remove(settings, handle, ops.deciding, mode, report).await;
        for other in settings.other_layouts_or(report) {
            let ops = observe::everything(&other, handle, None, report).await;
            Self::remove(&other, handle, ops.deciding, mode, report).await;
        }
    }

    /// Removes everything that this backend keeps in the kernel, whoever put it there, of whichever
    /// layout.
    ///
    /// In the order that [`observe::Everything`] explains: what decides goes first, and nothing
    /// that translates goes before the connections it serves are handed over.
    pub async fn teardown(
        settings: &Settings,
        handle: &Handle,
        table: Option<&LinkTable>,
        tables: Tables,
        mode: Mode,
        report: &mut Report,
    ) {
        let own = observe::everything(settings, handle, table, report).await;
        Self::remove(settings, handle, own.deciding, mode, report).await;
        let mut rest = vec![(settings.clone(), own.rest)];
        for other in settings.other_layouts_or(report) {
            // The filters on links are the same in all layouts: they have been seen to.
            let ops = observe::everything(&other, handle, None, report).await;
            Self::remove(&other, handle, ops.deciding, mode, report).await;
            rest.push((other, ops.rest));
        }
        if tables == Tables::Delete {
            Self::remove(settings, handle, own.tables, mode, report).await;
        }
        for (settings, ops) in rest {
            Self::remove(&settings, handle, ops, mode, report).await;
        }
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
            others: Vec::new(),
            seen: BTreeSet::new(),
            links: guard::Links::default(),
            front: xdp::Front::default(),
        };
        carry_out(PART, mode, ops, report, async |op| {
            backend.apply(op, handle).await
        })
        .await;
    }
}
