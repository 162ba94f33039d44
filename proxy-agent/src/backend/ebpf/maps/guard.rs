// SPDX-License-Identifier: Apache-2.0

//! Maps of the guard.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapError};
use ipnet::IpNet;
use proxy_common::guard::Link;
use proxy_common::limits::MAX_GUARD_LINKS;
use proxy_common::{Address, Endpoint};

use super::{Error, GUARD_LINKS, HashMap, failed, pinned};
use crate::config::{Config, Guard, Service};

/// The VIPs, with and without ports, the addresses for which neighbours must not get answers, and the networks that may reach the
/// VIPs from outside of the node.
const VIPS: &str = "VIPS";
const ENDPOINTS: &str = "ENDPOINTS";
const ASKED: &str = "ASKED";
const ALLOWED: &str = "ALLOWED";

/// Fills the constant maps of the guard: VIPs and allowed networks.
///
/// # Errors
///
/// The kernel's answer.
pub fn fill_guard(ebpf: &mut Ebpf, config: &Config, draining: &[Service]) -> Result<(), Error> {
    if config.guard == Guard::Off {
        return Ok(());
    }
    let map = ebpf.map_mut(VIPS).expect("the object has this map");
    let mut vips: aya::maps::HashMap<_, Address, Endpoint> =
        map.try_into().map_err(failed(VIPS))?;
    // Packets without a port count for the first one.
    for vip in config.endpoints().collect::<Vec<_>>().into_iter().rev() {
        let counted = Endpoint::from(vip);
        vips.insert(counted.address(), counted, 0)
            .map_err(failed(VIPS))?;
    }
    let map = ebpf.map_mut(ENDPOINTS).expect("the object has this map");
    let mut endpoints: aya::maps::HashMap<_, Endpoint, u32> =
        map.try_into().map_err(failed(ENDPOINTS))?;
    for vip in config.endpoints() {
        endpoints
            .insert(Endpoint::from(vip), 1, 0)
            .map_err(failed(ENDPOINTS))?;
    }
    let map = ebpf.map_mut(ASKED).expect("the object has this map");
    let mut asked: aya::maps::HashMap<_, Address, Endpoint> =
        map.try_into().map_err(failed(ASKED))?;
    let vips = config.endpoints().map(|vip| (vip.ip(), vip));
    let services = config.services.iter().chain(draining);
    let services = services.map(|service| (service.cluster_ip.ip(), service.vip));
    for (ip, counted) in vips.chain(services) {
        asked
            .insert(Address::from(ip), Endpoint::from(counted), 0)
            .map_err(failed(ASKED))?;
    }
    let map = ebpf.map_mut(ALLOWED).expect("the object has this map");
    let mut allowed: LpmTrie<_, [u32; 4], u32> = map.try_into().map_err(failed(ALLOWED))?;
    for network in &config.allow_from {
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

/// The guard's map of links.
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

    /// Writes the desired entries and removes others.
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

/// The entries of the pinned map of links.
///
/// # Errors
///
/// The kernel's answer.
pub fn guard_links(config: &Config) -> Result<BTreeMap<u32, Link>, Error> {
    let Some(data) = pinned(GUARD_LINKS, &config.bpffs)? else {
        return Ok(BTreeMap::new());
    };
    let map = Map::HashMap(data).try_into();
    read_guard_links(&map.map_err(failed(GUARD_LINKS))?)
}

fn read_guard_links(map: &HashMap<u32, Link>) -> Result<BTreeMap<u32, Link>, Error> {
    // The iteration restarts if its entry is removed concurrently; the limit makes it end.
    let entries = map.iter().take(2 * MAX_GUARD_LINKS as usize);
    let entries: Result<_, _> = entries.collect();
    entries.map_err(failed(GUARD_LINKS))
}
