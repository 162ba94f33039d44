// SPDX-License-Identifier: Apache-2.0

//! Reads what of this backend is in the kernel. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use std::net::IpAddr;

use proxy_common::guard::Link;
use rtnetlink::Handle;

use super::attach::{AttachMode, Filter, links_dir};
use super::hook::{Hook, SocketHook};
use super::plan::{Desired, Op};
use super::routes::{self, Found};
use super::{PART, Settings, filters, maps, sockets, xdp};
use crate::backend::tables;
use crate::kernel::{bpf, bpffs};
use crate::reconcile::{Report, failed};

/// What is in the kernel. What could not be read is in the report, and missing here in a way that
/// makes the plan leave it alone.
#[derive(Debug, Default)]
pub struct Observed {
    /// Our tables.
    pub tables: tables::Observed,
    /// Ids of the programs on the tcx hooks of each link; no entry where they could not be read.
    pub programs: BTreeMap<(Hook, u32), Vec<u32>>,
    /// Under which ifindex links are pinned.
    pub pins: BTreeSet<(Hook, u32)>,
    /// Ids of the maps pinned under the names of ours; no entry where it could not be read.
    pub maps: BTreeMap<&'static str, Option<u32>>,
    /// Our clsact filters by ifindex.
    pub filters: BTreeMap<(Hook, u32), Filter>,
    /// Links whose ingress qdisc is somebody's `ingress`, beside which there can be no clsact.
    pub ingress_only: BTreeSet<u32>,
    /// Ids of the programs that pinned links hold on hooks of sockets.
    pub sockets: BTreeMap<SocketHook, u32>,
    /// What makes Service addresses local; no entry where it could not be read.
    pub routes: BTreeMap<IpAddr, Found>,
    /// What the programs know of links; none where it could not be read.
    pub guard: Option<BTreeMap<u32, Link>>,
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
            tables: tables::read(PART, &desired.tables, report),
            pins: read_pins(settings, report),
            maps: read_maps(settings, desired, report),
            sockets: read_sockets(settings, report),
            guard: read_guard(settings, report),
            ..Self::default()
        };
        if desired.mode == AttachMode::Tcx {
            for hook in desired.hooks.keys() {
                for index in desired.links.keys() {
                    match bpf::attached(*index, hook.tcx_type()) {
                        Ok(ids) => {
                            observed.programs.insert((*hook, *index), ids);
                        }
                        // The link has gone away meanwhile: its event brings us back.
                        Err(answer) if answer.raw_os_error() == Some(libc::ENODEV) => {}
                        Err(answer) => {
                            let task = format!("read what is attached to ifindex {index} by tcx");
                            failed(PART, &task, &answer, report);
                        }
                    }
                }
            }
        }
        if desired.mode == AttachMode::Clsact || leftovers {
            observed.filters = filters::read(&desired.links, settings, report).await;
        }
        if desired.mode == AttachMode::Clsact {
            observed.ingress_only = read_ingress_only(&desired.links, report).await;
        }
        for address in desired.routes.keys() {
            match routes::observe(handle, *address).await {
                Ok(found) => {
                    observed.routes.insert(*address, found);
                }
                Err(error) => failed(PART, format!("read the route of {address}"), &error, report),
            }
        }
        observed
    }

    /// Why the desired program has to be attached to a link in this way; none if it is.
    pub fn attachment_fault(
        &self,
        mode: AttachMode,
        hook: Hook,
        index: u32,
        desired: &Desired,
    ) -> Option<&'static str> {
        match mode {
            AttachMode::Tcx => match self.by_tcx(hook, index, desired)? {
                (true, true) => None,
                (true, false) => Some("its pin is missing"),
                (false, true) => Some(OLDER),
                (false, false) => Some(MISSING),
            },
            AttachMode::Clsact => {
                let filter = self.filters.get(&(hook, index));
                fault(filter.map(|filter| filter.program), desired.program(hook))
            }
        }
    }

    /// Whether the desired program is attached to a link by tcx, and whether a link of ours is pinned there; none if that
    /// could not be read.
    pub fn by_tcx(&self, hook: Hook, index: u32, desired: &Desired) -> Option<(bool, bool)> {
        let programs = self.programs.get(&(hook, index))?;
        let wanted = desired.program(hook);
        let is_attached = wanted.is_some_and(|id| programs.contains(&id));
        Some((is_attached, self.pins.contains(&(hook, index))))
    }

    /// Why the desired map has to be pinned; none if it is.
    pub fn map_fault(&self, name: &str, desired: &Desired) -> Option<&'static str> {
        let wanted = desired.maps.get(name)?;
        match (self.maps.get(name)?, wanted) {
            (None, _) => Some("its pin is missing"),
            (Some(pinned), Some(wanted)) if pinned != wanted => Some("another map is pinned there"),
            (Some(_), _) => None,
        }
    }

    /// Why the desired program has to be attached to its hook of sockets; none if it is.
    pub fn socket_fault(&self, hook: SocketHook, desired: &Desired) -> Option<&'static str> {
        let wanted = desired.sockets.get(&hook).copied().flatten();
        fault(self.sockets.get(&hook).copied(), wanted)
    }
}

