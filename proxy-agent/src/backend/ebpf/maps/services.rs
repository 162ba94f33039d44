// SPDX-License-Identifier: Apache-2.0

//! Maps of Services that end on the proxy.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, MapError};
use proxy_common::limits::MAX_SERVICES;
use proxy_common::{Address, Endpoint, ServicePorts};

use super::{Error, HashMap, SERVICES, failed, pinned};
use crate::backend::ebpf::layout;
use crate::config::{Config, Service};

/// The ports of each Service address.
const SERVICE_PORTS: &str = "SERVICE_PORTS";

/// The Services of earlier agents, from pins of any layout.
///
/// # Errors
///
/// The kernel's answer.
pub fn earlier_services(config: &Config) -> Result<Vec<Service>, Error> {
    let mut found = Vec::new();
    for bpffs in layout::all(config)? {
        found.extend(pinned_services(&bpffs)?);
    }
    found.sort_by_key(|service| service.cluster_ip);
    found.dedup_by_key(|service| service.cluster_ip);
    Ok(found)
}

/// Makes the programs of earlier agents, of any layout, ignore new connections to Services.
///
/// # Errors
///
/// The kernel's answer.
pub fn stop_deciding(config: &Config) -> Result<(), Error> {
    let all = layout::all(config)?;
    all.iter()
        .map(|bpffs| stop_pinned(bpffs))
        .fold(Ok(()), Result::and)
}

/// Fills the maps of Services: those of the settings, and those being drained.
///
/// # Errors
///
/// The kernel's answer.
pub fn fill_services(ebpf: &mut Ebpf, config: &Config, draining: &[Service]) -> Result<(), Error> {
    let map = ebpf.map_mut(SERVICES).expect("the object has this map");
    let mut services: aya::maps::HashMap<_, Endpoint, proxy_common::Service> =
        map.try_into().map_err(failed(SERVICES))?;
    let mut of_address: BTreeMap<IpAddr, ServicePorts> = BTreeMap::new();
    let wanted = config.services.iter().map(|service| (service, false));
    let all = wanted.chain(draining.iter().map(|service| (service, true)));
    for (service, is_draining) in all {
        let Service { cluster_ip, vip } = service;
        let value = proxy_common::Service::new(Endpoint::from(*vip), is_draining);
        services
            .insert(Endpoint::from(*cluster_ip), value, 0)
            .map_err(failed(SERVICES))?;
        let ports = of_address.entry(cluster_ip.ip()).or_default();
        // The command line has limited the ports of those in the settings.
        let _ = ports.add(cluster_ip.port().to_be());
    }
    let map = ebpf
        .map_mut(SERVICE_PORTS)
        .expect("the object has this map");
    let mut map: aya::maps::HashMap<_, Address, ServicePorts> =
        map.try_into().map_err(failed(SERVICE_PORTS))?;
    for (ip, ports) in of_address {
        map.insert(Address::from(ip), ports, 0)
            .map_err(failed(SERVICE_PORTS))?;
    }
    Ok(())
}

/// The map of Services of loaded programs.
pub struct Services(HashMap<Endpoint, proxy_common::Service>);

impl Services {
    /// Takes the map out of a loaded object.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map = ebpf.take_map(SERVICES).expect("the object has this map");
        map.try_into().map(Self).map_err(failed(SERVICES))
    }

    /// Writes a Service, and whether new connections to it are ignored.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn set(&mut self, service: &Service, is_draining: bool) -> Result<(), Error> {
        let value = proxy_common::Service::new(Endpoint::from(service.vip), is_draining);
        let endpoint = Endpoint::from(service.cluster_ip);
        self.0.insert(endpoint, value, 0).map_err(failed(SERVICES))
    }

    /// Removes a Service, so that the programs ignore its address.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn forget(&mut self, service: &Service) -> Result<(), Error> {
        match self.0.remove(&Endpoint::from(service.cluster_ip)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed(SERVICES)(error)),
        }
    }
}

/// Makes the programs of these pins ignore new connections.
fn stop_pinned(bpffs: &Path) -> Result<(), Error> {
    let Some(mut map) = open(bpffs)? else {
        return Ok(());
    };
    for (endpoint, service) in entries(&map)? {
        let draining = proxy_common::Service::new(service.vip(), true);
        map.insert(endpoint, draining, 0)
            .map_err(failed(SERVICES))?;
    }
    Ok(())
}

/// The Services in these pins, including those being drained.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned_services(bpffs: &Path) -> Result<Vec<Service>, Error> {
    let Some(map) = open(bpffs)? else {
        return Ok(Vec::new());
    };
    let mut services: Vec<_> = entries(&map)?
        .into_iter()
        .map(|(endpoint, service)| Service {
            cluster_ip: SocketAddr::from(endpoint),
            vip: SocketAddr::from(service.vip()),
        })
        .collect();
    services.sort_by_key(|service| service.cluster_ip);
    Ok(services)
}

/// The VIPs of the Services in these pins.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned_vips(bpffs: &Path) -> Result<Vec<IpAddr>, Error> {
    let services = pinned_services(bpffs)?.into_iter();
    Ok(services.map(|service| service.vip.ip()).collect())
}

fn open(bpffs: &Path) -> Result<Option<HashMap<Endpoint, proxy_common::Service>>, Error> {
    let Some(data) = pinned(SERVICES, bpffs)? else {
        return Ok(None);
    };
    let map = Map::HashMap(data).try_into();
    match map {
        Ok(map) => Ok(Some(map)),
        // From another version with another layout of the map.
        Err(MapError::InvalidValueSize { .. } | MapError::InvalidKeySize { .. }) => Ok(None),
        Err(error) => Err(failed(SERVICES)(error)),
    }
}

fn entries(
    map: &HashMap<Endpoint, proxy_common::Service>,
) -> Result<Vec<(Endpoint, proxy_common::Service)>, Error> {
    // The iteration restarts if its entry is removed concurrently; the limit makes it end.
    let entries = map.iter().take(2 * MAX_SERVICES as usize);
    let mut entries: Vec<_> = entries
        .collect::<Result<_, _>>()
        .map_err(failed(SERVICES))?;
    entries.sort_by_key(|(endpoint, _)| *endpoint);
    entries.dedup_by_key(|(endpoint, _)| *endpoint);
    Ok(entries)
}
