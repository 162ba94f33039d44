// SPDX-License-Identifier: Apache-2.0

//! Reads what of this backend is in the kernel. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use proxy_common::guard::Link;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption,
};

use super::attach::{AttachError, AttachMode, Filter, filter_handle, links_dir};
use super::hook::{Hook, SocketHook};
use super::plan::{Desired, Op, Target};
use super::{PART, Settings, cgroup, maps, xdp};
use crate::backend::tables;
use crate::kernel::{bpf, bpffs};
use crate::link::LinkTable;
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
    /// Ids of the programs that pinned links hold on the root cgroup.
    pub sockets: BTreeMap<SocketHook, u32>,
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
            observed.filters = read_filters(&desired.links, settings, handle, report).await;
        }
        observed
    }

    /// Why the desired program has to be attached to a link; none if it is.
    pub fn attachment_fault(
        &self,
        hook: Hook,
        index: u32,
        desired: &Desired,
    ) -> Option<&'static str> {
        let wanted = desired.hooks.get(&hook).copied().flatten();
        match desired.mode {
            AttachMode::Tcx => {
                let programs = self.programs.get(&(hook, index))?;
                let attached = wanted.is_some_and(|id| programs.contains(&id));
                match (attached, self.pins.contains(&(hook, index))) {
                    (true, true) => None,
                    (true, false) => Some("its pin is missing"),
                    (false, true) => Some(OLDER),
                    (false, false) => Some(MISSING),
                }
            }
            AttachMode::Clsact => {
                let filter = self.filters.get(&(hook, index));
                fault(filter.map(|filter| filter.program), wanted)
            }
        }
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

    /// Why the desired program has to be attached to the root cgroup; none if it is.
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

/// The operations that remove everything of ours, in the order of teardown.
#[derive(Debug, Default)]
pub struct Everything {
    /// First what decides, so that nothing new is translated. What is translated goes on through
    /// the rules until it is handed over.
    pub deciding: Vec<Op>,
    /// Then the rules.
    pub tables: Vec<Op>,
    /// Egress last: it translates what the rules no longer do. Then what nothing uses any more.
    pub rest: Vec<Op>,
}

/// Looks for the programs on links that decide, whoever put them there: the operations that detach them.
pub async fn deciding(
    settings: &Settings,
    handle: &Handle,
    table: &LinkTable,
    report: &mut Report,
) -> Vec<Op> {
    let attached = Attached::read(settings, handle, Some(table), report).await;
    attached.detach(Hook::Ingress)
}

/// What is attached to links, whoever put it there.
struct Attached {
    pins: BTreeSet<(Hook, u32)>,
    filters: BTreeMap<(Hook, u32), Filter>,
}

impl Attached {
    async fn read(
        settings: &Settings,
        handle: &Handle,
        table: Option<&LinkTable>,
        report: &mut Report,
    ) -> Self {
        let links = table
            .map(|table| {
                let links = table.links.iter();
                links.map(|link| (link.index, link.name.clone())).collect()
            })
            .unwrap_or_default();
        Self {
            pins: read_pins(settings, report),
            filters: read_filters(&links, settings, handle, report).await,
        }
    }

    /// The operations that detach the programs of a hook.
    fn detach(&self, hook: Hook) -> Vec<Op> {
        let pins = self.pins.iter().filter(|(of, _)| *of == hook);
        let filters = self.filters.values().filter(|filter| filter.hook == hook);
        let unpin = pins.map(|(hook, index)| Op::RemovePin {
            hook: *hook,
            index: *index,
        });
        let remove = filters.map(|filter| Op::RemoveFilter {
            filter: filter.clone(),
        });
        unpin.chain(remove).collect()
    }
}

/// Looks for everything of ours, whoever put it there.
pub async fn everything(
    settings: &Settings,
    handle: &Handle,
    table: Option<&LinkTable>,
    report: &mut Report,
) -> Everything {
    let attached = Attached::read(settings, handle, table, report).await;
    let mut deciding = attached.detach(Hook::Ingress);
    let sockets = SocketHook::ALL.into_iter();
    let sockets = sockets.filter(|hook| cgroup::is_pinned(*hook, settings));
    deciding.extend(sockets.map(|hook| Op::DetachSocket { hook }));
    if settings.bpffs.join(maps::CONNECTIONS).exists() {
        deciding.push(Op::HandOver { services: None });
    }
    let mut rest = attached.detach(Hook::Egress);
    let xdp = xdp::pinned(settings).unwrap_or_default().into_keys();
    rest.extend(xdp.map(|index| Op::RemoveXdp { index }));
    if settings.bpffs.exists() {
        rest.push(Op::RemovePins {
            directory: settings.bpffs.clone(),
        });
    }
    Everything {
        deciding,
        tables: [
            tables::empty(settings.instance),
            tables::empty_guard(settings.instance),
        ]
        .into_iter()
        .flat_map(|tables| tables::existing(PART, tables, report))
        .map(|table| Op::DeleteTable { table })
        .collect(),
        rest,
    }
}

/// Whether anything is attached to the clsact qdisc of a link.
///
/// # Errors
///
/// The kernel's answer.
pub async fn has_filters(index: u32, handle: &Handle) -> Result<bool, AttachError> {
    for hook in Hook::ALL {
        let found = dump_filters(hook, index, handle).await;
        if !found.map_err(AttachError::Route)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
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
        match cgroup::attached(hook, settings) {
            Ok(id) => found.extend(id.map(|id| (hook, id))),
            Err(error) => failed(PART, format!("read the pin of {hook}"), &error, report),
        }
    }
    found
}

async fn read_filters(
    links: &BTreeMap<u32, String>,
    settings: &Settings,
    handle: &Handle,
    report: &mut Report,
) -> BTreeMap<(Hook, u32), Filter> {
    let mut found = BTreeMap::new();
    for (index, name) in links {
        let link = Target {
            index: *index,
            name: name.clone(),
        };
        for hook in Hook::ALL {
            match dump_filters(hook, *index, handle).await {
                Ok(messages) => {
                    let own = messages
                        .iter()
                        .find_map(|message| own(hook, message, &link, settings));
                    found.extend(own.map(|filter| ((hook, *index), filter)));
                }
                // The link has gone meanwhile.
                Err(rtnetlink::Error::NetlinkError(error))
                    if error.raw_code() == -libc::ENODEV || error.raw_code() == -libc::EINVAL => {}
                Err(error) => failed(PART, format!("read the filters of {link}"), &error, report),
            }
        }
    }
    found
}

async fn dump_filters(
    hook: Hook,
    index: u32,
    handle: &Handle,
) -> Result<Vec<TcMessage>, rtnetlink::Error> {
    let mut filters = handle.traffic_filter(index.cast_signed());
    let request = match hook {
        Hook::Ingress => filters.get().ingress(),
        Hook::Egress => filters.get().egress(),
    };
    request.execute().try_collect().await
}

/// Our filter, if this is it: told by its handle and its program's name.
fn own(hook: Hook, message: &TcMessage, link: &Target, settings: &Settings) -> Option<Filter> {
    if u32::from(message.header.handle) != filter_handle(settings.instance) {
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
                            named = name == hook.program();
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
        hook,
        link: link.clone(),
        // The upper half; the lower one is the protocol.
        priority: u16::try_from(message.header.info >> 16).ok()?,
        program: program?,
    })
}
