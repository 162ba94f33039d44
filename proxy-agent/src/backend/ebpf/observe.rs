// SPDX-License-Identifier: Apache-2.0

//! Reads what of this backend is in the kernel. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use aya::programs::{SchedClassifier, TcAttachType};
use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption,
};

use super::attach::{AttachError, AttachMode, FILTER_HANDLE, Filter, links_dir};
use super::plan::{Desired, Op, Target};
use super::{PART, Settings, ruleset};
use crate::kernel::bpffs;
use crate::link::LinkTable;
use crate::netfilter::{Outline, Socket, Table};
use crate::reconcile::{Report, failed};

/// The name a filter's program is known by (`TCA_BPF_NAME`).
const FILTER_NAME: &str = "vip_ingress";

/// What is in the kernel. What could not be read is in the report, and missing here in a way that
/// makes the plan leave it alone.
#[derive(Debug, Default)]
pub struct Observed {
    /// By title; none where a table does not exist.
    pub tables: BTreeMap<String, Option<Outline>>,
    /// Ids of the programs on the tcx hook of each link; no entry where it could not be read.
    pub programs: BTreeMap<u32, Vec<u32>>,
    /// Under which ifindex links are pinned.
    pub pins: BTreeSet<u32>,
    /// Our clsact filters by ifindex.
    pub filters: BTreeMap<u32, Filter>,
}

impl Observed {
    /// Reads everything; `leftovers`: also what is not used in the desired mode.
    pub async fn read(
        settings: &Settings,
        desired: &Desired,
        handle: &Handle,
        leftovers: bool,
        report: &mut Report,
    ) -> Self {
        let mut observed = Self {
            tables: read_tables(&desired.tables, report),
            pins: read_pins(settings, report),
            ..Self::default()
        };
        if desired.mode == AttachMode::Tcx {
            for (index, name) in &desired.links {
                // A link that goes away meanwhile has no hook to read: its event brings us back.
                if let Ok((_, programs)) = SchedClassifier::query_tcx(name, TcAttachType::Ingress) {
                    let ids = programs
                        .iter()
                        .map(aya::programs::ProgramInfo::id)
                        .collect();
                    observed.programs.insert(*index, ids);
                }
            }
        }
        if desired.mode == AttachMode::Clsact || leftovers {
            observed.filters = read_filters(&desired.links, handle, report).await;
        }
        observed
    }

    /// Why the desired program has to be attached to a link; none if it is.
    pub fn attachment_fault(&self, index: u32, desired: &Desired) -> Option<&'static str> {
        const MISSING: &str = "it is not attached";
        const OLDER: &str = "an older program is attached";
        match desired.mode {
            AttachMode::Tcx => {
                let programs = self.programs.get(&index)?;
                let attached = desired.ingress.is_some_and(|id| programs.contains(&id));
                match (attached, self.pins.contains(&index)) {
                    (true, true) => None,
                    (true, false) => Some("its pin is missing"),
                    (false, true) => Some(OLDER),
                    (false, false) => Some(MISSING),
                }
            }
            AttachMode::Clsact => match self.filters.get(&index) {
                Some(filter) if Some(filter.program) == desired.ingress => None,
                Some(_) => Some(OLDER),
                None => Some(MISSING),
            },
        }
    }
}

/// The operations that remove everything of ours, in the order of teardown.
pub async fn everything(
    settings: &Settings,
    handle: &Handle,
    table: Option<&LinkTable>,
    report: &mut Report,
) -> Vec<Op> {
    let mut ops: Vec<_> = read_pins(settings, report)
        .into_iter()
        .map(|index| Op::RemovePin { index })
        .collect();
    let links = table
        .map(|table| {
            let links = table.links.iter();
            links.map(|link| (link.index, link.name.clone())).collect()
        })
        .unwrap_or_default();
    let filters = read_filters(&links, handle, report).await;
    ops.extend(
        filters
            .into_values()
            .map(|filter| Op::RemoveFilter { filter }),
    );
    let tables = ruleset::empty_tables();
    let outlines = read_tables(&tables, report);
    ops.extend(
        tables
            .into_iter()
            .filter(|table| outlines.get(&table.title()).is_some_and(Option::is_some))
            .map(|table| Op::DeleteTable { table }),
    );
    ops
}

/// Whether anything is attached to the clsact qdisc of a link.
///
/// # Errors
///
/// The kernel's answer.
pub async fn has_filters(index: u32, handle: &Handle) -> Result<bool, AttachError> {
    let mut filters = handle.traffic_filter(index.cast_signed());
    for request in [filters.get().ingress(), filters.get().egress()] {
        let found: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(AttachError::Route)?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_tables(tables: &[Table], report: &mut Report) -> BTreeMap<String, Option<Outline>> {
    let mut outlines = BTreeMap::new();
    let mut socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => {
            failed(PART, "read the nf_tables tables", &error, report);
            return outlines;
        }
    };
    for table in tables {
        match table.observe(&mut socket) {
            Ok(outline) => {
                outlines.insert(table.title(), outline);
            }
            Err(error) => {
                let what = format!("read nf_tables table {}", table.title());
                failed(PART, what, &error, report);
            }
        }
    }
    outlines
}

fn read_pins(settings: &Settings, report: &mut Report) -> BTreeSet<u32> {
    match bpffs::names(&links_dir(settings)) {
        Ok(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
        Err(error) => {
            failed(PART, "read the pinned links", &error, report);
            BTreeSet::new()
        }
    }
}

async fn read_filters(
    links: &BTreeMap<u32, String>,
    handle: &Handle,
    report: &mut Report,
) -> BTreeMap<u32, Filter> {
    let mut found = BTreeMap::new();
    for (index, name) in links {
        let link = Target {
            index: *index,
            name: name.clone(),
        };
        let mut filters = handle.traffic_filter(index.cast_signed());
        match filters
            .get()
            .ingress()
            .execute()
            .try_collect::<Vec<_>>()
            .await
        {
            Ok(messages) => {
                if let Some(filter) = messages.iter().find_map(|message| own(message, &link)) {
                    found.insert(*index, filter);
                }
            }
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -libc::ENODEV || error.raw_code() == -libc::EINVAL => {}
            Err(error) => failed(PART, format!("read the filters of {link}"), &error, report),
        }
    }
    found
}

/// Our filter, if this is it: told by its handle and its program's name.
fn own(message: &TcMessage, link: &Target) -> Option<Filter> {
    if u32::from(message.header.handle) != FILTER_HANDLE {
        return None;
    }
    let (mut is_bpf, mut named, mut program) = (false, false, None);
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => is_bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                            named = name == FILTER_NAME;
                        }
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (is_bpf && named).then_some(Filter {
        link: link.clone(),
        // The upper half; the lower one is the protocol.
        priority: u16::try_from(message.header.info >> 16).ok()?,
        program: program?,
    })
}
