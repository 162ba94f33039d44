// SPDX-License-Identifier: Apache-2.0

//! What backends have counted, in one form.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use proxy_common::guard::Cause;
use proxy_common::{Counters, Reason};

use super::model::{Counts, Direction, OfLink, OfVip};
use crate::backend::ebpf::MapError;
use crate::backend::ebpf::statistics::{self, Origin};
use crate::backend::nftables;
use crate::link::LinkTable;
use crate::netfilter;
use crate::state::State;

/// What was counted of one VIP and port by one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The VIP with its port.
    pub vip: SocketAddr,
    /// How it came; from the node itself too if the backend cannot tell.
    pub origin: Origin,
    /// The counts.
    pub counters: Counters,
}

/// Where a backend keeps its counters.
enum Source {
    /// A map of the eBPF programs.
    Ebpf,
    /// Rules of nf_tables.
    Nftables,
    /// Nowhere: it counts nothing.
    None,
}

/// Why the counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Those of the eBPF programs.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Those of rules.
    #[error(transparent)]
    Rules(#[from] netfilter::Error),
}

/// Reads the counters of the backend that the agent uses.
///
/// # Errors
///
/// The kernel's answer.
pub fn read(state: &State, bpffs: &Path) -> Result<Vec<Row>, Error> {
    let source = match state.backend.backend.as_str() {
        "ebpf" => Source::Ebpf,
        "nftables" => Source::Nftables,
        _ => Source::None,
    };
    match source {
        Source::Ebpf => {
            let entries = statistics::read(bpffs)?.into_iter();
            Ok(entries
                .map(|entry| Row {
                    vip: entry.vip,
                    origin: entry.origin,
                    counters: entry.counters,
                })
                .collect())
        }
        Source::Nftables => {
            let counters =
                nftables::statistics::read(state.settings.instance, &state.settings.endpoints())?;
            Ok(counters
                .into_iter()
                .map(|(vip, counters)| Row {
                    vip,
                    origin: Origin::ThisHost,
                    counters,
                })
                .collect())
        }
        Source::None => Ok(Vec::new()),
    }
}

/// Rows by VIP, with sums; the node itself before links, those that are gone in the sums only.
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
                // Part of the total only.
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
        translated: counters.translated,
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

/// A reason as it is written in JSON.
fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::InUse => "in_use",
        Reason::NoListener => "no_listener",
        Reason::MapFull => "map_full",
        Reason::Rewrite => "rewrite",
        Reason::OlderDecision => "older_decision",
    }
}

/// A cause as it is written in JSON.
fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Outside => "outside",
        Cause::SpoofedSource => "spoofed_source",
        Cause::Neighbour => "neighbour",
    }
}
