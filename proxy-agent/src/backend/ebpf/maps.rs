// SPDX-License-Identifier: Apache-2.0

//! The maps that outlive the agent, as user space reads and writes them.

use std::borrow::BorrowMut;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData, MapError};
use aya::{Ebpf, Pod};
use ipnet::IpNet;
use proxy_common::guard::Link;
use proxy_common::limits::MAX_GUARD_LINKS;
use proxy_common::{Address, Connection, ConnectionKey, Endpoint};
use tracing::info;

use super::statistics::STATISTICS;
use super::{PART, Settings};
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
/// The VIPs, and the networks that may reach them from outside.
const VIPS: &str = "VIPS";
const ALLOWED: &str = "ALLOWED";

/// What the name of a pinned map ends with until everything is copied out of it.
pub const OUTGROWN: &str = "-old";

/// Of `linux/bpf.h`: only an entry that is not there is written.
const BPF_NOEXIST: u64 = 1;

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

/// The map of decided connections.
pub struct Decisions {
    map: HashMap<ConnectionKey, Connection>,
    /// Entries it has room for.
    size: usize,
}

/// A connection that is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// The client.
    pub client: SocketAddr,
    /// What it addressed, and what it reached.
    pub service: Service,
}

impl Decisions {
    /// Takes the map out of a loaded object.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map = ebpf.take_map(CONNECTIONS).expect("the object has this map");
        Self::open(map)
    }

    /// Opens the map that an agent has pinned; none if there is none.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn pinned(settings: &Settings) -> Result<Option<Self>, Error> {
        let pin = settings.bpffs.join(CONNECTIONS);
        if !pin.exists() {
            return Ok(None);
        }
        let map = MapData::from_pin(&pin).map_err(failed(CONNECTIONS))?;
        Self::open(Map::LruHashMap(map)).map(Some)
    }

    fn open(map: Map) -> Result<Self, Error> {
        let size = match &map {
            Map::LruHashMap(data) => data.info().map_err(failed(CONNECTIONS))?.max_entries(),
            _ => 0,
        };
        Ok(Self {
            map: map.try_into().map_err(failed(CONNECTIONS))?,
            size: size as usize,
        })
    }

    /// Whether nothing is decided.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn is_empty(&self) -> Result<bool, Error> {
        let first = self.map.keys().next().transpose();
        Ok(first.map_err(failed(CONNECTIONS))?.is_none())
    }

    /// All connections that are translated.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn translated(&self) -> Result<Vec<Translated>, Error> {
        let mut found = Vec::new();
        for entry in self.map.iter().take(self.walk()) {
            let (key, connection) = entry.map_err(failed(CONNECTIONS))?;
            if connection.is_translated() {
                found.push(Translated {
                    client: key.client().into(),
                    service: Service {
                        cluster_ip: connection.original().into(),
                        vip: key.vip().into(),
                    },
                });
            }
        }
        Ok(found)
    }

    /// Takes the decision about a connection back: it is tracked from then on.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn take_back(&mut self, client: SocketAddr, vip: SocketAddr) -> Result<(), Error> {
        self.remove(&ConnectionKey::new(client.into(), vip.into()))
    }

    /// Decides a connection that is already open, unless it is decided.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn take_over(&mut self, client: SocketAddr, vip: SocketAddr) -> Result<(), Error> {
        let key = ConnectionKey::new(client.into(), vip.into());
        match self.map.insert(key, Connection::taken_over(), BPF_NOEXIST) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                Ok(())
            }
            result => result.map_err(failed(CONNECTIONS)),
        }
    }

    /// Takes all decisions back.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget(&mut self) -> Result<(), Error> {
        let keys = self.map.keys().take(self.walk());
        let keys: Vec<_> = keys
            .collect::<Result<_, _>>()
            .map_err(failed(CONNECTIONS))?;
        keys.iter().try_for_each(|key| self.remove(key))
    }

    /// Takes over what is in a map of another size.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn take_over_all(&mut self, outgrown: &OutgrownDecisions) -> Result<(), Error> {
        outgrown.move_into(&mut self.map)
    }

    fn remove(&mut self, key: &ConnectionKey) -> Result<(), Error> {
        match self.map.remove(key) {
            // Evicted, or taken back by the programs meanwhile.
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(failed(CONNECTIONS)(error)),
        }
    }

    /// How far a walk goes at most: it begins anew where an entry is removed under it, and must end
    /// all the same.
    fn walk(&self) -> usize {
        2 * self.size
    }
}

