// SPDX-License-Identifier: Apache-2.0

//! The choice of the agent for a dial. Strategies are tried in the order of the flag. A draining agent is used only if
//! no other one is left. Of two random agents the less congested one is chosen, so that an agent that is slow, or does
//! not answer dials, gets fewer of them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use thiserror::Error;

use super::backend::Backend;
use crate::metrics::server::ServerMetrics;

/// The error that a client gets when no strategy finds an agent.
pub const NO_AGENT: &str = "No agent available";

/// A way to choose an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// A random agent.
    Default,
    /// The agent with an identifier that equals the target's host.
    DestHost,
    /// A random agent with `default-route=true`.
    DefaultRoute,
}

/// The error for a text that is not the name of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown proxy strategy: {0}; give a list of default, destHost and defaultRoute")]
pub struct StrategyError(String);

impl FromStr for Strategy {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, StrategyError> {
        match text {
            "default" => Ok(Self::Default),
            "destHost" => Ok(Self::DestHost),
            "defaultRoute" => Ok(Self::DefaultRoute),
            _ => Err(StrategyError(text.to_owned())),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::DestHost => "destHost",
            Self::DefaultRoute => "defaultRoute",
        })
    }
}

/// Streams of agents, grouped by a key. The streams of one key are in the order in which they connected. The keys are
/// in a vector in arbitrary order, so that choosing a random one takes constant time.
#[derive(Debug, Default)]
struct Pool {
    streams: Vec<(String, Vec<Arc<Backend>>)>,
    positions: HashMap<String, usize>,
}

impl Pool {
    fn add(&mut self, key: &str, backend: &Arc<Backend>) {
        if let Some(position) = self.positions.get(key) {
            self.streams[*position].1.push(Arc::clone(backend));
        } else {
            self.positions.insert(key.to_owned(), self.streams.len());
            self.streams
                .push((key.to_owned(), vec![Arc::clone(backend)]));
        }
    }

    fn remove(&mut self, key: &str, backend: &Arc<Backend>) {
        let Some(position) = self.positions.get(key).copied() else {
            return;
        };
        let streams = &mut self.streams[position].1;
        streams.retain(|other| !Arc::ptr_eq(other, backend));
        if streams.is_empty() {
            self.positions.remove(key);
            self.streams.swap_remove(position);
            if let Some((moved, _)) = self.streams.get(position) {
                self.positions.insert(moved.clone(), position);
            }
        }
    }

    fn get(&self, key: &str) -> Option<&Arc<Backend>> {
        let position = self.positions.get(key)?;
        serving(&self.streams[*position].1)
    }

    /// Returns the less congested of two random agents that do not drain. If only one of the two does not drain,
    /// returns that one; if both drain, returns another agent, if possible one that does not drain.
    fn random(&self) -> Option<&Arc<Backend>> {
        if self.streams.is_empty() {
            return None;
        }
        let start = fastrand::usize(..self.streams.len());
        let first = serving(&self.streams[start].1)?;
        let second = if self.streams.len() > 1 {
            let other = (start + fastrand::usize(1..self.streams.len())) % self.streams.len();
            serving(&self.streams[other].1)
        } else {
            None
        };
        let usable = |backend: &&Arc<Backend>| !backend.is_draining();
        match (Some(first).filter(usable), second.filter(usable)) {
            (Some(one), Some(two)) if two.load() < one.load() => Some(two),
            (Some(one), _) => Some(one),
            (None, Some(two)) => Some(two),
            // Both drain: choose any other agent that does not drain, or else the first one.
            (None, None) => self
                .streams
                .iter()
                .cycle()
                .skip(start)
                .take(self.streams.len())
                .filter_map(|(_, streams)| serving(streams))
                .find(usable)
                .or(Some(first)),
        }
    }
}

/// Returns the stream to use among the streams of one key: the first one that does not drain, or else the first one.
fn serving(streams: &[Arc<Backend>]) -> Option<&Arc<Backend>> {
    streams
        .iter()
        .find(|backend| !backend.is_draining())
        .or_else(|| streams.first())
}

#[derive(Debug, Default)]
struct Pools {
    connected: usize,
    agents: Pool,
    hosts: Pool,
    routes: Pool,
}

impl Pools {
    fn add(&mut self, backend: &Arc<Backend>) {
        self.connected += 1;
        self.agents.add(&backend.agent_id, backend);
        for host in &backend.identifiers.hosts {
            self.hosts.add(host, backend);
        }
        if backend.identifiers.default_route {
            self.routes.add(&backend.agent_id, backend);
        }
    }

