// SPDX-License-Identifier: Apache-2.0

//! The map of decided connections.

use std::net::SocketAddr;

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use proxy_common::{Connection, ConnectionKey};

use super::{CONNECTIONS, Error, HashMap, OutgrownDecisions, failed};
use crate::backend::ebpf::Settings;
use crate::config::Service;

/// Of `linux/bpf.h`: only an entry that is not there is written.
const BPF_NOEXIST: u64 = 1;

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
