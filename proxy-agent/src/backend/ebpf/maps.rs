// SPDX-License-Identifier: Apache-2.0

//! The maps that outlive the agent, as user space reads and writes them.

mod decisions;
mod guard;
mod outgrown;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use proxy_common::Endpoint;

pub use self::decisions::{Decisions, Translated};
pub use self::guard::{GuardLinks, fill_guard, guard_links};
pub use self::outgrown::{OUTGROWN, Outgrown, OutgrownDecisions};
use super::Settings;
use super::statistics::STATISTICS;
use crate::config::Service;
use crate::kernel::bpffs;

/// The decided connections.
pub const CONNECTIONS: &str = "CONNECTIONS";
/// What processes on the host addressed.
pub const PEERS: &str = "PEERS";
/// What leads to the proxy.
pub const DESTINATIONS: &str = "DESTINATIONS";
/// What links are to the guard.
pub const GUARD_LINKS: &str = "GUARD_LINKS";
/// All maps that are pinned.
pub const PINNED: [&str; 5] = [CONNECTIONS, PEERS, DESTINATIONS, STATISTICS, GUARD_LINKS];

type HashMap<K, V> = aya::maps::HashMap<MapData, K, V>;

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

impl Error {
    /// True if the map holds something else than what this version puts into it.
    pub fn is_of_another_layout(&self) -> bool {
        let Self::Map { source, .. } = self else {
            return false;
        };
        matches!(
            source,
            MapError::InvalidMapType { .. }
                | MapError::InvalidKeySize { .. }
                | MapError::InvalidValueSize { .. }
        )
    }
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
        let (Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuHashMap(data)) = map else {
            unreachable!("the pinned maps are hash maps");
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

/// Fills the map of destinations: VIPs with their ports, and services.
///
/// # Errors
///
/// The kernel's answer.
pub fn fill_destinations(ebpf: &mut Ebpf, settings: &Settings) -> Result<(), Error> {
    let failed = failed(DESTINATIONS);
    let map = ebpf.map_mut(DESTINATIONS).expect("the object has this map");
    let mut map: aya::maps::HashMap<_, Endpoint, Endpoint> = map.try_into().map_err(&failed)?;
    for vip in settings.endpoints() {
        map.insert(Endpoint::from(vip), Endpoint::from(vip), 0)
            .map_err(&failed)?;
    }
    for service in &settings.services {
        map.insert(
            Endpoint::from(service.cluster_ip),
            Endpoint::from(service.vip),
            0,
        )
        .map_err(&failed)?;
    }
    Ok(())
}

/// The services that the agent before this one translated.
///
/// # Errors
///
/// The kernel's answer.
pub fn earlier_services(settings: &Settings) -> Result<Vec<Service>, Error> {
    let pairs = earlier_destinations(&settings.bpffs)?.into_iter();
    let services = pairs.filter(|(destination, vip)| destination != vip);
    let services = services.map(|(cluster_ip, vip)| Service { cluster_ip, vip });
    Ok(services.collect())
}

/// The VIPs of the agent that pinned its maps here.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned_vips(bpffs: &Path) -> Result<Vec<IpAddr>, Error> {
    let pairs = earlier_destinations(bpffs)?.into_iter();
    Ok(pairs.map(|(_, vip)| vip.ip()).collect())
}

/// Each destination with what it leads to.
fn earlier_destinations(bpffs: &Path) -> Result<Vec<(SocketAddr, SocketAddr)>, Error> {
    let failed = failed(DESTINATIONS);
    let Some(map) = pinned(DESTINATIONS, bpffs)? else {
        return Ok(Vec::new());
    };
    let map: HashMap<Endpoint, Endpoint> = Map::HashMap(map).try_into().map_err(&failed)?;
    map.iter()
        .map(|entry| {
            let (destination, vip) = entry.map_err(&failed)?;
            Ok((destination.into(), vip.into()))
        })
        .collect()
}
