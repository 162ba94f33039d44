// SPDX-License-Identifier: Apache-2.0

//! Drains Services that no longer end on the proxy: new connections take the other path at once, open ones continue until they
//! end, and remaining ones are reset at the deadline, so that none hangs.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_kernel::sockets;
use proxy_netlink::sock_diag;
use tracing::{info, warn};

use super::PART;
use crate::config::Service;

/// Interval of the checks whether connections have ended.
pub const LOOK: Duration = Duration::from_millis(200);

/// Failure to list or reset connections.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of sockets could not be read.
    #[error("cannot read the list of TCP connections")]
    Sockets(#[source] io::Error),
    /// A connection could not be reset.
    #[error(
        "cannot reset the connection of {client} to {service}; the kernel needs \
         CONFIG_INET_DIAG_DESTROY and the agent CAP_NET_ADMIN"
    )]
    Reset {
        /// The client.
        client: SocketAddr,
        /// The Service.
        service: SocketAddr,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Services being drained, each with its deadline.
#[derive(Debug)]
pub struct Drain {
    services: Vec<(Service, Instant)>,
    /// Addresses whose route is no longer needed.
    pub former: BTreeSet<IpAddr>,
    /// Services without connections that are still in the programs' maps.
    pub ended: Vec<Service>,
}

impl Drain {
    /// Starts to drain these Services.
    pub fn new(services: &[Service], timeout: Duration) -> Self {
        let mut drain = Self {
            services: Vec::new(),
            former: BTreeSet::new(),
            ended: Vec::new(),
        };
        for service in services {
            drain.add(*service, timeout);
        }
        drain
    }

    /// Starts to drain a Service.
    pub fn add(&mut self, service: Service, timeout: Duration) {
        info!(
            part = PART.name(),
            "draining {}: open connections have {timeout:?} to end", service.cluster_ip
        );
        self.services.push((service, Instant::now() + timeout));
    }

    /// Stops draining a Service that ends on the proxy again.
    pub fn cancel(&mut self, service: &Service) {
        self.services.retain(|(drained, _)| drained != service);
        self.ended.retain(|ended| ended != service);
        self.former.remove(&service.cluster_ip.ip());
    }

    /// The Services being drained.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(|(service, _)| service)
    }

    /// Whether any Service is being drained.
    pub fn is_active(&self) -> bool {
        !self.services.is_empty()
    }

    /// Finishes Services without connections, and resets the connections of those whose deadline has passed; returns the
    /// finished ones.
    ///
    /// # Errors
    ///
    /// If connections could not be listed or reset.
    pub fn advance(&mut self) -> Result<Vec<Service>, Error> {
        if self.services.is_empty() {
            return Ok(Vec::new());
        }
        let now = Instant::now();
        let is_late = |until: &Instant| now >= *until;
        let late = self.services.iter().filter(|(_, until)| is_late(until));
        let late: Vec<_> = late.map(|(service, _)| *service).collect();
        if !late.is_empty() {
            reset(&late)?;
        }
        let all: Vec<_> = self.services().copied().collect();
        let live = live(&all)?;
        let (going_on, ended): (Vec<_>, Vec<_>) =
            self.services.iter().partition(|(service, until)| {
                let goes_on = |(local, _): &_| *local == service.cluster_ip;
                !is_late(until) && live.iter().any(goes_on)
            });
        self.services = going_on;
        let ended: Vec<Service> = ended.into_iter().map(|(service, _)| service).collect();
        let still = self.services().map(|service| service.cluster_ip.ip());
        let still: BTreeSet<_> = still.collect();
        let former = ended.iter().map(|service| service.cluster_ip.ip());
        self.former.extend(former.filter(|ip| !still.contains(ip)));
        Ok(ended)
    }
}

/// Whether no connection to any of these Services is open.
///
/// # Errors
///
/// If connections could not be listed.
pub fn is_over(services: &[Service]) -> Result<bool, Error> {
    Ok(live(services)?.is_empty())
}

/// The open connections to Services: Service and client.
fn live(services: &[Service]) -> Result<Vec<(SocketAddr, SocketAddr)>, Error> {
    let all = sockets::connections().map_err(Error::Sockets)?;
    let mut live: Vec<_> = all
        .into_iter()
        .filter(|(local, _)| services.iter().any(|service| service.cluster_ip == *local))
        .collect();
    live.sort();
    Ok(live)
}

/// Resets every connection to these Services.
///
/// # Errors
///
/// The error of the first connection that failed; the others are reset nevertheless.
pub fn reset(services: &[Service]) -> Result<(), Error> {
    let mut outcome = Ok(());
    let live = live(services)?;
    if !live.is_empty() {
        warn!(
            part = PART.name(),
            "resetting {} connections to Services",
            live.len()
        );
    }
    for (service, client) in live {
        let done = sock_diag::destroy(service, client).map_err(|source| Error::Reset {
            client,
            service,
            source,
        });
        outcome = outcome.and(done);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_connections_has_ended_at_once() {
        // A documentation address: no socket of this machine has it.
        let service = Service {
            cluster_ip: "192.0.2.1:443".parse().unwrap(),
            vip: "192.0.2.2:443".parse().unwrap(),
        };
        let mut drain = Drain::new(&[service], Duration::from_mins(1));
        assert!(drain.is_active());
        assert_eq!(drain.advance().unwrap(), [service]);
        assert!(!drain.is_active());
        assert_eq!(drain.former, BTreeSet::from([service.cluster_ip.ip()]));
        drain.add(service, Duration::from_mins(1));
        drain.cancel(&service);
        assert!(!drain.is_active());
        assert!(drain.former.is_empty());
    }
}