/// A pinned map whose size is not the one asked for, to be copied into the new one.
///
/// It stays pinned until it is copied: should the agent die before, the next one finds it.
pub struct Outgrown<K, V> {
    map: HashMap<K, V>,
    name: &'static str,
    size: usize,
    pin: PathBuf,
}

/// The map of decided connections.
pub type OutgrownDecisions = Outgrown<ConnectionKey, Connection>;

impl<K: Pod, V: Pod> Outgrown<K, V> {
    /// Gives the map another name if its size is not the one asked for, or takes the one that an
    /// agent could not copy that died.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn set_aside(name: &'static str, settings: &Settings) -> Result<Option<Self>, Error> {
        let old = settings.bpffs.join(format!("{name}{OUTGROWN}"));
        let size_of = |map: &MapData| {
            let info = map.info().map_err(failed(name))?;
            Ok::<_, Error>(info.max_entries())
        };
        if let Some(map) = pinned(name, &settings.bpffs)?
            && size_of(&map)? != settings.max_connections
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
            "move {name} to a map of {} entries (was {size})", settings.max_connections
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

/// Fills the maps of the guard that do not change: VIPs, and networks that may come from outside.
///
/// # Errors
///
/// The kernel's answer.
pub fn fill_guard(ebpf: &mut Ebpf, settings: &Settings) -> Result<(), Error> {
    if !settings.guard {
        return Ok(());
    }
    let map = ebpf.map_mut(VIPS).expect("the object has this map");
    let mut vips: aya::maps::HashMap<_, Address, Endpoint> =
        map.try_into().map_err(failed(VIPS))?;
    // What has no port is counted under the first one.
    for vip in settings.endpoints().collect::<Vec<_>>().into_iter().rev() {
        let counted = Endpoint::from(vip);
        vips.insert(counted.address(), counted, 0)
            .map_err(failed(VIPS))?;
    }
    let map = ebpf.map_mut(ALLOWED).expect("the object has this map");
    let mut allowed: LpmTrie<_, [u32; 4], u32> = map.try_into().map_err(failed(ALLOWED))?;
    for network in &settings.allow_from {
        // IPv4 is mapped into IPv6.
        let above = match network {
            IpNet::V4(_) => 96,
            IpNet::V6(_) => 0,
        };
        let address = Address::from(network.addr()).words();
        let key = Key::new(above + u32::from(network.prefix_len()), address);
        allowed.insert(&key, 1, 0).map_err(failed(ALLOWED))?;
    }
    Ok(())
}

/// What the programs know of links, to change it.
pub struct GuardLinks(HashMap<u32, Link>);

impl GuardLinks {
    /// Takes the map out of a loaded object.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map = ebpf.take_map(GUARD_LINKS).expect("the object has this map");
        map.try_into().map(Self).map_err(failed(GUARD_LINKS))
    }

    /// Makes them what they should be, guarded ones first.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn set(&mut self, links: &BTreeMap<u32, Link>) -> Result<(), Error> {
        let failed = failed(GUARD_LINKS);
        for (index, link) in links {
            self.0.insert(index, link, 0).map_err(&failed)?;
        }
        for index in read_guard_links(&self.0)?.into_keys() {
            if !links.contains_key(&index) {
                match self.0.remove(&index) {
                    Ok(()) | Err(MapError::KeyNotFound) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(())
    }
}

/// What the programs whose maps are pinned know of links.
///
/// # Errors
///
/// The kernel's answer.
pub fn guard_links(settings: &Settings) -> Result<BTreeMap<u32, Link>, Error> {
    let Some(data) = pinned(GUARD_LINKS, &settings.bpffs)? else {
        return Ok(BTreeMap::new());
    };
    let map = Map::HashMap(data).try_into();
    read_guard_links(&map.map_err(failed(GUARD_LINKS))?)
}

fn read_guard_links(map: &HashMap<u32, Link>) -> Result<BTreeMap<u32, Link>, Error> {
    // A walk begins anew where an entry is removed under it, and must end all the same.
    let entries = map.iter().take(2 * MAX_GUARD_LINKS as usize);
    let entries: Result<_, _> = entries.collect();
    entries.map_err(failed(GUARD_LINKS))
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
