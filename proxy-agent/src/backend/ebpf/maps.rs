// SPDX-License-Identifier: Apache-2.0

//! The maps that outlive the agent, as user space reads and writes them.

mod guard;
mod outgrown;
mod services;

use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};

pub use self::guard::{GuardLinks, fill_guard, guard_links};
pub use self::outgrown::{OUTGROWN, Outgrown};
pub use self::services::{Services, earlier_services, fill_services, pinned_vips, stop_deciding};
use super::Settings;
use super::statistics::STATISTICS;
use crate::kernel::bpffs;

/// The connections to Services whose SYN was decided.
pub const OPENING: &str = "OPENING";
/// The proxy's listeners.
pub const LISTENERS: &str = "LISTENERS";
/// The listeners that the agent wants to be kept.
pub const WANTED: &str = "WANTED";
/// What processes on the host addressed.
pub const PEERS: &str = "PEERS";
/// The Services that end on the proxy.
pub const SERVICES: &str = "SERVICES";
/// What links are to the guard.
pub const GUARD_LINKS: &str = "GUARD_LINKS";
/// All maps that are pinned.
pub const PINNED: [&str; 6] = [OPENING, LISTENERS, PEERS, SERVICES, STATISTICS, GUARD_LINKS];
/// How many entries each processor may hold back of a map that forgets the oldest
/// (`LOCAL_FREE_TARGET` of <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/bpf_lru_list.c>).
const HELD_BACK: u32 = 128;

/// A map of an object that is loaded.
pub type HashMap<K, V> = aya::maps::HashMap<MapData, K, V>;

/// A map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot use the eBPF map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
    /// Its pin could not be changed.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
}

/// A map that is kept pinned while its programs are in use.
pub struct Kept {
    data: MapData,
    /// Its id.
    pub id: u32,
}

impl Kept {
    /// Holds a map of a loaded object besides the object.
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

    /// Pins it under its name, in the place of what was there.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn pin(&self, name: &'static str, settings: &Settings) -> Result<(), Error> {
        bpffs::create_dir(&settings.bpffs)?;
        bpffs::replace(&settings.bpffs.join(name), |fresh| {
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

/// The id of the map pinned under a name; none if there is none.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned_id(name: &'static str, settings: &Settings) -> Result<Option<u32>, Error> {
    let Some(data) = pinned(name, &settings.bpffs)? else {
        return Ok(None);
    };
    Ok(Some(data.info().map_err(failed(name))?.id()))
}

/// Says which map an error is about.
pub(super) fn failed(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { map, source }
}

/// Opens the map pinned under a name; none if there is none.
pub(super) fn pinned(name: &'static str, bpffs: &Path) -> Result<Option<MapData>, Error> {
    let pin = bpffs.join(name);
    if !pin.exists() {
        return Ok(None);
    }
    MapData::from_pin(&pin).map(Some).map_err(failed(name))
}

/// Removes the pin of a map that is not like the one the programs expect: another version made it, or
/// another size was asked for. `entries`: none if any size will do.
///
/// # Errors
///
/// The kernel's answer.
pub fn discard_unfit<K, V>(
    name: &'static str,
    entries: Option<u32>,
    settings: &Settings,
) -> Result<(), Error> {
    let Some(data) = pinned(name, &settings.bpffs)? else {
        return Ok(());
    };
    let info = data.info().map_err(failed(name))?;
    let fits = info.key_size() as usize == size_of::<K>()
        && info.value_size() as usize == size_of::<V>()
        && entries.is_none_or(|entries| info.max_entries() == entries);
    if !fits {
        bpffs::unpin(&settings.bpffs.join(name))?;
    }
    Ok(())
}

/// The size of a map that forgets the oldest when it is full, so that what was just written is never
/// forgotten: each processor takes entries off the free ones before it needs them.
///
/// # Errors
///
/// If the kernel does not tell how many processors there may be.
pub fn lru_size(asked: u32) -> Result<u32, Error> {
    let processors = aya::util::nr_cpus().map_err(|(_, error)| failed(OPENING)(error.into()))?;
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    Ok(asked.max(processors.saturating_mul(2 * HELD_BACK)))
}
