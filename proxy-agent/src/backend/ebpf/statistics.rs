// SPDX-License-Identifier: Apache-2.0

//! What the programs have counted, read from the pinned maps: no agent needs to run for that.

use std::net::SocketAddr;
use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuHashMap};
use proxy_common::limits::MAX_COUNTERS;
use proxy_common::{Connection, ConnectionKey, CounterKey, Counters};

use super::Settings;
use super::maps::{self, CONNECTIONS, Error, failed};
use crate::kernel::bpffs;
use crate::link::LinkTable;

/// The counters.
pub const STATISTICS: &str = "STATISTICS";

/// What was counted of one VIP and port, on all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The ifindex of the link it came by; none for the node's own processes and for replies.
    pub link: Option<u32>,
    /// The VIP with its port.
    pub vip: SocketAddr,
    /// The sums.
    pub counters: Counters,
}

/// How full the map of decided connections is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Decisions that are remembered.
    pub entries: usize,
    /// The most it takes.
    pub size: usize,
}

type Statistics = PerCpuHashMap<MapData, CounterKey, Counters>;

/// Reads all counters below a directory of pins, sorted by VIP and link; none if nothing is pinned
/// there.
///
/// # Errors
///
/// The kernel's answer.
pub fn read(bpffs: &Path) -> Result<Vec<Entry>, Error> {
    let Some(map) = open(bpffs)? else {
        return Ok(Vec::new());
    };
    let mut entries = Vec::new();
    for entry in map.iter().take(walk()) {
        let (key, values) = entry.map_err(failed(STATISTICS))?;
        let mut counters = Counters::ZERO;
        for value in values.iter() {
            counters.add(value);
        }
        entries.push(Entry {
            link: (key.link() != CounterKey::THIS_HOST).then_some(key.link()),
            vip: key.vip().into(),
            counters,
        });
    }
    entries.sort_by_key(|entry| (entry.vip, entry.link));
    // A walk that begins anew meets entries twice.
    entries.dedup_by_key(|entry| (entry.vip, entry.link));
    Ok(entries)
}

/// Counts the decisions below a directory of pins; none if nothing is pinned there.
///
/// # Errors
///
/// The kernel's answer.
pub fn fill(bpffs: &Path) -> Result<Option<Fill>, Error> {
    let Some(data) = maps::pinned(CONNECTIONS, bpffs)? else {
        return Ok(None);
    };
    let size = data.info().map_err(failed(CONNECTIONS))?.max_entries() as usize;
    let map: aya::maps::HashMap<_, ConnectionKey, Connection> = Map::LruHashMap(data)
        .try_into()
        .map_err(failed(CONNECTIONS))?;
    // No more than there can be, should the walk begin anew under way.
    let mut entries = 0;
    for key in map.keys().take(size) {
        key.map_err(failed(CONNECTIONS))?;
        entries += 1;
    }
    Ok(Some(Fill { entries, size }))
}

/// Removes the counters of links and VIPs that are gone, so that there is room for others.
///
/// # Errors
///
/// The kernel's answer.
pub fn forget_gone(settings: &Settings, table: &LinkTable) -> Result<(), Error> {
    let Some(mut map) = open(&settings.bpffs)? else {
        return Ok(());
    };
    let keys = map.keys().take(walk()).collect::<Result<Vec<_>, _>>();
    for key in keys.map_err(failed(STATISTICS))? {
        let link = key.link();
        let is_there = link == CounterKey::THIS_HOST || table.by_index(link).is_some();
        let vip = SocketAddr::from(key.vip());
        if is_there && settings.endpoints().any(|endpoint| endpoint == vip) {
            continue;
        }
        match map.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(failed(STATISTICS)(error)),
        }
    }
    Ok(())
}

/// Unpins a map whose layout is not the one that these programs count in.
///
/// # Errors
///
/// The kernel's answer.
pub fn discard_unfit(settings: &Settings) -> Result<(), Error> {
    let Some(data) = maps::pinned(STATISTICS, &settings.bpffs)? else {
        return Ok(());
    };
    let info = data.info().map_err(failed(STATISTICS))?;
    let fits = info.key_size() as usize == size_of::<CounterKey>()
        && info.value_size() as usize == size_of::<Counters>()
        && info.max_entries() == MAX_COUNTERS;
    if !fits {
        bpffs::unpin(&settings.bpffs.join(STATISTICS))?;
    }
    Ok(())
}

fn open(bpffs: &Path) -> Result<Option<Statistics>, Error> {
    let Some(data) = maps::pinned(STATISTICS, bpffs)? else {
        return Ok(None);
    };
    let map = Map::PerCpuHashMap(data);
    map.try_into().map(Some).map_err(failed(STATISTICS))
}

/// How far a walk goes at most, as it begins anew where an entry is removed under it.
fn walk() -> usize {
    2 * MAX_COUNTERS as usize
}
