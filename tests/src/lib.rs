// SPDX-License-Identifier: Apache-2.0

//! The harness of the behaviour tests and of the demo: a Kubernetes node with pods, kube-proxy's rules, a proxy and the
//! agent, each in its own network namespace, on the real kernel.
//!
//! The assertions are in `tests/`, one subject per file. Several tests and several runs may run at once: every name
//! contains the process ID and a number, and leftovers of killed runs are removed (see [`leftovers`]).

pub mod agent;
pub mod all_paths;
pub mod artifacts;
pub mod bpf;
pub mod bpf_objects;
pub mod browser;
pub mod cgroup;
pub mod client;
pub mod cmd;
pub mod conntrack;
pub mod ctnetlink;
pub mod cycles;
pub mod degraded_host;
pub mod dir;
pub mod doctor;
pub mod fences;
pub mod flood;
pub mod frames;
pub mod http;
pub mod idle_state;
pub mod image;
pub mod interference;
pub mod kubeproxy;
pub mod leftovers;
pub mod manifests;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod ownership;
pub mod pages;
pub mod path;
pub mod proxy;
pub mod refusing;
pub mod reuse;
pub mod setting;
pub mod signals;
pub mod skip;
pub mod slow_machine;
pub mod snapshot;
pub mod soak;
pub mod status;
pub mod stream;
pub mod streams;
pub mod transfer;
pub mod usage;
pub mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use setting::Setting;

/// The port of the proxy and of the Service.
pub const PORT: u16 = 443;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the VIP of this family: an unused address of the Service range, or, where kube-proxy checks that range,
    /// an address outside of it.
    #[must_use]
    pub fn vip(self) -> IpAddr {
        match (self, Setting::current()) {
            (_, Setting::ServiceRange) => self.vip_outside(),
            (Self::V4, _) => IpAddr::V4(Ipv4Addr::new(10, 96, 0, 2)),
            (Self::V6, _) => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 2)),
        }
    }

    /// Returns the VIP outside of the Service range that docs/operations.md recommends.
    #[must_use]
    pub const fn vip_outside(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(169, 254, 20, 2)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa91, 0, 0, 0, 0, 0, 2)),
        }
    }

    /// Returns the ClusterIP of the `kubernetes` Service in this family.
    #[must_use]
    pub const fn cluster_ip(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1)),
        }
    }

    /// Returns the range of the addresses of all pods.
    #[must_use]
    pub const fn pod_cidr(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:244::/56",
        }
    }

    /// Returns `VIP:443`.
    #[must_use]
    pub fn vip_socket(self) -> SocketAddr {
        SocketAddr::new(self.vip(), PORT)
    }

    /// Returns `ClusterIP:443`.
    #[must_use]
    pub const fn cluster_ip_socket(self) -> SocketAddr {
        SocketAddr::new(self.cluster_ip(), PORT)
    }

    /// Returns the prefix length of a single address.
    #[must_use]
    pub const fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}
