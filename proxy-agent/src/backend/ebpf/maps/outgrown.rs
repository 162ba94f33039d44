// SPDX-License-Identifier: Apache-2.0

//! Maps whose size is not the one asked for.

use std::borrow::BorrowMut;
use std::path::PathBuf;

use aya::Pod;
use aya::maps::{Map, MapData};
use tracing::info;

use super::{Error, HashMap, failed, pinned};
use crate::backend::ebpf::{PART, Settings};
use crate::kernel::bpffs;

/// What the name of a pinned map ends with until everything is copied out of it.
pub const OUTGROWN: &str = "-old";

/// A pinned map whose size is not the one asked for, to be copied into the new one.
///
/// It stays pinned until it is copied: should the agent die before, the next one finds it.
pub struct Outgrown<K, V> {
    map: HashMap<K, V>,
    name: &'static str,
    size: usize,
    pin: PathBuf,
}

impl<K: Pod, V: Pod> Outgrown<K, V> {
    /// Gives the map another name if its size is not the one asked for, or takes the one that an
    /// agent could not copy that died.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn set_aside(
        name: &'static str,
        entries: u32,
        settings: &Settings,
    ) -> Result<Option<Self>, Error> {
        let old = settings.bpffs.join(format!("{name}{OUTGROWN}"));
        let size_of = |map: &MapData| {
            let info = map.info().map_err(failed(name))?;
            Ok::<_, Error>(info.max_entries())
        };
        if let Some(map) = pinned(name, &settings.bpffs)?
            && size_of(&map)? != entries
        {
            let current = settings.bpffs.join(name);
            if old.exists() {
                // The agent that began to fill it died before it had any program use it. What was set
                // aside then still has everything.
                bpffs::unpin(&current)?;
            } else {
                bpffs::rename(&current, &old)?;
            }
        }
        if !old.exists() {
            return Ok(None);
        }
        let map = MapData::from_pin(&old).map_err(failed(name))?;
        let size = size_of(&map)?;
        info!(
            part = PART,
            "move {name} to a map of {entries} entries (was {size})"
        );
        Ok(Some(Self {
            map: Map::LruHashMap(map).try_into().map_err(failed(name))?,
            name,
            size: size as usize,
            pin: old,
        }))
    }

    /// Copies everything into the new map of the same name, and unpins the old one.
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
