// SPDX-License-Identifier: Apache-2.0

//! The paths to the proxy: from each pod and from the node itself, to the VIP and to the ClusterIP, in both families.

use std::fmt;
use std::net::SocketAddr;

use crate::Family;
use crate::netns::Netns;
use crate::node::Node;

/// The address that a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The VIP itself
    Vip,
    /// The ClusterIP, which kube-proxy translates to the VIP
    ClusterIp,
}

/// One path to the proxy.
#[derive(Debug, Clone)]
pub struct Path<'a> {
    /// `pod0`, `pod1`, … or `host`
    pub client: String,
    /// The namespace in which the client runs.
    pub netns: &'a Netns,
    /// The address that the client uses.
    pub via: Via,
    /// The address family.
    pub family: Family,
}

impl Path<'_> {
    /// Returns the address to which the client connects.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        match self.via {
            Via::Vip => self.family.vip_socket(),
            Via::ClusterIp => self.family.cluster_ip_socket(),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let via = match self.via {
            Via::Vip => "VIP",
            Via::ClusterIp => "ClusterIP",
        };
        write!(f, "{} → {via}, {family}", self.client)
    }
}

impl Node {
    /// Returns every path from this node's pods and from the node itself to the proxy.
    #[must_use]
    pub fn paths(&self) -> Vec<Path<'_>> {
        let pods = self.pods.iter().enumerate();
        let clients = pods
            .map(|(n, pod)| (format!("pod{n}"), &pod.netns))
            .chain([("host".to_owned(), &self.netns)]);
        let mut paths = Vec::new();
        for (client, netns) in clients {
            for via in [Via::Vip, Via::ClusterIp] {
                for family in Family::ALL {
                    paths.push(Path {
                        client: client.clone(),
                        netns,
                        via,
                        family,
                    });
                }
            }
        }
        paths
    }
}
