// SPDX-License-Identifier: Apache-2.0

//! Counters of the programs, read from the pinned maps; no agent needs to run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aya::maps::{Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use proxy_common::limits::MAX_COUNTERS;
use proxy_common::{CounterKey, Counters};

use super::maps::{self, Error, STATISTICS, failed};
use crate::config::Config;
use crate::link::LinkTable;

/// Held while counters are moved, so that no concurrent reader in this process misses them or counts them twice.
static WHOLE: Mutex<()> = Mutex::new(());

/// The origin of traffic to a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The node's own processes; replies count here too.
    ThisHost,
    /// The link with this ifindex.
    Link(u32),
    /// Deleted links.
    GoneLinks,
}

/// The counters of one VIP and port, summed over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The origin.
    pub origin: Origin,
    /// The VIP with its port.
    pub vip: SocketAddr,
    /// The sums.
    pub counters: Counters,
}

/// Fill level of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Number of entries.
    pub entries: usize,
    /// Capacity.
    pub size: usize,
}

type Statistics = PerCpuHashMap<MapData, CounterKey, Counters>;

/// Reads all counters of a directory of pins, sorted by VIP and origin; empty without pins.
///
/// # Errors
///
/// The kernel's answer.
pub fn read(bpffs: &Path) -> Result<Vec<Entry>, Error> {
    let _whole = WHOLE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(map) = open(bpffs)? else {
        return Ok(Vec::new());
    };
    let mut entries = Vec::new();
    for entry in map.iter().take(walk()) {
        let (key, values) = entry.map_err(failed(STATISTICS))?;
        entries.push(Entry {
            origin: match key.link() {
                CounterKey::THIS_HOST => Origin::ThisHost,
                CounterKey::GONE_LINKS => Origin::GoneLinks,
                link => Origin::Link(link),
            },
            vip: key.vip().into(),
            counters: sum(&values),
        });
    }
    entries.sort_by_key(|entry| (entry.vip, entry.origin));
    // A restarted iteration returns entries twice.
    entries.dedup_by_key(|entry| (entry.vip, entry.origin));
    Ok(entries)
}

/// The fill level of the map of counters in a directory of pins; none without pins.
///
/// # Errors
///
/// The kernel's answer.
pub fn counter_fill(bpffs: &Path) -> Result<Option<Fill>, Error> {
    let Some(map) = open(bpffs)? else {
        return Ok(None);
    };
    let mut entries = 0;
    for key in map.keys().take(walk()) {
        key.map_err(failed(STATISTICS))?;
        entries += 1;
    }
    Ok(Some(Fill {
        entries,
        size: MAX_COUNTERS as usize,
    }))
}

/// Removes the counters of deleted links and former VIPs, which makes room for others. Counters of current VIPs are added to one
/// entry for all deleted links, so that sums never decrease.
///
/// Skipped while the counters are being read.
///
/// # Errors
///
/// The kernel's answer.
pub fn forget_gone(config: &Config, table: &LinkTable) -> Result<(), Error> {
    let Ok(_whole) = WHOLE.try_lock() else {
        return Ok(());
    };
    let Some(mut map) = open(&config.bpffs)? else {
        return Ok(());
    };
    let mut kept: BTreeMap<SocketAddr, Counters> = BTreeMap::new();
    let keys = map.keys().take(walk()).collect::<Result<Vec<_>, _>>();
    for key in keys.map_err(failed(STATISTICS))? {
        let link = key.link();
        let is_there = matches!(link, CounterKey::THIS_HOST | CounterKey::GONE_LINKS)
            || table.by_index(link).is_some();
        let vip = SocketAddr::from(key.vip());
        let is_ours = config.endpoints().any(|endpoint| endpoint == vip);
        if is_there && is_ours {
            continue;
        }
        if is_ours && let Some(counters) = value(&map, &key)? {
            kept.entry(vip).or_insert(Counters::ZERO).add(&counters);
        }
        match map.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(failed(STATISTICS)(error)),
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(STATISTICS)(error.into()))?;
    for (vip, mut counters) in kept {
        let key = CounterKey::new(CounterKey::GONE_LINKS, vip.into());
        if let Some(earlier) = value(&map, &key)? {
            counters.add(&earlier);
        }
        // All in one place: readers sum over the CPUs.
        let mut values = vec![Counters::ZERO; cpus];
        values[0] = counters;
        let values =
            PerCpuValues::try_from(values).map_err(|error| failed(STATISTICS)(error.into()))?;
        map.insert(key, values, 0).map_err(failed(STATISTICS))?;
    }
    Ok(())
}

/// The counters of a key, if there are any.
fn value(map: &Statistics, key: &CounterKey) -> Result<Option<Counters>, Error> {
    match map.get(key, 0) {
        Ok(values) => Ok(Some(sum(&values))),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(failed(STATISTICS)(error)),
    }
}

/// The sum over all CPUs.
fn sum(values: &PerCpuValues<Counters>) -> Counters {
    let mut sum = Counters::ZERO;
    for value in values.iter() {
        sum.add(value);
    }
    sum
}

fn open(bpffs: &Path) -> Result<Option<Statistics>, Error> {
    let Some(data) = maps::pinned(STATISTICS, bpffs)? else {
        return Ok(None);
    };
    let map = Map::PerCpuHashMap(data);
    map.try_into().map(Some).map_err(failed(STATISTICS))
}

/// Limit of an iteration, which restarts if its entry is removed concurrently.
fn walk() -> usize {
    2 * MAX_COUNTERS as usize
}
