// SPDX-License-Identifier: Apache-2.0

//! Counters of all backends in one form.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use proxy_common::guard::Cause;
use proxy_common::{Counters, Reason};
use proxy_netlink::netfilter;

use super::model::{Counts, Direction, OfLink, OfVip};
use crate::backend::decisions::collect::{self, Which};
use crate::backend::ebpf::statistics::{self, Fill, Origin};
use crate::backend::ebpf::{MapError, services};
use crate::backend::{decisions, nftables};
use crate::link::LinkTable;
use crate::state::State;

/// Counters of one VIP and port for one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The VIP with its port.
    pub vip: SocketAddr,
    /// Where the packets came from; `ThisHost` as well if the backend does not count by link.
    pub origin: Origin,
    /// The counters.
    pub counters: Counters,
}

/// Failure to read the counters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Counters of the eBPF programs.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Counters of rules.
    #[error(transparent)]
    Rules(#[from] netfilter::Error),
}

/// Reads the counters of the agent's backend.
///
/// # Errors
///
/// The kernel's error.
pub fn read(state: &State, bpffs: &Path) -> Result<Vec<Row>, Error> {
    let settings = &state.settings;
    let instance = settings.instance;
    let endpoints: Vec<_> = settings.endpoints().collect();
    let is_ebpf = state.backend.backend == "ebpf";
    if !is_ebpf && state.backend.backend != "nftables" {
        return Ok(Vec::new());
    }
    // Rules do not count by link.
    let mut here = decisions::statistics::read(instance, &endpoints)?;
    let mut rows = Vec::new();
    if is_ebpf {
        for (service, requests, replies) in services::traffic(instance, &settings.services)? {
            if let Some((_, counters)) = here.iter_mut().find(|(vip, _)| *vip == service.vip) {
                counters.requests.add(requests);
                counters.replies.add(replies);
            }
        }
        for entry in statistics::read(bpffs)? {
            let same = here.iter_mut().find(|(vip, _)| *vip == entry.vip);
            match (entry.origin, same) {
                (Origin::ThisHost, Some((_, counters))) => counters.add(&entry.counters),
                _ => rows.push(Row {
                    vip: entry.vip,
                    origin: entry.origin,
                    counters: entry.counters,
                }),
            }
        }
    } else {
        for (vip, cause, packets) in nftables::statistics::dropped(instance, &endpoints)? {
            if let Some((_, counters)) = here.iter_mut().find(|(of, _)| *of == vip) {
                counters.dropped[cause as usize] += packets;
            }
        }
    }
    rows.extend(here.into_iter().map(|(vip, counters)| Row {
        vip,
        origin: Origin::ThisHost,
        counters,
    }));
    Ok(rows)
}

/// Number of decided connections, and the capacity for each address family; none with a backend that stores no decisions.
///
/// # Errors
///
/// The kernel's error.
pub fn connections(state: &State) -> Result<Option<Fill>, Error> {
    if !matches!(state.backend.backend.as_str(), "ebpf" | "nftables") {
        return Ok(None);
    }
    Ok(Some(Fill {
        entries: collect::count(Which::ToVips, state.settings.instance)?,
        size: state.settings.max_connections as usize,
    }))
}

/// Groups rows by VIP and sums them up; the node itself comes before links. Deleted links count in the sums only.
pub fn sorted(rows: Vec<Row>, links: &LinkTable) -> Vec<OfVip> {
    let mut vips: BTreeMap<SocketAddr, Vec<Row>> = BTreeMap::new();
    for row in rows {
        vips.entry(row.vip).or_default().push(row);
    }
    let of_vip = |(vip, mut rows): (SocketAddr, Vec<Row>)| {
        rows.sort_by_key(|row| row.origin);
        let mut total = Counters::ZERO;
        for row in &rows {
            total.add(&row.counters);
        }
        let of_link = |row: &Row| {
            let ifindex = match row.origin {
                Origin::ThisHost => None,
                Origin::Link(index) => Some(index),
                Origin::GoneLinks => return None,
            };
            Some(OfLink {
                link: ifindex.map(|index| links.name_of(index)),
                ifindex,
                counts: counts(&row.counters),
            })
        };
        OfVip {
            vip,
            total: counts(&total),
            links: rows.iter().filter_map(of_link).collect(),
        }
    };
    vips.into_iter().map(of_vip).collect()
}

fn counts(counters: &Counters) -> Counts {
    let direction = |traffic: proxy_common::Traffic| Direction {
        packets: traffic.packets,
        bytes: traffic.bytes,
    };
    Counts {
        requests: direction(counters.requests),
        replies: direction(counters.replies),
        decided: counters.decided,
        translated: counters.terminated,
        undecided: Reason::ALL
            .into_iter()
            .map(|reason| (name(reason), counters.undecided_for(reason)))
            .collect(),
        dropped: Cause::ALL
            .into_iter()
            .map(|cause| (cause_name(cause), counters.dropped_for(cause)))
            .collect(),
    }
}

/// The name of a reason in JSON.
fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::InUse => "in_use",
        Reason::NoListener => "no_listener",
        Reason::MapFull => "map_full",
        Reason::NotLocal => "not_local",
    }
}

/// The name of a cause in JSON.
fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Outside => "outside",
        Cause::SpoofedSource => "spoofed_source",
        Cause::Neighbour => "neighbour",
        Cause::StrayReply => "stray_reply",
    }
}
