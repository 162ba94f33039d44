// SPDX-License-Identifier: Apache-2.0

//! Reasons why connections to a Service do not end on the proxy of this node.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::net::SocketAddr;

use proxy_kernel::sockets::{Listener, Listening};
use tracing::warn;

use crate::config::{ProxyListener, Service};

/// The link to which kube-proxy in IPVS mode adds every ClusterIP.
pub const IPVS_LINK: &str = "kube-ipvs0";

/// Why new connections to a Service go through kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undecided {
    /// The backend does not handle Services; only `ebpf` does.
    Backend(String),
    /// The ClusterIP is an address of the node, on this link.
    OwnAddress(String),
    /// No socket listens on the VIP and port.
    NoListener(SocketAddr),
    /// Connections to the VIP reach a listener on the wildcard address, but `--proxy-listener=vip` is set.
    Wildcard {
        /// The listener's address.
        listener: SocketAddr,
        /// The address on which the proxy should listen.
        vip: SocketAddr,
    },
}

impl Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(backend) => write!(f, "backend {backend} does not handle Services"),
            Self::OwnAddress(link) if link == IPVS_LINK => write!(
                f,
                "it is an address of the node, on {link}: kube-proxy runs in IPVS mode, and IPVS receives its \
                 packets"
            ),
            Self::OwnAddress(link) => write!(f, "it is an address of the node, on {link}"),
            Self::NoListener(vip) => write!(f, "no process listens on {vip}"),
            Self::Wildcard { listener, vip } => write!(
                f,
                "the listener on {listener} does not count as the proxy: bind the proxy to {vip}, or \
                 set --proxy-listener=any if it is the proxy"
            ),
        }
    }
}

/// Why the listener that receives connections to `vip` does not count as the proxy.
pub fn refused_listener(
    vip: SocketAddr,
    listening: Listening,
    counts: ProxyListener,
) -> Option<Undecided> {
    match (listening, counts) {
        (Listening::Wildcard(listener), ProxyListener::Vip) => {
            Some(Undecided::Wildcard { listener, vip })
        }
        (Listening::Nowhere, _) => Some(Undecided::NoListener(vip)),
        (Listening::Wildcard(_), ProxyListener::Any) | (Listening::Bound, _) => None,
    }
}

/// Why new connections to a Service go through kube-proxy with this backend and these listeners.
pub fn undecided(
    service: &Service,
    backend: &str,
    listeners: &[Listener],
    counts: ProxyListener,
) -> Option<Undecided> {
    if backend != "ebpf" {
        return Some(Undecided::Backend(backend.to_owned()));
    }
    let vip = service.vip;
    refused_listener(vip, Listening::at(vip, listeners), counts)
}

/// Logs listeners that do not count as the proxy, each once until it is gone.
#[derive(Debug, Default)]
pub struct Refused(BTreeSet<(SocketAddr, SocketAddr)>);

impl Refused {
    /// Compares the listeners with those of the last call; logs and returns those that are new.
    pub fn update(
        &mut self,
        services: &[Service],
        listeners: &[Listener],
        counts: ProxyListener,
    ) -> Vec<Undecided> {
        let mut now = BTreeSet::new();
        let mut new = Vec::new();
        for vip in services.iter().map(|service| service.vip) {
            let refused = refused_listener(vip, Listening::at(vip, listeners), counts);
            let Some(Undecided::Wildcard { listener, .. }) = refused else {
                continue;
            };
            // Several Services may share a VIP endpoint.
            if now.insert((vip, listener)) && !self.0.contains(&(vip, listener)) {
                let refused = Undecided::Wildcard { listener, vip };
                warn!("connections to Services go through kube-proxy: {refused}");
                new.push(refused);
            }
        }
        self.0 = now;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(cluster_ip: &str) -> Service {
        Service {
            cluster_ip: cluster_ip.parse().unwrap(),
            vip: "10.96.0.2:443".parse().unwrap(),
        }
    }

    fn listeners(addresses: &[&str]) -> Vec<Listener> {
        let listener = |address: &&str| Listener {
            address: address.parse().unwrap(),
            inode: 1,
        };
        addresses.iter().map(listener).collect()
    }

    #[test]
    fn a_wildcard_listener_counts_only_if_it_is_named_as_the_proxy() {
        let why = |addresses: &[&str], counts| {
            let why = undecided(
                &service("10.96.0.1:443"),
                "ebpf",
                &listeners(addresses),
                counts,
            );
            why.map(|why| why.to_string())
        };
        let (vip, any) = (ProxyListener::Vip, ProxyListener::Any);
        for wildcard in ["0.0.0.0:443", "[::]:443"] {
            let refused = why(&[wildcard], vip).unwrap();
            assert!(refused.contains(wildcard), "{refused}");
            assert!(refused.contains("--proxy-listener=any"), "{refused}");
            assert_eq!(why(&[wildcard], any), None);
            assert_eq!(why(&[wildcard, "10.96.0.2:443"], vip), None);
        }
        let none = Some("no process listens on 10.96.0.2:443".to_owned());
        assert_eq!(why(&["0.0.0.0:444", "10.0.0.1:443"], any), none);
        let other = undecided(&service("10.96.0.1:443"), "nftables", &[], any);
        assert_eq!(other, Some(Undecided::Backend("nftables".to_owned())));
    }

    #[test]
    fn a_refused_listener_is_logged_once_until_it_is_gone() {
        let services = [service("10.96.0.1:443"), service("10.96.0.9:443")];
        let mut refused = Refused::default();
        let mut new = |addresses: &[&str]| {
            let listeners = listeners(addresses);
            let new = refused.update(&services, &listeners, ProxyListener::Vip);
            new.len()
        };
        assert_eq!(new(&[]), 0);
        assert_eq!(new(&["0.0.0.0:443"]), 1);
        assert_eq!(new(&["0.0.0.0:443"]), 0);
        assert_eq!(new(&["0.0.0.0:443", "10.96.0.2:443"]), 0);
        assert_eq!(new(&["[::]:443"]), 1);
        assert_eq!(new(&[]), 0);
        assert_eq!(new(&["[::]:443"]), 1);
    }
}
