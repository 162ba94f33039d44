// SPDX-License-Identifier: Apache-2.0

//! Runs many agents in one process: konnectivity-agent's own connector and loop, without its ports and its log.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use proxy_serve::reload::Reloader;
use proxy_serve::tls::client::Client as Tls;
use proxy_serve::tls::{HTTP2, Pair, Policy};
use proxy_tunnel::agent::connector::Connector;
use proxy_tunnel::agent::link::Shared;
use proxy_tunnel::agent::sync::{CountSource, Settings, Sync};
use proxy_tunnel::destinations::Destinations;
use proxy_tunnel::flow::{Budget, Limits};
use proxy_tunnel::metrics::agent::AgentMetrics;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::site::name;

/// The server's port for agents, as in the examples.
const PORT: u16 = 8091;

/// The interval of konnectivity-agent's connection loop, which is its default.
const INTERVAL: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_hours(1);
const BUDGET: usize = 256 << 20;

/// The maximum time that any expected event may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// A set of agents with their tenants. The agents stop when it is dropped.
pub struct Fleet {
    agents: Vec<(usize, Arc<Sync>)>,
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Starts agents with these numbers, assigned to all tenants in turn. Their certificates are in this directory.
    ///
    /// # Errors
    /// Returns an error if a certificate is missing.
    pub fn start(
        runtime: &Runtime,
        certificates: &Path,
        tenants: usize,
        numbers: Range<usize>,
    ) -> Result<Self> {
        let tls: Result<Vec<_>> = (0..tenants)
            .map(|tenant| {
                let name = name(tenant);
                let source = Tls {
                    server_ca: certificates.join("issued/ca.crt"),
                    pair: Some(Pair {
                        certificate: certificates.join(format!("issued/{name}.crt")),
                        key: certificates.join(format!("private/{name}.key")),
                    }),
                    location: "the benchmark has made them",
                    alpn: vec![HTTP2.to_vec()],
                    policy: Policy::default(),
                };
                let reloader = Reloader::new(source, |_| {});
                Ok(reloader.with_context(|| name)?.current())
            })
            .collect();
        let tls = tls?;
        let _within = runtime.enter();
        let (metrics, budget) = (AgentMetrics::new(), Arc::new(Budget::new(BUDGET)));
        let mut tasks = JoinSet::new();
        let agents = numbers.map(|number| {
            let tenant = number % tenants;
            let connector = Connector {
                port: PORT,
                tls: tls[tenant].clone(),
                server_name: None,
                keepalive: KEEPALIVE,
                token: None,
                identifiers: String::new(),
                shared: Arc::new(Shared {
                    agent_id: format!("agent-{number}"),
                    metrics: Arc::clone(&metrics),
                    budget: Arc::clone(&budget),
                    limits: Limits::default(),
                    allowed: Destinations::default(),
                }),
            };
            let settings = Settings {
                hosts: vec!["127.0.0.1".to_owned()],
                interval: INTERVAL,
                cap: CAP,
                forever: false,
                source: CountSource::Default,
                leases: None,
            };
            let sync = Sync::new(settings, connector);
            let keeping = Arc::clone(&sync);
            tasks.spawn(async move { keeping.run().await });
            (tenant, sync)
        });
        Ok(Self {
            agents: agents.collect(),
            _tasks: tasks,
        })
    }

    /// Returns the number of agents.
    pub const fn size(&self) -> usize {
        self.agents.len()
    }

    /// Returns the number of connected agents.
    pub fn connected(&self) -> usize {
        let agents = self.agents.iter();
        agents.filter(|(_, sync)| sync.is_connected()).count()
    }

    /// Returns the tenant of a connected agent.
    pub fn first_connected(&self) -> Option<usize> {
        let mut agents = self.agents.iter();
        let found = agents.find(|(_, sync)| sync.is_connected());
        found.map(|(tenant, _)| *tenant)
    }

    /// Waits until `count` agents are connected, and returns the time that it took.
    ///
    /// # Errors
    /// Returns an error if they do not connect in time.
    pub fn wait_for(&self, count: usize) -> Result<Duration> {
        let start = Instant::now();
        while self.connected() != count {
            if start.elapsed() > PATIENCE {
                bail!(
                    "{} of {} agents are connected, not {count}, after {} s",
                    self.connected(),
                    self.size(),
                    PATIENCE.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(start.elapsed())
    }
}
