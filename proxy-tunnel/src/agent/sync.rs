// SPDX-License-Identifier: Apache-2.0

//! How many servers there are, and a stream to each of them. Behind a load balancer nothing shows which server the next
//! connection reaches, so the agent tries until it has enough of them.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::connector::{ConnectError, Connector};
use super::link::Link;
use crate::cluster::counting::Leases;
use crate::metrics::agent::{AgentMetrics, Direction};

/// Where the number of servers is taken from, if leases are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CountSource {
    /// Leases.
    #[default]
    Default,
    /// The larger of leases and the number that servers announce.
    Max,
}

impl FromStr for CountSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "default" => Ok(Self::Default),
            "max" => Ok(Self::Max),
            _ => Err(format!("`{text}` is no source; give default or max")),
        }
    }
}

/// The settings from the flags.
#[derive(Debug)]
pub struct Settings {
    /// Hosts of servers, or of load balancers before them. They are tried in turn.
    pub hosts: Vec<String>,
    /// The pause after a connection.
    pub interval: Duration,
    /// The longest pause after failures.
    pub cap: Duration,
    /// Connects also when there are enough streams.
    pub forever: bool,
    /// Where the number of servers is taken from.
    pub source: CountSource,
    /// Leases, if they are counted.
    pub leases: Option<Arc<Leases>>,
}

/// Connections in a row that lead to servers with a stream, for each server that is wanted, after which it is no chance: a
/// load balancer that chooses at random misses the last server so often once in 20,000 times.
const PINNED: usize = 10;

/// Keeps the streams.
#[derive(Debug)]
pub struct Sync {
    settings: Settings,
    connector: Connector,
    metrics: Arc<AgentMetrics>,
    /// By the servers' names, with the number of servers that each has said there are.
    links: Mutex<HashMap<String, (Arc<Link>, u32)>>,
    /// The server count of the server that was added last, for times without a stream.
    said: AtomicU32,
    draining: watch::Sender<bool>,
}

/// The outcome of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Added,
    /// There is a stream to the same server.
    Duplicate,
}

impl Sync {
    /// No streams yet.
    #[must_use]
    pub fn new(settings: Settings, connector: Connector) -> Arc<Self> {
        let metrics = Arc::clone(&connector.shared.metrics);
        metrics.known_servers.set(1);
        Arc::new(Self {
            settings,
            connector,
            metrics,
            links: Mutex::default(),
            said: AtomicU32::new(1),
            draining: watch::Sender::new(false),
        })
    }

    fn links(&self) -> MutexGuard<'_, HashMap<String, (Arc<Link>, u32)>> {
        // Nothing panics while it is held.
        self.links
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether there is a stream to any server.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.links().is_empty()
    }

    /// How many servers there is a stream to, and how many there should be.
    #[must_use]
    pub fn connected(&self) -> (usize, usize) {
        let there = self.links().len();
        (there, self.wanted(self.known()))
    }

    /// The streams, in no order.
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Link>> {
        let links = self.links();
        links.values().map(|(link, _)| Arc::clone(link)).collect()
    }

    /// Whether this agent is about to leave.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Several addresses are meant to be several servers.
    fn wanted(&self, known: usize) -> usize {
        known.max(self.settings.hosts.len())
    }

    /// How many servers there are, as far as is known.
    fn known(&self) -> usize {
        // In a rolling update old servers still say the old number: the largest is one that no server is missed by.
        let most = self.links().values().map(|(_, count)| *count).max();
        let said = most.unwrap_or_else(|| self.said.load(Ordering::Relaxed)) as usize;
        let leases = self.settings.leases.as_ref();
        // Before the first list the agent uses the number that servers announce.
        match leases.and_then(|leases| leases.count(Timestamp::now())) {
            None => said,
            Some(counted) if self.settings.source == CountSource::Max => counted.max(said),
            Some(counted) => counted,
        }
    }

    /// Sends DRAIN on all streams, and opens no others.
    pub fn drain(&self) {
        self.draining.send_replace(true);
        for (link, _) in self.links().values() {
            link.drain();
        }
    }

    /// Keeps the streams until the agent drains.
    pub async fn run(self: &Arc<Self>) {
        let mut draining = self.draining.subscribe();
        tokio::select! {
            // The value cannot be dropped before this ends.
            _ = draining.wait_for(|is_draining| *is_draining) => {}
            () = self.keep() => {}
        }
    }

    async fn keep(self: &Arc<Self>) {
        let Settings {
            hosts,
            interval,
            cap,
            ..
        } = &self.settings;
        let mut pause = *interval;
        let mut last = 0;
        let mut duplicates = 0;
        for host in hosts.iter().cycle() {
            while !self.is_wanted(&mut last) {
                sleep(jittered(*interval)).await;
            }
            match self.connect(host).await {
                Ok(Outcome::Added) => (pause, duplicates) = (*interval, 0),
                Ok(Outcome::Duplicate) => {
                    info!(
                        serverAddress = host.as_str(),
                        "duplicate server connection attempt"
                    );
                    (pause, duplicates) = (*interval, duplicates + 1);
                    self.report_pinned(duplicates);
                }
                Err(why) => {
                    duplicates = 0;
                    self.metrics.server_failed(Direction::ToServer);
                    let why = anyhow::Error::new(why);
                    error!(
                        serverAddress = host.as_str(),
                        err = format!("{why:#}").as_str(),
                        "cannot connect once"
                    );
                    sleep(jittered(pause)).await;
                    pause = pause.mul_f64(1.5).min(*cap);
                    continue;
                }
            }
            sleep(jittered(pause)).await;
        }
    }

    /// Reports, once, that trying goes on in vain.
    fn report_pinned(&self, duplicates: usize) {
        let (there, wanted) = self.connected();
        if there < wanted && duplicates == PINNED * wanted {
            warn!(
                connected = there,
                wanted,
                "the last {duplicates} connections all led to servers that this agent is connected to; if a load balancer \
                 pins it to them, name the servers themselves: --proxy-server-host takes a list"
            );
        }
    }

    fn is_wanted(&self, last: &mut usize) -> bool {
        let known = self.known();
        if known != *last {
            *last = known;
            info!(serverCount = known, "Determined server count");
        }
        let wanted = self.wanted(known);
        self.metrics
            .known_servers
            .set(i64::try_from(known).unwrap_or(i64::MAX));
        self.metrics
            .wanted_servers
            .set(i64::try_from(wanted).unwrap_or(i64::MAX));
        self.settings.forever || self.links().len() < wanted
    }

    async fn connect(self: &Arc<Self>, host: &str) -> Result<Outcome, ConnectError> {
        let connected = self.connector.connect(host).await?;
        let link = connected.link;
        {
            let mut links = self.links();
            if links.contains_key(&link.server_id) {
                link.outbox.finish(None);
                return Ok(Outcome::Duplicate);
            }
            let entry = (Arc::clone(&link), connected.count);
            links.insert(link.server_id.clone(), entry);
            self.said.store(connected.count, Ordering::Relaxed);
        }
        if self.is_draining() {
            link.drain();
        }
        self.metrics.server_connections.inc();
        info!(
            serverID = link.server_id.as_str(),
            agentID = self.connector.shared.agent_id.as_str(),
            "successfully connected to new proxy server"
        );
        let sync = Arc::clone(self);
        tokio::spawn(async move {
            link.serve(connected.inbound).await;
            sync.links().remove(&link.server_id);
            sync.metrics.server_connections.dec();
        });
        Ok(Outcome::Added)
    }
}

/// Up to a tenth longer, so that agents do not connect at the same time.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + fastrand::f64() * 0.1)
}