    /// Returns the number of keys of each pool, in the order of the strategies.
    fn sizes(&self) -> [usize; 3] {
        [
            Strategy::Default,
            Strategy::DestHost,
            Strategy::DefaultRoute,
        ]
        .map(|strategy| pool(self, strategy).streams.len())
    }
}

/// The connected agents of one tenant.
#[derive(Debug)]
pub struct Agents {
    strategies: Vec<Strategy>,
    metrics: Arc<ServerMetrics>,
    pools: RwLock<Pools>,
}

impl Agents {
    /// Creates an empty set of agents.
    #[must_use]
    pub fn new(strategies: Vec<Strategy>, metrics: Arc<ServerMetrics>) -> Self {
        let agents = Self {
            strategies,
            metrics,
            pools: RwLock::default(),
        };
        // Creates the gauges before the first agent connects.
        agents.count(&[0; 3]);
        agents
    }

    fn read(&self) -> RwLockReadGuard<'_, Pools> {
        self.pools
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds the stream of an agent that has connected.
    pub fn add(&self, backend: &Arc<Backend>) {
        self.change(|pools| pools.add(backend));
    }

    /// Adds a stream as [`Self::add`] does if there are fewer than `most` streams; otherwise returns false.
    #[must_use]
    pub fn add_within(&self, backend: &Arc<Backend>, most: usize) -> bool {
        let mut is_added = false;
        self.change(|pools| {
            is_added = pools.connected < most;
            if is_added {
                pools.add(backend);
            }
        });
        is_added
    }

    /// Returns the number of connected streams.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.read().connected
    }

    /// Removes the stream of an agent that has ended.
    pub fn remove(&self, backend: &Arc<Backend>) {
        self.change(|pools| {
            pools.connected -= 1;
            pools.agents.remove(&backend.agent_id, backend);
            for host in &backend.identifiers.hosts {
                pools.hosts.remove(host, backend);
            }
            pools.routes.remove(&backend.agent_id, backend);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Pools)) {
        let mut pools = self
            .pools
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = pools.sizes();
        change(&mut pools);
        let after = pools.sizes();
        let changes = [0, 1, 2].map(|index| {
            i64::try_from(after[index]).unwrap_or(i64::MAX)
                - i64::try_from(before[index]).unwrap_or(i64::MAX)
        });
        self.count(&changes);
    }

    /// Adds the changes to the gauges. The gauges cover the agents of all tenants, and only changes are known here.
    fn count(&self, changes: &[i64; 3]) {
        for (index, strategy) in self.strategies.iter().enumerate() {
            let change = changes[*strategy as usize];
            // The flag may contain a strategy twice.
            if !self.strategies[..index].contains(strategy) {
                self.metrics.backends(&strategy.to_string(), change);
            }
            if index + 1 == self.strategies.len() {
                // As in upstream, where the last strategy overwrites the values of the ones before it.
                self.metrics.backend_connections(change);
            }
        }
    }

    /// Returns the agent for a dial to `address`.
    #[must_use]
    pub fn choose(&self, address: &str) -> Option<Arc<Backend>> {
        let pools = self.read();
        self.strategies
            .iter()
            .find_map(|strategy| match strategy {
                Strategy::Default => pools.agents.random(),
                Strategy::DestHost => pools.hosts.get(host(address)),
                Strategy::DefaultRoute => pools.routes.random(),
            })
            .cloned()
    }

    /// Returns whether the first strategy has an agent. Upstream's readiness check ignores the other strategies.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let pools = self.read();
        self.strategies
            .first()
            .is_some_and(|first| !pool(&pools, *first).streams.is_empty())
    }

    /// Returns all streams.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Backend>> {
        let pools = self.read();
        let streams = pools.agents.streams.iter();
        streams.flat_map(|(_, streams)| streams).cloned().collect()
    }
}

const fn pool(pools: &Pools, strategy: Strategy) -> &Pool {
    match strategy {
        Strategy::Default => &pools.agents,
        Strategy::DestHost => &pools.hosts,
        Strategy::DefaultRoute => &pools.routes,
    }
}

