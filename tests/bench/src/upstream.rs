// SPDX-License-Identifier: Apache-2.0

//! All the way through a HAProxy to a server behind the uplink: the cost of the proxy's own connection, tracked and
//! untracked.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Effort;
use super::clock;
use super::host::Way;
use super::paths::empty;
use super::result::Cell;
use super::traffic::{self, Sample, Server, Work};
use super::variant::Variant;
use tests::agent::Agent;
use tests::cgroup::Cgroup;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, api_server};
use tests::proxy::Proxy;
use tests::{Family, status};

/// The path between client and server, in results.
pub const THROUGH: &str = "through HAProxy";

/// The name of our backend `ebpf` with the proxy's own connections left to conntrack.
pub const ONLY_THE_VIP: &str = "proxy-agent ebpf, --proxy-upstream=off";

/// For a request that has the agent learn an endpoint.
const SLOT: Duration = Duration::from_millis(1);

/// A variant, its name in results, and the agent's additional flags.
type Side = (Variant, &'static str, &'static [&'static str]);

const SIDES: [Side; 5] = [
    (Variant::Tracked, Variant::Tracked.name(), &[]),
    (Variant::KubeProxy, Variant::KubeProxy.name(), &[]),
    (Variant::Ebpf, ONLY_THE_VIP, &["--proxy-upstream=off"]),
    (Variant::Ebpf, Variant::Ebpf.name(), &[]),
    (Variant::Service, Variant::Service.name(), &[]),
];

/// Their names, in the order of the tables.
pub fn names() -> impl Iterator<Item = &'static str> {
    SIDES.into_iter().map(|(_, name, _)| name)
}

const WORKS: [Work; 2] = [Work::Exchange, Work::Connect];
const WAYS: [Way; 2] = [Way::Host, Way::Veth];

/// A node with a proxy. In the order of its fields it is taken down.
struct Chain {
    side: Side,
    servers: [Server; 2],
    _proxy: Proxy,
    _cgroup: Cgroup,
    _agent: Option<Agent>,
    node: Node,
}

impl Chain {
    fn new(side: Side) -> Result<Self> {
        let (variant, _, more) = side;
        let node = Node::with_pods(Topology::Veth, 1)?;
        KubeProxy::Nftables.install(&node.netns)?;
        let agent = if let Some(mut args) = variant.agent() {
            args.extend(more);
            Some(node.start_agent(&args).with_context(|| node.logs())?)
        } else {
            node.add_vips("lo")?;
            None
        };
        let servers = Family::ALL.map(|family| Server::listen(&node.uplink, api_server(family)));
        let [four, six] = servers;
        let cgroup = node.cgroup("proxy")?;
        let proxy = Proxy::start_to(&node, &cgroup, api_server)?;
        // With client and server, as they are with each other.
        clock::pin_process(proxy.id(), clock::processor()).context("pinning HAProxy")?;
        let chain = Self {
            side,
            servers: [four?, six?],
            _proxy: proxy,
            _cgroup: cgroup,
            _agent: agent,
            node,
        };
        if variant.agent().is_some() && more.is_empty() {
            chain.be_learned()?;
        }
        Ok(chain)
    }

    /// Has the agent learn both endpoints, from one connection each.
    fn be_learned(&self) -> Result<()> {
        status::wait_until_learning(&self.node)?;
        for family in Family::ALL {
            self.measure(Way::Host, family, Work::Exchange, SLOT)?;
            status::wait_until_known(&self.node, api_server(family), "")?;
        }
        Ok(())
    }

    fn measure(&self, way: Way, family: Family, work: Work, slot: Duration) -> Result<Sample> {
        let server = match family {
            Family::V4 => &self.servers[0],
            Family::V6 => &self.servers[1],
        };
        let to = self.side.0.target(family);
        traffic::measure(self.from(way), to, server, work, slot).with_context(|| self.side.1)
    }

    fn from(&self, way: Way) -> &Netns {
        match way {
            Way::Host => &self.node.netns,
            _ => &self.node.pods[0].netns,
        }
    }
}

/// Measures.
///
/// # Errors
/// When a variant does not work, or an endpoint is not learned.
pub fn run(effort: Effort, mut progress: impl FnMut(&str)) -> Result<Vec<Cell>> {
    let mut chains = Vec::new();
    for side in SIDES {
        progress(&format!("a node with HAProxy: {}", side.1));
        chains.push(Chain::new(side).with_context(|| side.1)?);
    }
    let families = if effort.short { 1 } else { 2 };
    let mut plan = Vec::new();
    for work in WORKS {
        for way in WAYS {
            plan.extend(
                Family::ALL
                    .into_iter()
                    .take(families)
                    .map(|f| (work, way, f)),
            );
        }
    }
    let mut cells = Vec::new();
    for (work, way, family) in &plan {
        for (variant, name, _) in SIDES {
            cells.push(Cell {
                variant: name.to_owned(),
                of: THROUGH.to_owned(),
                ..empty(variant, *way, *family, *work)
            });
        }
    }
    for round in 0..=effort.rounds {
        for (n, (work, way, family)) in plan.iter().enumerate() {
            for turn in 0..chains.len() {
                let turn = (turn + round + n) % chains.len();
                let sample = chains[turn].measure(*way, *family, *work, effort.slot)?;
                if round > 0 {
                    cells[n * chains.len() + turn].push(sample);
                }
            }
        }
        progress(&format!("round {round} of {}", effort.rounds));
    }
    Ok(cells)
}
