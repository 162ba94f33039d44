// SPDX-License-Identifier: Apache-2.0

//! The pinned maps, which outlive the agent.

mod guard;
mod resize;
mod services;

use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use proxy_kernel::bpffs;

pub use self::guard::{GuardLinks, fill_guard, guard_links};
pub use self::resize::{Resize, old_pin};
pub use self::services::{
    Services, earlier_services, fill_services, pinned_services, pinned_vips, stop_deciding,
};
use crate::config::Config;

/// Connections to Services with a decided SYN.
pub const OPENING: &str = "OPENING";
/// The proxy's listeners.
pub const LISTENERS: &str = "LISTENERS";
/// Listeners that the agent wants the iterator to store.
pub const WANTED: &str = "WANTED";
/// The original destinations of processes on the host.
pub const PEERS: &str = "PEERS";
/// The Services that end on the proxy.
pub const SERVICES: &str = "SERVICES";
/// The guard's classification of links.
pub const GUARD_LINKS: &str = "GUARD_LINKS";
/// The counters.
pub const STATISTICS: &str = "STATISTICS";
/// All pinned maps.
pub const PINNED: [&str; 6] = [OPENING, LISTENERS, PEERS, SERVICES, STATISTICS, GUARD_LINKS];
/// Entries that each processor may hold back in an LRU map
/// (`LOCAL_FREE_TARGET` of <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/bpf_lru_list.c>).
const HELD_BACK: u32 = 128;

/// A map of a loaded object.
pub type HashMap<K, V> = aya::maps::HashMap<MapData, K, V>;

/// Failure to open, read or write a map.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel returned an error.
    #[error("cannot use the eBPF map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's error.
        #[source]
        source: MapError,
    },
    /// The pin could not be changed.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
}

/// A map that is pinned while its programs are in use.
pub struct PinnedMap {
    data: MapData,
    /// Its id.
    pub id: u32,
}

impl PinnedMap {
    /// Duplicates the descriptor of a loaded object's map.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn of(ebpf: &Ebpf, name: &'static str) -> Result<Self, Error> {
        let map = ebpf.map(name).expect("the object has this map");
        let (Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::SockHash(data)) = map
        else {
            unreachable!("the pinned maps are of these kinds");
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| failed(name)(MapError::IoError(error)))?;
        let data = MapData::from_fd(fd).map_err(failed(name))?;
        let id = data.info().map_err(failed(name))?.id();
        Ok(Self { data, id })
    }

    /// Pins it under its name, replacing an older pin.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn pin(&self, name: &'static str, config: &Config) -> Result<(), Error> {
        bpffs::create_dir(&config.bpffs)?;
        bpffs::replace(&config.bpffs.join(name), |fresh| {
            self.data.pin(fresh).map_err(|error| Error::Map {
                map: name,
                source: MapError::PinError {
                    name: Some(name.to_owned()),
                    error,
                },
            })
        })
    }
}

/// The id of the map pinned under a name; none without a pin.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned_id(name: &'static str, config: &Config) -> Result<Option<u32>, Error> {
    let Some(data) = pinned(name, &config.bpffs)? else {
        return Ok(None);
    };
    Ok(Some(data.info().map_err(failed(name))?.id()))
}

/// Adds the map's name to an error.
pub(super) fn failed(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { map, source }
}

/// Opens the map pinned under a name; none without a pin.
pub(super) fn pinned(name: &'static str, bpffs: &Path) -> Result<Option<MapData>, Error> {
    opened(name, &bpffs.join(name))
}

/// Opens the map pinned at a path; none without a pin. `name` is for errors.
fn opened(name: &'static str, pin: &Path) -> Result<Option<MapData>, Error> {
    if !pin.exists() {
        return Ok(None);
    }
    MapData::from_pin(pin).map(Some).map_err(failed(name))
}

/// The number of entries that a map has room for.
fn entries(name: &'static str, map: &MapData) -> Result<u32, Error> {
    Ok(map.info().map_err(failed(name))?.max_entries())
}

/// Removes the pin of a map whose shape differs from the programs': it was created by another version or with another size.
/// `entries` is the expected size; none: any.
///
/// # Errors
///
/// The kernel's answer.
pub fn discard_unfit<K, V>(
    name: &'static str,
    entries: Option<u32>,
    config: &Config,
) -> Result<(), Error> {
    let Some(data) = pinned(name, &config.bpffs)? else {
        return Ok(());
    };
    let info = data.info().map_err(failed(name))?;
    let fits = info.key_size() as usize == size_of::<K>()
        && info.value_size() as usize == size_of::<V>()
        && entries.is_none_or(|entries| info.max_entries() == entries);
    if !fits {
        bpffs::unpin(&config.bpffs.join(name))?;
    }
    Ok(())
}

/// The size of an LRU map that does not evict recent entries: each processor takes free entries in advance. `asked` is none if no
/// Service ends on the proxy. Only Services need such maps, and creating large ones takes milliseconds and megabytes; without
/// Services they have the minimum size, unless those of an earlier agent are larger.
///
/// # Errors
///
/// If the kernel does not report the number of possible processors, or the size of a pinned map.
pub fn lru_size(asked: Option<u32>, config: &Config) -> Result<u32, Error> {
    let processors = aya::util::nr_cpus().map_err(|(_, error)| failed(OPENING)(error.into()))?;
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    let least = processors.saturating_mul(2 * HELD_BACK);
    if let Some(asked) = asked {
        return Ok(least.max(asked));
    }
    let bpffs = &config.bpffs;
    let maps = [
        pinned(PEERS, bpffs)?,
        opened(PEERS, &old_pin(PEERS, bpffs))?,
    ];
    maps.iter()
        .flatten()
        .try_fold(least, |size, map| Ok(size.max(entries(PEERS, map)?)))
}
