// SPDX-License-Identifier: Apache-2.0

//! Resizes pinned maps.

use std::borrow::BorrowMut;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{Map, MapData};
use proxy_kernel::bpffs;
use tracing::info;

use super::{Error, HashMap, entries, failed, opened, pinned};
use crate::backend::ebpf::PART;
use crate::config::Config;

/// Suffix of a pinned map that is being copied.
const OLD_SUFFIX: &str = "-old";

/// Where the map of this name is pinned while it is copied.
pub fn old_pin(name: &str, bpffs: &Path) -> PathBuf {
    bpffs.join(format!("{name}{OLD_SUFFIX}"))
}

/// A pinned map of another size than configured, to be copied into a new one.
///
/// It stays pinned until it is copied, so that the next agent finds it if this one is killed.
pub struct Resize<K, V> {
    map: HashMap<K, V>,
    name: &'static str,
    size: usize,
    pin: PathBuf,
}

impl<K: Pod, V: Pod> Resize<K, V> {
    /// Renames the map if its size is not the configured one, or resumes a copy that a killed agent did not finish.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn begin(name: &'static str, entries: u32, config: &Config) -> Result<Option<Self>, Error> {
        let old = old_pin(name, &config.bpffs);
        if let Some(map) = pinned(name, &config.bpffs)?
            && self::entries(name, &map)? != entries
        {
            let current = config.bpffs.join(name);
            if old.exists() {
                // The agent that began to copy was killed before any program used the new map: the old one is still
                // complete.
                bpffs::unpin(&current)?;
            } else {
                bpffs::rename(&current, &old)?;
            }
        }
        let Some(map) = opened(name, &old)? else {
            return Ok(None);
        };
        let size = self::entries(name, &map)?;
        info!(
            part = PART.name(),
            "resizing map {name} from {size} to {entries} entries"
        );
        Ok(Some(Self {
            map: Map::LruHashMap(map).try_into().map_err(failed(name))?,
            name,
            size: size as usize,
            pin: old,
        }))
    }

    /// Copies all entries into the new map of the same name, and unpins the old one.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn move_into<T>(&self, new: &mut aya::maps::HashMap<T, K, V>) -> Result<(), Error>
    where
        T: BorrowMut<MapData>,
    {
        for entry in self.map.iter().take(2 * self.size) {
            let (key, value) = entry.map_err(failed(self.name))?;
            new.insert(key, value, 0).map_err(failed(self.name))?;
        }
        Ok(bpffs::unpin(&self.pin)?)
    }
}