const MISSING: &str = "it is not attached";
const OLDER: &str = "an older program is attached";

fn fault(attached: Option<u32>, wanted: Option<u32>) -> Option<&'static str> {
    match attached {
        None => Some(MISSING),
        Some(_) if attached == wanted => None,
        Some(_) => Some(OLDER),
    }
}

/// The operations that remove everything of ours from the kernel, whoever put it there, in order; the
/// tables of Services apart. Nothing decides any more, and connections to Services have ended.
pub async fn everything(
    settings: &Settings,
    links: &BTreeMap<u32, String>,
    services: &[IpAddr],
    handle: &Handle,
    report: &mut Report,
) -> (Vec<Op>, Vec<Op>) {
    let mut ops: Vec<Op> = SocketHook::ALL
        .into_iter()
        .rev()
        .filter(|hook| sockets::is_pinned(*hook, settings))
        .map(|hook| Op::DetachSocket { hook })
        .collect();
    for address in services {
        match routes::observe(handle, *address).await {
            Ok(Found::Ours(_)) => ops.push(Op::RemoveRoute { address: *address }),
            Ok(Found::Missing | Found::Foreign) => {}
            Err(error) => failed(PART, format!("read the route of {address}"), &error, report),
        }
    }
    let pins = read_pins(settings, report);
    let filters = filters::read(links, settings, report).await;
    ops.extend(pins.iter().map(|(hook, index)| Op::RemovePin {
        hook: *hook,
        index: *index,
    }));
    ops.extend(
        filters
            .into_values()
            .map(|filter| Op::RemoveFilter { filter }),
    );
    match xdp::pinned_links(settings) {
        Ok(links) => ops.extend(links.into_iter().map(|index| Op::RemoveXdp { index })),
        Err(error) => failed(PART, "read the pinned XDP links", &error, report),
    }
    if settings.bpffs.exists() {
        ops.push(Op::RemovePins {
            directory: settings.bpffs.clone(),
        });
    }
    let of_services = tables::existing(PART, tables::empty_services(settings.instance), report);
    let tables = of_services.into_iter();
    (tables.map(|table| Op::DeleteTable { table }).collect(), ops)
}

async fn read_ingress_only(links: &BTreeMap<u32, String>, report: &mut Report) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for (index, name) in links {
        match filters::has_clsact(*index).await {
            Ok(Some(false)) => {
                found.insert(*index);
            }
            Ok(_) => {}
            Err(error) => failed(
                PART,
                format!("read the qdiscs of link {name}"),
                &error,
                report,
            ),
        }
    }
    found
}

fn read_guard(settings: &Settings, report: &mut Report) -> Option<BTreeMap<u32, Link>> {
    let links = maps::guard_links(settings);
    links
        .inspect_err(|error| failed(PART, "read which links are guarded", error, report))
        .ok()
}

fn read_pins(settings: &Settings, report: &mut Report) -> BTreeSet<(Hook, u32)> {
    let mut pins = BTreeSet::new();
    for hook in Hook::ALL {
        match bpffs::names(&links_dir(hook, settings)) {
            Ok(names) => {
                let indexes = names.iter().filter_map(|name| name.parse().ok());
                pins.extend(indexes.map(|index| (hook, index)));
            }
            Err(error) => failed(PART, "read the pinned links", &error, report),
        }
    }
    pins
}

fn read_maps(
    settings: &Settings,
    desired: &Desired,
    report: &mut Report,
) -> BTreeMap<&'static str, Option<u32>> {
    let mut found = BTreeMap::new();
    for name in desired.maps.keys() {
        match maps::pinned_id(name, settings) {
            Ok(id) => {
                found.insert(*name, id);
            }
            Err(error) => failed(PART, "read the pinned maps", &error, report),
        }
    }
    found
}

fn read_sockets(settings: &Settings, report: &mut Report) -> BTreeMap<SocketHook, u32> {
    let mut found = BTreeMap::new();
    for hook in SocketHook::ALL {
        match sockets::attached(hook, settings) {
            Ok(id) => found.extend(id.map(|id| (hook, id))),
            Err(error) => failed(PART, format!("read the pin of {hook}"), &error, report),
        }
    }
    found
}
