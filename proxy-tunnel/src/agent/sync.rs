// SPDX-License-Identifier: Apache-2.0

//! Determines the number of servers and keeps a stream to each of them. A client behind a load balancer cannot choose
//! which server it reaches, so the agent connects until it has enough streams.

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

/// The source of the number of servers, if leases are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CountSource {
    /// The number of leases.
    #[default]
    Default,
    /// The larger of the number of leases and the number that servers announce.
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
    /// The hosts of servers, or of load balancers before them. The agent tries them in turn.
    pub hosts: Vec<String>,
    /// The pause after a successful connection.
    pub interval: Duration,
    /// The longest pause after failures.
    pub cap: Duration,
    /// If true, the agent continues to connect when it has enough streams.
    pub forever: bool,
    /// The source of the number of servers.
    pub source: CountSource,
    /// The leases, if they are counted.
    pub leases: Option<Arc<Leases>>,
}

/// The number of consecutive connections to already connected servers, per wanted server, after which the agent reports
/// that a load balancer seems to pin it. A load balancer that chooses at random misses the last server that often once
/// in 20,000 times.
const PINNED: usize = 10;

/// Keeps the agent's streams to the servers.
#[derive(Debug)]
pub struct Sync {
    settings: Settings,
    connector: Connector,
    metrics: Arc<AgentMetrics>,
    /// The streams by server ID, each with the number of servers that the server announced.
    links: Mutex<HashMap<String, (Arc<Link>, u32)>>,
    /// The number of servers announced by the server that was added last. It is used while there is no stream.
    said: AtomicU32,
    draining: watch::Sender<bool>,
}

/// The outcome of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Added,
    /// A stream to the same server already exists.
    Duplicate,
}

impl Sync {
    /// Creates the state, without any streams.
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
        // No code panics while it holds the lock.
        self.links
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns true if there is a stream to at least one server.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !self.links().is_empty()
    }

    /// Returns the number of servers to which there is a stream, and the number of streams that the agent wants.
    #[must_use]
    pub fn connected(&self) -> (usize, usize) {
        let there = self.links().len();
        (there, self.wanted(self.known()))
    }

    /// Returns the streams in arbitrary order.
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Link>> {
        let links = self.links();
        links.values().map(|(link, _)| Arc::clone(link)).collect()
    }

    /// Returns true if the agent is about to shut down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Returns the number of streams that the agent wants. Several configured addresses are assumed to be several
    /// servers.
    fn wanted(&self, known: usize) -> usize {
        known.max(self.settings.hosts.len())
    }

    /// Returns the number of servers that the agent currently assumes.
    fn known(&self) -> usize {
        // During a rolling update, old servers still announce the old number. The maximum ensures that no server is
        // missed.
        let most = self.links().values().map(|(_, count)| *count).max();
        let said = most.unwrap_or_else(|| self.said.load(Ordering::Relaxed)) as usize;
        let leases = self.settings.leases.as_ref();
        // Until the first list of leases arrives, the agent uses the number that servers announce.
        match leases.and_then(|leases| leases.count(Timestamp::now())) {
            None => said,
            Some(counted) if self.settings.source == CountSource::Max => counted.max(said),
            Some(counted) => counted,
        }
    }

    /// Sends DRAIN on all streams and stops opening new ones.
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
            // The sender is not dropped before this function ends, so the result is never an error.
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

    /// Warns once that further attempts only reach servers that are already connected.
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

/// Lengthens a pause by up to a tenth, so that agents do not all connect at the same time.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + fastrand::f64() * 0.1)
}
