// SPDX-License-Identifier: Apache-2.0

//! A node of the benchmark: a variant with its servers, and the ways to them.

use std::fmt::Write as _;
use std::fmt::{self, Display};
use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::Effort;
use super::traffic::{self, Sample, Server, Work};
use super::variant::Variant;
use tests::agent::Agent;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, gateway_address};
use tests::{Family, PORT};

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A process on the node to the API server
    Host,
    /// A pod behind a veth pair to the API server
    Veth,
    /// A pod behind a bridge to the API server
    Bridge,
    /// A pod to port 443 of a host outside the cluster: nothing of ours
    Unrelated,
}

impl Way {
    /// All.
    pub const ALL: [Self; 4] = [Self::Host, Self::Veth, Self::Bridge, Self::Unrelated];

    /// In results, and for file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Veth => "veth pod",
            Self::Bridge => "bridge pod",
            Self::Unrelated => "unrelated",
        }
    }
}

impl Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A node on which a variant is in force. In the order of its fields it is taken down.
#[derive(Debug)]
pub struct Host {
    /// The variant.
    pub variant: Variant,
    servers: Vec<Server>,
    agent: Option<Agent>,
    /// The node.
    pub node: Node,
}

impl Host {
    /// Makes one with a pod of each kind, kube-proxy's rules as nf_tables has them unless the variant
    /// is without, and the agent with `more` arguments if it is one of ours.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn new(variant: Variant, more: &[&str]) -> Result<Self> {
        Self::prepared(variant, more, |node| {
            if variant == Variant::NoHooks {
                return Ok(());
            }
            KubeProxy::Nftables.install(&node.netns)
        })
    }

    /// The same with something else done to the node before the agent starts.
    ///
    /// # Errors
    /// As [`Host::new`].
    pub fn prepared(
        variant: Variant,
        more: &[&str],
        prepare: impl FnOnce(&mut Node) -> Result<()>,
    ) -> Result<Self> {
        let mut node = Node::with_pods(Topology::Veth, 1)?;
        node.add_pod(Topology::Bridge)?;
        prepare(&mut node)?;
        variant.install_rules(&node.netns)?;
        let agent = if let Some(mut args) = variant.agent() {
            args.extend(more);
            let started = node.start_agent(&args);
            Some(started.with_context(|| node.logs())?)
        } else {
            node.add_vips("lo")?;
            None
        };
        let mut servers = Vec::new();
        for family in Family::ALL {
            servers.push(Server::listen(&node.netns, family.vip_socket())?);
            servers.push(Server::listen(&node.uplink, outside(family))?);
        }
        Ok(Self {
            variant,
            servers,
            agent,
            node,
        })
    }

    /// The agent, if the variant is one of ours.
    #[must_use]
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// Works for a slot.
    ///
    /// # Errors
    /// When a connection fails.
    pub fn measure(&self, way: Way, family: Family, work: Work, effort: Effort) -> Result<Sample> {
        let (to, listening) = match way {
            Way::Unrelated => (outside(family), outside(family)),
            _ => (self.variant.target(family), family.vip_socket()),
        };
        let server = self.servers.iter().find(|s| s.address() == listening);
        let server = server.context("a server for each address")?;
        traffic::measure(self.from(way), to, server, work, effort.slot)
            .with_context(|| self.variant.name())
    }

    /// Where clients of a way are.
    #[must_use]
    pub fn from(&self, way: Way) -> &Netns {
        match way {
            Way::Host => &self.node.netns,
            Way::Veth | Way::Unrelated => &self.node.pods[0].netns,
            Way::Bridge => &self.node.pods[1].netns,
        }
    }
}

/// A server outside of the node, at the other end of its uplink.
fn outside(family: Family) -> SocketAddr {
    SocketAddr::new(gateway_address(family), PORT)
}

/// Gives a node more links, in veth pairs that lead nowhere.
///
/// # Errors
/// When ip(8) fails.
pub fn add_links(node: &Netns, count: usize) -> Result<()> {
    let mut lines = String::new();
    for n in 0..count.div_ceil(2) {
        writeln!(lines, "link add many{n} type veth peer name peer{n}")?;
    }
    node.ip(&lines)
}
