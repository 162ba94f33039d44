// SPDX-License-Identifier: Apache-2.0

//! Reads the kernel's state of this backend. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use std::net::IpAddr;

use proxy_common::guard::Link;
use proxy_kernel::{bpf, bpffs};
use proxy_netlink::route::traffic_control;
use rtnetlink::Handle;

use super::attachment::{AttachMode, Filter};
use super::desired::Desired;
use super::hook::{Hook, SocketHook};
use super::pins::links_dir;
use super::routes::{self, Found};
use super::{PART, filters, maps, sockets};
use crate::backend::tables;
use crate::config::Config;
use crate::reconcile::Report;

/// The observed state. Failures are in the report; what could not be read is represented such that the plan leaves it alone.
#[derive(Debug, Default)]
pub struct Observed {
    /// The agent's tables.
    pub tables: tables::Observed,
    /// Ids of the programs on the tcx hooks of each link; no entry where they could not be read.
    pub programs: BTreeMap<(Hook, u32), Vec<u32>>,
    /// The pinned links, by ifindex.
    pub pins: BTreeSet<(Hook, u32)>,
    /// Ids of the maps pinned under the agent's names; no entry where the pin could not be read.
    pub maps: BTreeMap<&'static str, Option<u32>>,
    /// The agent's clsact filters, by ifindex.
    pub filters: BTreeMap<(Hook, u32), Filter>,
    /// Links with an `ingress` qdisc of others, beside which there can be no clsact.
    pub ingress_only: BTreeSet<u32>,
    /// Ids of the programs that pinned links hold on hooks of sockets.
    pub sockets: BTreeMap<SocketHook, u32>,
    /// The routes of Service addresses; no entry where they could not be read.
    pub routes: BTreeMap<IpAddr, Found>,
    /// The content of the guard's map of links; none if it could not be read.
    pub guard: Option<BTreeMap<u32, Link>>,
}

impl Observed {
    /// Reads the state; `leftovers`: also attachments of the mode that is not in use.
    pub async fn read(
        config: &Config,
        desired: &Desired,
        handle: &Handle,
        leftovers: bool,
        report: &mut Report,
    ) -> Self {
        let mut observed = Self {
            tables: tables::read(PART, &desired.tables, report),
            pins: read_pins(config, report),
            maps: read_maps(config, desired, report),
            sockets: read_sockets(config, report),
            guard: read_guard(config, report),
            ..Self::default()
        };
        if desired.mode == AttachMode::Tcx {
            for hook in desired.hooks.keys() {
                for index in desired.links.keys() {
                    match bpf::attached(*index, hook.tcx_type()) {
                        Ok(ids) => {
                            observed.programs.insert((*hook, *index), ids);
                        }
                        // The link is gone; its event triggers another pass.
                        Err(answer) if answer.raw_os_error() == Some(libc::ENODEV) => {}
                        Err(answer) => {
                            let what = format!("read what is attached to ifindex {index} by tcx");
                            report.failed(PART, what, &answer);
                        }
                    }
                }
            }
        }
        if desired.mode == AttachMode::Clsact || leftovers {
            observed.filters = filters::read(&desired.links, config, report).await;
        }
        if desired.mode == AttachMode::Clsact {
            observed.ingress_only = read_ingress_only(&desired.links, report).await;
        }
        for address in desired.routes.keys() {
            let found = read_route(handle, *address, report).await;
            observed.routes.extend(found.map(|found| (*address, found)));
        }
        observed
    }
}

/// The route of a Service address; none if it could not be read, which is in the report.
pub async fn read_route(handle: &Handle, address: IpAddr, report: &mut Report) -> Option<Found> {
    let found = routes::observe(handle, address).await;
    report.attempt(PART, format_args!("read the route of {address}"), found)
}

async fn read_ingress_only(links: &BTreeMap<u32, String>, report: &mut Report) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for (index, name) in links {
        let has_clsact = traffic_control::has_clsact(*index).await;
        let what = format_args!("read the qdiscs of link {name}");
        if report.attempt(PART, what, has_clsact) == Some(Some(false)) {
            found.insert(*index);
        }
    }
    found
}

fn read_guard(config: &Config, report: &mut Report) -> Option<BTreeMap<u32, Link>> {
    let links = maps::guard_links(config);
    report.attempt(PART, "read which links are guarded", links)
}

/// The pinned links, by ifindex; failures are in the report.
pub fn read_pins(config: &Config, report: &mut Report) -> BTreeSet<(Hook, u32)> {
    let mut pins = BTreeSet::new();
    for hook in Hook::ALL {
        let names = bpffs::names(&links_dir(hook, config));
        let names = report.attempt(PART, "read the pinned links", names);
        let names = names.unwrap_or_default();
        let indexes = names.iter().filter_map(|name| name.parse().ok());
        pins.extend(indexes.map(|index| (hook, index)));
    }
    pins
}

fn read_maps(
    config: &Config,
    desired: &Desired,
    report: &mut Report,
) -> BTreeMap<&'static str, Option<u32>> {
    let mut found = BTreeMap::new();
    for name in desired.maps.keys() {
        let id = maps::pinned_id(name, config);
        let id = report.attempt(PART, "read the pinned maps", id);
        found.extend(id.map(|id| (*name, id)));
    }
    found
}

fn read_sockets(config: &Config, report: &mut Report) -> BTreeMap<SocketHook, u32> {
    let mut found = BTreeMap::new();
    for hook in SocketHook::ALL {
        let id = sockets::attached(hook, config);
        let id = report.attempt(PART, format_args!("read the pin of {hook}"), id);
        found.extend(id.flatten().map(|id| (hook, id)));
    }
    found
}