/// Returns an address without its port and without brackets. Identifiers are compared with it as strings.
fn host(address: &str) -> &str {
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    };
    // An IPv6 address without brackets and without a port.
    if host.contains(':') && !host.starts_with('[') {
        return address;
    }
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::super::backend::Shared;
    use super::*;
    use crate::client::Mode;
    use crate::identifiers::Identifiers;
    use crate::wire::metadata::Extensions;
    use crate::wire::{DialRequest, Message};

    fn backend(id: &str, identifiers: &str) -> Arc<Backend> {
        Backend::new(
            id.into(),
            Identifiers::parse(identifiers).unwrap(),
            Extensions::default(),
            Arc::new(Shared::for_tests()),
        )
    }

    fn agents(strategies: &[Strategy]) -> Agents {
        Agents::new(strategies.to_vec(), ServerMetrics::new())
    }

    fn chosen(agents: &Agents, address: &str) -> String {
        let backend = agents.choose(address);
        backend.map_or_else(|| "none".into(), |backend| backend.agent_id.clone())
    }

    #[test]
    fn hosts_are_compared_without_port_and_brackets() {
        for (address, want) in [
            ("10.0.0.1:443", "10.0.0.1"),
            ("[fd00::1]:443", "fd00::1"),
            ("node:x", "node:x"),
            ("node", "node"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(host(address), want);
        }
    }

    #[test]
    fn strategies_are_tried_in_order() {
        let agents = agents(&[Strategy::DestHost, Strategy::DefaultRoute]);
        let near = backend("near", "ipv4=10.0.0.1&host=node");
        let gateway = backend("gateway", "default-route=true");
        assert!(!agents.is_ready());
        agents.add(&gateway);
        assert!(!agents.is_ready(), "the first strategy has none");
        agents.add(&near);
        assert!(agents.is_ready());
        assert_eq!(chosen(&agents, "10.0.0.1:1"), "near");
        assert_eq!(chosen(&agents, "node:1"), "near");
        assert_eq!(chosen(&agents, "10.0.0.2:1"), "gateway");
        agents.remove(&gateway);
        assert_eq!(chosen(&agents, "10.0.0.2:1"), "none");
    }

    #[test]
    fn draining_agents_are_the_last_resort() {
        for strategies in [&[Strategy::Default][..], &[Strategy::DefaultRoute]] {
            let agents = agents(strategies);
            let all: Vec<_> = (0..4)
                .map(|n| backend(&format!("agent-{n}"), "default-route=true"))
                .collect();
            for backend in &all {
                agents.add(backend);
            }
            for backend in &all[1..] {
                backend.receive(Message::Drain);
            }
            for _ in 0..100 {
                assert_eq!(chosen(&agents, "a:1"), "agent-0");
            }
            all[0].receive(Message::Drain);
            assert_ne!(chosen(&agents, "a:1"), "none");
        }
    }

    #[test]
    fn of_several_streams_of_an_agent_the_first_serves() {
        let agents = agents(&[Strategy::Default]);
        let (one, two) = (backend("same", ""), backend("same", ""));
        agents.add(&one);
        agents.add(&two);
        assert!(Arc::ptr_eq(&agents.choose("a:1").unwrap(), &one));
        one.receive(Message::Drain);
        assert!(Arc::ptr_eq(&agents.choose("a:1").unwrap(), &two));
        agents.remove(&two);
        assert!(Arc::ptr_eq(&agents.choose("a:1").unwrap(), &one));
        agents.remove(&one);
        assert!(agents.choose("a:1").is_none());
    }

    #[test]
    fn a_congested_agent_gets_fewer_dials() {
        let agents = agents(&[Strategy::Default]);
        let slow = backend("slow", "");
        let lane = slow.outbox.lane(None);
        lane.push(Message::Data(1, vec![0; 300_000].into()))
            .unwrap();
        agents.add(&slow);
        agents.add(&backend("fast-1", ""));
        agents.add(&backend("fast-2", ""));
        let hits = (0..1000)
            .filter(|_| chosen(&agents, "a:1") == "slow")
            .count();
        assert_eq!(hits, 0, "one of two is always better");
    }

    #[test]
    fn a_silent_agent_is_avoided_until_it_speaks() {
        let agents = agents(&[Strategy::Default]);
        let silent = backend("silent", "");
        agents.add(&silent);
        agents.add(&backend("other", ""));
        let inbox = Arc::new(silent.shared.inbox(Mode::Grpc));
        let request = DialRequest {
            protocol: "tcp".into(),
            address: "a:1".into(),
            random: 7,
        };
        let tunnel = silent.dial(request, inbox).unwrap();
        assert!(tunnel.expire());
        assert!((0..100).all(|_| chosen(&agents, "a:1") == "other"));
        silent.receive(Message::Data(9, vec![0].into()));
        assert!((0..100).any(|_| chosen(&agents, "a:1") == "silent"));
    }

    #[test]
    fn all_agents_get_their_share() {
        let agents = agents(&[Strategy::Default]);
        for n in 0..10 {
            agents.add(&backend(&n.to_string(), ""));
        }
        let mut hits = HashMap::new();
        for _ in 0..2000 {
            *hits.entry(chosen(&agents, "a:1")).or_insert(0) += 1;
        }
        assert_eq!(hits.len(), 10);
        assert!(hits.values().all(|count| *count > 50), "{hits:?}");
    }
}
