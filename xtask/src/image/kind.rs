// SPDX-License-Identifier: Apache-2.0

//! The images: their names and their contents.

use clap::ValueEnum;

use crate::workspace::{AGENT, SHIPPED, Shipped, TUNNEL, WEBHOOK};

/// A container image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The node agent, with the webhook and the programs that the iptables backend calls
    ProxyAgent,
    /// The tunnel: server, agent and sidecar
    ProxyTunnel,
}

/// A symbolic link: its path, and its target.
pub type Link = (&'static str, &'static str);

/// Names of agent and webhook in other images, so that the manifests of these images work.
const AGENT_LINKS: [Link; 3] = [
    ("usr/bin/apiserver-proxy-sidecar", "proxy-agent"),
    ("apiserver-proxy-sidecar", "usr/bin/proxy-agent"),
    (
        "apiserver-proxy-pod-webhook",
        "usr/bin/apiserver-proxy-pod-webhook",
    ),
];

/// The tunnel's executable runs the program by whose name it is started. The names below the root are upstream's.
const TUNNEL_LINKS: [Link; 5] = [
    ("usr/bin/konnectivity-agent", TUNNEL),
    ("usr/bin/konnectivity-server", TUNNEL),
    ("usr/bin/konnectivity-sidecar", TUNNEL),
    ("proxy-agent", "usr/bin/konnectivity"),
    ("proxy-server", "usr/bin/konnectivity"),
];

impl Kind {
    /// All images.
    pub const ALL: [Self; 2] = [Self::ProxyAgent, Self::ProxyTunnel];

    /// Returns the name of the image, without a registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProxyAgent => "proxy-agent",
            Self::ProxyTunnel => "proxy-tunnel",
        }
    }

    /// Returns the text of the description label.
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

    /// Returns the user and group that the image's programs run as. The node agent needs rights that only root has.
    pub const fn user(self) -> &'static str {
        match self {
            Self::ProxyAgent => "0:0",
            Self::ProxyTunnel => "65532:65532",
        }
    }

    /// Returns the program that starts if a manifest has no command. The tunnel's image has no default program, because
    /// its programs have equal rank.
    pub const fn entrypoint(self) -> Option<&'static str> {
        match self {
            Self::ProxyAgent => Some("/usr/bin/proxy-agent"),
            Self::ProxyTunnel => None,
        }
    }

    /// Returns our programs in the image.
    pub fn programs(self) -> impl Iterator<Item = &'static Shipped> {
        let names: &[&str] = match self {
            Self::ProxyAgent => &[AGENT, WEBHOOK],
            Self::ProxyTunnel => &[TUNNEL],
        };
        SHIPPED
            .iter()
            .filter(|shipped| names.contains(&shipped.program))
    }

    /// Returns the crates whose code the image contains: those of its programs, and those that these embed.
    pub const fn crates(self) -> &'static [&'static str] {
        match self {
            Self::ProxyAgent => &["proxy-agent", "proxy-ebpf", "proxy-webhook"],
            Self::ProxyTunnel => &["proxy-tunnel"],
        }
    }

    /// Returns the packages whose unit tests show that the programs work on another processor.
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

    /// Returns the other names of the programs.
    pub const fn links(self) -> &'static [Link] {
        match self {
            Self::ProxyAgent => &AGENT_LINKS,
            Self::ProxyTunnel => &TUNNEL_LINKS,
        }
    }

    /// Returns whether the image contains files of Debian packages, which the iptables backend calls.
    pub const fn has_packages(self) -> bool {
        matches!(self, Self::ProxyAgent)
    }

    /// Returns the directory of our documents in the image.
    pub fn documents(self) -> String {
        format!("usr/share/doc/{}", self.name())
    }
}
