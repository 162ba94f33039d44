// SPDX-License-Identifier: Apache-2.0

//! Stops and restarts an agent many times, while 50 connections stream, pods are added and removed, and other clients
//! connect. The tests of killing and of upgrading share this module.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agent::{self, Agent, TRANSLATE};
use crate::conntrack;
use crate::idle_state::IdleState;
use crate::kubeproxy::KubeProxy;
use crate::node::{Node, Topology};
use crate::proxy::Proxy;
use crate::stream::Live;
use crate::streams::{all_end_intact, all_go_on, entries, open_many};
use crate::transfer::{self, Generator};
use crate::{Family, client};

/// The number of connections that stream all the time.
pub const STREAMS: usize = 50;
/// The maximum number of temporary pods at a time.
const VISITORS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(10);
/// The variable that sets the seed of the random choices, to reproduce a failure.
const SEED: &str = "PROXY_AGENT_TEST_SEED";

/// The backend under test, and what it promises for connections.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    /// The flags with which the agent is started.
    pub args: &'static [&'static str],
    /// True if connections through the ClusterIP are untracked, too.
    pub translates: bool,
    /// True if connections that begin while the agent starts may be tracked. Existing ones never are.
    pub new_may_be_tracked: bool,
}

impl Backend {
    /// The `ebpf` backend: TC programs and verdicts that translate the ClusterIP.
    pub const EBPF: Self = Self {
        args: &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]],
        translates: true,
        new_may_be_tracked: false,
    };
    /// The `ebpf` backend with filters on clsact.
    pub const EBPF_BY_CLSACT: Self = Self {
        args: &[
            "--backend=ebpf",
            "--tc-attach=clsact",
            TRANSLATE[0],
            TRANSLATE[1],
        ],
        ..Self::EBPF
    };
    /// The `nftables` backend: rules and sets of `nf_tables`.
    pub const NFTABLES: Self = Self {
        args: &["--backend=nftables"],
        translates: false,
        new_may_be_tracked: false,
    };
    /// The `iptables` backend, with ipset.
    pub const IPTABLES: Self = Self {
        args: &["--backend=iptables"],
        ..Self::NFTABLES
    };
}

/// A node with an agent that is restarted repeatedly.
#[derive(Debug)]
pub struct Cycles<'a> {
    node: &'a mut Node,
    topology: Topology,
    backend: Backend,
    random: Generator,
    rest: IdleState,
    proxy: Proxy,
    streams: Vec<Stream>,
    /// The number of pods that exist all the time.
    permanent: usize,
    /// The longest time for which a stream has stalled, sampled once in a cycle.
    stillstand: Duration,
}

#[derive(Debug)]
struct Stream {
    live: Live,
    received: u64,
    at: Instant,
}

/// Returns a number that is uniformly distributed below `end`.
fn below(random: &mut Generator, end: u64) -> u64 {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    u64::from_le_bytes(bytes) % end
}

/// Returns the seed of this run and prints it.
fn seed() -> Result<u64> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().with_context(|| format!("{SEED}={seed}"))?,
        Err(_) => std::time::UNIX_EPOCH.elapsed()?.subsec_nanos().into(),
    };
    println!("{SEED}={seed}");
    Ok(seed)
}

impl<'a> Cycles<'a> {
    /// Starts the agent for the first time, records what it has set up, calls `before`, and starts the streams.
    ///
    /// # Errors
    /// Returns an error if one of these steps fails.
    pub fn prepare(
        node: &'a mut Node,
        topology: Topology,
        backend: Backend,
        before: impl FnOnce(&Node, Agent) -> Result<()>,
    ) -> Result<Self> {
        let random = Generator(seed()?);
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let begun = Instant::now();
        let agent = node.start_agent(backend.args)?;
        println!("ready after {:?}", begun.elapsed());
        let rest = IdleState::remember(node)?;
        before(node, agent)?;
        let proxy = Proxy::start(node)?;
        let now = Instant::now();
        let streams = open_many(node, STREAMS)?.into_iter().map(|live| Stream {
            live,
            received: 0,
            at: now,
        });
        Ok(Self {
            streams: streams.collect(),
            permanent: node.pods.len(),
            node,
            topology,
            backend,
            random,
            rest,
            proxy,
            stillstand: Duration::ZERO,
        })
    }

