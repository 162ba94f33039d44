// SPDX-License-Identifier: Apache-2.0

//! The images: what each is called, and what is in it.

use clap::ValueEnum;

use crate::workspace::{AGENT, SHIPPED, Shipped, TUNNEL, WEBHOOK};

/// An image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The node agent, with the webhook and the programs that the iptables backend calls
    ProxyAgent,
    /// The tunnel: server, agent and sidecar
    ProxyTunnel,
}

/// A symbolic link: its path, and where it leads.
pub type Link = (&'static str, &'static str);

/// Names of agent and webhook in other images: their manifests go on working.
const AGENT_LINKS: [Link; 3] = [
    ("usr/bin/apiserver-proxy-sidecar", "proxy-agent"),
    ("apiserver-proxy-sidecar", "usr/bin/proxy-agent"),
    (
        "apiserver-proxy-pod-webhook",
        "usr/bin/apiserver-proxy-pod-webhook",
    ),
];

/// The tunnel's executable is the program by whose name it is started. Those below the root are upstream's.
const TUNNEL_LINKS: [Link; 5] = [
    ("usr/bin/konnectivity-agent", TUNNEL),
    ("usr/bin/konnectivity-server", TUNNEL),
    ("usr/bin/konnectivity-sidecar", TUNNEL),
    ("proxy-agent", "usr/bin/konnectivity"),
    ("proxy-server", "usr/bin/konnectivity"),
];

impl Kind {
    /// All.
    pub const ALL: [Self; 2] = [Self::ProxyAgent, Self::ProxyTunnel];

    /// Its name, without a registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProxyAgent => "proxy-agent",
            Self::ProxyTunnel => "proxy-tunnel",
        }
    }

    /// For the label of that name.
    pub const fn description(self) -> &'static str {
        match self {
            Self::ProxyAgent => {
                "Node agent: keeps the API server's VIP up and conntrack out of its path"
            }
            Self::ProxyTunnel => {
                "Konnectivity: reverse tunnel from an API server to nodes, pods and services"
            }
        }
    }

    /// The user and group that its programs run as. The node agent needs rights that only root has.
    pub const fn user(self) -> &'static str {
        match self {
            Self::ProxyAgent => "0:0",
            Self::ProxyTunnel => "65532:65532",
        }
    }

    /// What is started where a manifest names no command. The tunnel's programs are equals: one has to be named.
    pub const fn entrypoint(self) -> Option<&'static str> {
        match self {
            Self::ProxyAgent => Some("/usr/bin/proxy-agent"),
            Self::ProxyTunnel => None,
        }
    }

    /// Our programs in it.
    pub fn programs(self) -> impl Iterator<Item = &'static Shipped> {
        let names: &[&str] = match self {
            Self::ProxyAgent => &[AGENT, WEBHOOK],
            Self::ProxyTunnel => &[TUNNEL],
        };
        SHIPPED
            .iter()
            .filter(|shipped| names.contains(&shipped.program))
    }

    /// The crates whose code is in it: those of its programs, and what they embed.
    pub const fn crates(self) -> &'static [&'static str] {
        match self {
            Self::ProxyAgent => &["proxy-agent", "proxy-ebpf", "proxy-webhook"],
            Self::ProxyTunnel => &["proxy-tunnel"],
        }
    }

    /// The packages whose unit tests show that these work on another processor.
    pub const fn tested(self) -> &'static [&'static str] {
        match self {
            Self::ProxyAgent => &[
                "proxy-agent",
                "proxy-common",
                "proxy-kernel",
                "proxy-netlink",
                "proxy-rules",
                "proxy-webhook",
            ],
            Self::ProxyTunnel => &["proxy-serve", "proxy-tunnel"],
        }
    }

    /// Other names of the programs.
    pub const fn links(self) -> &'static [Link] {
        match self {
            Self::ProxyAgent => &AGENT_LINKS,
            Self::ProxyTunnel => &TUNNEL_LINKS,
        }
    }

    /// Whether files of Debian's packages are in it, which the iptables backend calls.
    pub const fn has_packages(self) -> bool {
        matches!(self, Self::ProxyAgent)
    }

    /// Where our documents are in it.
    pub fn documents(self) -> String {
        format!("usr/share/doc/{}", self.name())
    }
}
