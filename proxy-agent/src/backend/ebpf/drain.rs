// SPDX-License-Identifier: Apache-2.0

//! Services that are given up: new connections take the other way at once, live ones go on to their end, and at
//! the deadline the rest is reset. Nothing hangs.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::PART;
use crate::config::Service;
use crate::kernel::{sock_diag, sockets};

/// How often it is looked whether connections have ended.
pub const LOOK: Duration = Duration::from_millis(200);

/// Connections could not be listed or reset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of sockets.
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
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The Services that are drained, each until its time is over.
#[derive(Debug)]
pub struct Drain {
    services: Vec<(Service, Instant)>,
    /// Addresses that need no route any more.
    pub former: BTreeSet<IpAddr>,
    /// Services without connections, which are still known to the programs.
    pub ended: Vec<Service>,
}

impl Drain {
    /// Gives the connections of these Services so much time.
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

    /// Gives the connections of one more Service so much time.
    pub fn add(&mut self, service: Service, timeout: Duration) {
        info!(
            part = PART,
            "{} is given up: its connections have {timeout:?} to end", service.cluster_ip
        );
        self.services.push((service, Instant::now() + timeout));
    }

    /// A Service is not given up any more.
    pub fn take_back(&mut self, service: &Service) {
        self.services.retain(|(drained, _)| drained != service);
        self.ended.retain(|ended| ended != service);
        self.former.remove(&service.cluster_ip.ip());
    }

    /// Those that are left.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(|(service, _)| service)
    }

    /// Whether any is left.
    pub fn is_going_on(&self) -> bool {
        !self.services.is_empty()
    }

    /// Takes away those without connections, and resets what is left when the time is over.
    ///
    /// # Errors
    ///
    /// If connections could not be listed or reset.
    pub fn go_on(&mut self) -> Result<Vec<Service>, Error> {
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

/// Whether no connection to any of these Services is left.
///
/// # Errors
///
/// If connections could not be listed.
pub fn is_over(services: &[Service]) -> Result<bool, Error> {
    Ok(live(services)?.is_empty())
}

/// The live connections to Services: the Service and the client.
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
/// The first that could not be reset; the others are.
pub fn reset(services: &[Service]) -> Result<(), Error> {
    let mut outcome = Ok(());
    let live = live(services)?;
    if !live.is_empty() {
        warn!(
            part = PART,
            "{} connections to Services are reset",
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
        // Of documentation: no socket of this machine has it.
        let service = Service {
            cluster_ip: "192.0.2.1:443".parse().unwrap(),
            vip: "192.0.2.2:443".parse().unwrap(),
        };
        let mut drain = Drain::new(&[service], Duration::from_mins(1));
        assert!(drain.is_going_on());
        assert_eq!(drain.go_on().unwrap(), [service]);
        assert!(!drain.is_going_on());
        assert_eq!(drain.former, BTreeSet::from([service.cluster_ip.ip()]));
        drain.add(service, Duration::from_mins(1));
        drain.take_back(&service);
        assert!(!drain.is_going_on());
        assert!(drain.former.is_empty());
    }
}