    /// Returns the node.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.node
    }

    /// Returns a random duration below `end`.
    pub fn time_below(&mut self, end: Duration) -> Duration {
        let end = u64::try_from(end.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(below(&mut self.random, end))
    }

    /// Starts a build of the agent, with further flags, and does not wait until it is ready.
    ///
    /// # Errors
    /// Returns an error if there is no such build.
    pub fn spawn(&self, binary: &Path, more: &[&str]) -> Result<Agent> {
        let args = [self.backend.args, more].concat();
        self.node.spawn(self.node.agent_command_of(binary, &args))
    }

    /// Returns a random element of `choices`.
    ///
    /// # Panics
    /// Panics if there is none.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        let n = below(&mut self.random, choices.len() as u64);
        choices[usize::try_from(n).expect("below a usize")]
    }

    /// Returns the path of this build of the agent.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn current() -> Result<PathBuf> {
        agent::binary()
    }

    /// Adds or removes a pod; a new pod connects.
    ///
    /// # Errors
    /// Returns an error if the new pod cannot connect.
    pub fn visit(&mut self) -> Result<()> {
        let visitors = self.node.pods.len() - self.permanent;
        let comes = visitors == 0 || (visitors < VISITORS && below(&mut self.random, 2) == 0);
        if !comes {
            return self.node.remove_pod();
        }
        self.node.add_pod(self.topology)?;
        let ways = self.node.paths().len();
        // The last four paths before those of the host, which are four as well, are the paths of the new pod.
        let way = ways - 8 + usize::try_from(below(&mut self.random, 4))?;
        self.connect_on(way)
    }

    /// Connects again from a pod that exists since the beginning.
    ///
    /// # Errors
    /// Returns an error if the connection fails.
    pub fn connect(&mut self) -> Result<()> {
        let visitors = self.node.pods.len() - self.permanent;
        let permanent = self.node.paths().len() - 4 * visitors;
        let way = usize::try_from(below(&mut self.random, permanent as u64))?;
        let visitors_begin = 4 * self.permanent;
        let way = if way < visitors_begin {
            way
        } else {
            way + 4 * visitors
        };
        self.connect_on(way)
    }

    fn connect_on(&self, way: usize) -> Result<()> {
        let paths = self.node.paths();
        let path = &paths[way];
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| format!("{path}: connecting anew"))?;
        transfer::exchange(&mut stream, 10_000, 1).with_context(|| path.to_string())
    }

    /// Checks the conditions that must hold after each cycle.
    ///
    /// # Errors
    /// Returns an error if a connection is tracked that should not be.
    pub fn check(&mut self) -> Result<()> {
        self.rest.note(self.node)?;
        for stream in &mut self.streams {
            let received = stream.live.received();
            if received > stream.received {
                (stream.received, stream.at) = (received, Instant::now());
            }
            self.stillstand = self.stillstand.max(stream.at.elapsed());
        }
        let mut tracked = entries(self.node)?;
        tracked.retain(|entry| self.should_not_be(entry));
        ensure!(tracked.is_empty(), "tracked: {tracked:#?}");
        Ok(())
    }

    /// Returns true if the entry should not exist. Temporary pods connect before the agent has seen them, so their
    /// connections may be tracked.
    fn should_not_be(&self, entry: &conntrack::Entry) -> bool {
        let is_visitor = Family::ALL.iter().any(|family| {
            let subnet = match family {
                Family::V4 => "10.244.",
                Family::V6 => "fd00:244:",
            };
            let source = entry.source.ip();
            let mut permanent = self.node.pods[..self.permanent].iter();
            source.to_string().starts_with(subnet)
                && !permanent.any(|pod| pod.address(*family) == source)
        });
        let vips = Family::ALL.map(Family::vip_socket);
        if self.backend.new_may_be_tracked {
            let port = entry.source.port();
            return self.streams.iter().any(|stream| stream.live.port() == port);
        }
        !is_visitor && (self.backend.translates || vips.contains(&entry.destination))
    }

    /// Starts this build for the last time, and checks that everything is as after the first start and that no stream
    /// has lost a byte.
    ///
    /// # Errors
    /// Returns an error if this is not so.
    pub fn finish(mut self) -> Result<()> {
        while self.node.pods.len() > self.permanent {
            self.node.remove_pod()?;
        }
        let agent = self.node.start_agent(self.backend.args)?;
        self.check().context("after the last start")?;
        self.rest.is_as_at_first(self.node)?;
        let streams: Vec<Live> = self.streams.drain(..).map(|stream| stream.live).collect();
        all_go_on(&streams)?;
        all_end_intact(streams)?;
        self.backend.new_may_be_tracked = false;
        conntrack::flush(&self.node.netns)?;
        for way in 0..self.node.paths().len() {
            self.connect_on(way)?;
        }
        self.check().context("at the end")?;
        println!(
            "{} connections, none stood still longer than {:?}",
            self.proxy.accepted(),
            self.stillstand
        );
        drop(agent);
        Ok(())
    }
}
