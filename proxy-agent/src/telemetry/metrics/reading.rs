// SPDX-License-Identifier: Apache-2.0

//! What is read of the kernel for an answer. Large maps take time to read: then what was read last
//! serves for a while, so that however often somebody asks, the cost stays small.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tracing::debug;

use crate::backend::ebpf::statistics::{self, Fill};
use crate::kernel::conntrack;
use crate::kernel::sockets::{self, Listening};
use crate::link::{self, LinkTable};
use crate::reconcile::report::chain;
use crate::state::State;
use crate::status::counters::{self, Row};
use crate::status::model::OfVip;
use crate::telemetry::health::Listeners;

/// What may be unreadable.
pub const SOURCES: [&str; 4] = [COUNTERS, CONNECTIONS, LINKS, CONNTRACK];
const COUNTERS: &str = "counters";
const CONNECTIONS: &str = "connections";
const LINKS: &str = "links";
const CONNTRACK: &str = "conntrack";
/// A reading serves for so many times as long as it took.
const PATIENCE: u32 = 20;

/// What was read.
#[derive(Debug, Default)]
pub struct Reading {
    /// By VIP; none if it could not be read.
    pub counters: Option<Vec<OfVip>>,
    /// The maps of the eBPF programs, by name.
    pub maps: Vec<(&'static str, Fill)>,
    /// How full conntrack's table is; none if it is not loaded.
    pub conntrack: Option<conntrack::Fill>,
    /// What has happened to it; none if the kernel does not tell.
    pub conntrack_statistics: Option<conntrack::Statistics>,
    /// The sources that could not be read.
    pub unread: Vec<&'static str>,
}

/// Reads, and remembers what took long to read.
#[derive(Debug, Default)]
pub struct Reader {
    last: Option<Maps>,
}

/// What may take long to read.
#[derive(Debug)]
struct Maps {
    rows: Result<Vec<Row>, ()>,
    fills: Result<Vec<(&'static str, Fill)>, ()>,
    until: Instant,
}

impl Reader {
    /// Reads what an answer needs; names of links only if `links`.
    pub async fn read(&mut self, state: &State, links: bool) -> Reading {
        let mut reading = Reading::default();
        let is_old = |maps: &Maps| Instant::now() >= maps.until;
        if self.last.as_ref().is_none_or(is_old) {
            let begun = Instant::now();
            let rows = counters::read(state, &state.settings.bpffs);
            let fills = fills(state);
            self.last = Some(Maps {
                rows: rows.map_err(|error| tell(COUNTERS, &error)),
                fills: fills.map_err(|error| tell(CONNECTIONS, &error)),
                until: Instant::now() + begun.elapsed() * PATIENCE,
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

/// What listens for each of the endpoints.
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

/// None if there is nothing to read.
fn if_loaded<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value, or none and the source among those that are told.
fn or_noted<T, E: Error>(
    result: Result<T, E>,
    source: &'static str,
    unread: &mut Vec<&'static str>,
) -> Option<T> {
    result
        .inspect_err(|error| {
            tell(source, error);
            if !unread.contains(&source) {
                unread.push(source);
            }
        })
        .ok()
}

fn tell(source: &str, error: &dyn Error) {
    debug!("no metrics of {source}: {}", chain(error));
}
