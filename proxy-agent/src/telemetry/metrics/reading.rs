// SPDX-License-Identifier: Apache-2.0

//! Reads the values of an answer from the kernel. Large maps take long to read: such a reading is cached for a multiple of its
//! duration, which bounds the load by frequent scrapes.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use proxy_kernel::conntrack;
use proxy_kernel::sockets::{self, Listening};
use tracing::debug;

use crate::backend::ebpf::statistics::{self, Fill};
use crate::link::{self, LinkTable};
use crate::reconcile::report::chain;
use crate::state::State;
use crate::status::counters::{self, Row};
use crate::status::model::OfVip;
use crate::telemetry::health::Listeners;

/// The sources that may fail.
pub const SOURCES: [&str; 4] = [COUNTERS, CONNECTIONS, LINKS, CONNTRACK];
const COUNTERS: &str = "counters";
const CONNECTIONS: &str = "connections";
const LINKS: &str = "links";
const CONNTRACK: &str = "conntrack";
/// A reading is cached for this multiple of its duration: at most 5 % of the time is spent on reading.
const CACHE_FACTOR: u32 = 20;

/// Values read from the kernel.
#[derive(Debug, Default)]
pub struct Reading {
    /// Counters by VIP; none if they could not be read.
    pub counters: Option<Vec<OfVip>>,
    /// Entries and capacities of the eBPF maps, by name.
    pub maps: Vec<(&'static str, Fill)>,
    /// Entries and capacity of the conntrack table; none if conntrack is not loaded.
    pub conntrack: Option<conntrack::Fill>,
    /// Statistics of conntrack; none if the kernel does not expose them.
    pub conntrack_statistics: Option<conntrack::Statistics>,
    /// The sources that could not be read.
    pub unread: Vec<&'static str>,
}

/// Reads, and caches slow readings.
#[derive(Debug, Default)]
pub struct Reader {
    last: Option<Maps>,
}

/// The cached part.
#[derive(Debug)]
struct Maps {
    rows: Result<Vec<Row>, ()>,
    fills: Result<Vec<(&'static str, Fill)>, ()>,
    until: Instant,
}

impl Reader {
    /// Reads the values of an answer; names of links only if `links`.
    pub async fn read(&mut self, state: &State, links: bool) -> Reading {
        let mut reading = Reading::default();
        let is_old = |maps: &Maps| Instant::now() >= maps.until;
        if self.last.as_ref().is_none_or(is_old) {
            let begun = Instant::now();
            let rows = counters::read(state, &state.settings.bpffs);
            let fills = fills(state);
            self.last = Some(Maps {
                rows: rows.map_err(|error| log_unread(COUNTERS, &error)),
                fills: fills.map_err(|error| log_unread(CONNECTIONS, &error)),
                until: Instant::now() + begun.elapsed() * CACHE_FACTOR,
            });
        }
        let unread = &mut reading.unread;
        let table = if links {
            or_noted(
                link::observe(&state.settings.vips, &[]).await,
                LINKS,
                unread,
            )
        } else {
            None
        };
        let table = table.unwrap_or_else(LinkTable::default);
        if let Some(Maps { rows, fills, .. }) = &self.last {
            match rows {
                Ok(rows) => reading.counters = Some(counters::sorted(rows.clone(), &table)),
                Err(()) => unread.push(COUNTERS),
            }
            match fills {
                Ok(fills) => reading.maps.clone_from(fills),
                Err(()) => unread.push(CONNECTIONS),
            }
        }
        reading.conntrack = or_noted(if_loaded(conntrack::fill()), CONNTRACK, unread).flatten();
        let statistics = if_loaded(conntrack::statistics());
        reading.conntrack_statistics = or_noted(statistics, CONNTRACK, unread).flatten();
        reading
    }
}

/// The listening sockets for each of the endpoints.
pub fn listeners(endpoints: &[SocketAddr]) -> Listeners {
    let listeners = sockets::listeners()
        .map_err(|error| format!("cannot read the list of listening sockets: {error}"))?;
    let listening = |endpoint: &SocketAddr| (*endpoint, Listening::at(*endpoint, &listeners));
    Ok(endpoints.iter().map(listening).collect())
}

fn fills(state: &State) -> Result<Vec<(&'static str, Fill)>, counters::Error> {
    let mut fills = Vec::new();
    fills.extend(counters::connections(state)?.map(|fill| ("connections", fill)));
    if state.backend.backend == "ebpf" {
        let counters = statistics::counter_fill(&state.settings.bpffs)?;
        fills.extend(counters.map(|fill| ("statistics", fill)));
    }
    Ok(fills)
}

/// Maps "not found" to none: the kernel module is not loaded.
fn if_loaded<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value; on failure none, with `source` added to `unread`.
fn or_noted<T, E: Error>(
    result: Result<T, E>,
    source: &'static str,
    unread: &mut Vec<&'static str>,
) -> Option<T> {
    result
        .inspect_err(|error| {
            log_unread(source, error);
            if !unread.contains(&source) {
                unread.push(source);
            }
        })
        .ok()
}

fn log_unread(source: &str, error: &dyn Error) {
    debug!("no metrics of {source}: {}", chain(error));
}
