// SPDX-License-Identifier: Apache-2.0

//! The agent's families, `konnectivity_network_proxy_agent_…`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGauge, Registry};

use super::certificates::Certificates;
use super::packets::Packets;
use super::{Maker, NONE};
use crate::go_error::Problem;

const DIAL: [f64; 7] = [0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

/// The direction in which a stream to a server failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sending failed.
    ToServer,
    /// Receiving failed.
    FromServer,
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct AgentMetrics {
    registry: Registry,
    /// The counters of packets and of stream errors.
    pub packets: Arc<Packets>,
    /// The expiry times of the certificates.
    pub certificates: Arc<Certificates>,
    /// The number of streams to servers.
    pub server_connections: IntGauge,
    /// The number of connections to targets.
    pub endpoint_connections: IntGauge,
    /// The number of known servers.
    pub known_servers: IntGauge,
    /// The number of servers that this agent wants to be connected to.
    pub wanted_servers: IntGauge,
    /// The number of buffered bytes.
    pub buffered: IntGauge,
    dial_duration: HistogramVec,
    dial_failures: IntCounterVec,
    server_failures: IntCounterVec,
    closed_tunnels: IntCounterVec,
    lease_lists: IntCounterVec,
    lease_list_latency: HistogramVec,
}

impl AgentMetrics {
    /// Creates the families in their own registry.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let maker = Maker {
            registry: Registry::new(),
            subsystem: "agent",
        };
        let gauge = |name, help| maker.add(IntGauge::with_opts(maker.opts(name, help)));
        Arc::new(Self {
            packets: Arc::new(Packets::new(&maker)),
            certificates: Certificates::new(&maker, false),
            server_connections: gauge(
                "open_server_connections",
                "Current number of open server connections.",
            ),
            endpoint_connections: gauge(
                "open_endpoint_connections",
                "Current number of open endpoint connections.",
            ),
            known_servers: gauge("known_server_count", "Servers that this agent knows of."),
            wanted_servers: gauge(
                "wanted_server_connections",
                "Servers to which this agent wants a connection.",
            ),
            buffered: gauge(
                "buffered_bytes",
                "Bytes received from servers that targets have not yet taken.",
            ),
            dial_duration: maker.histograms(
                "dial_duration_seconds",
                "Seconds that successful dials of targets took.",
                &NONE,
                &DIAL,
            ),
            dial_failures: maker.counters(
                "endpoint_dial_failure_total",
                "Number of failures dialing the remote endpoint, by reason (example: timeout).",
                &["reason"],
            ),
            server_failures: maker.counters(
                "server_connection_failure_count",
                "Streams to servers that failed, by direction. Deprecated: stream_errors_total.",
                &["direction"],
            ),
            closed_tunnels: maker.counters(
                "tunnels_closed_total",
                "Tunnels that this agent closed because their target did not read, by reason.",
                &["reason"],
            ),
            lease_lists: maker.counters(
                "lease_lists_total",
                "Lists of leases, by HTTP status.",
                &["http_response_code", "reason"],
            ),
            lease_list_latency: maker.histograms(
                "lease_list_latency_seconds",
                "Seconds that lists of leases took.",
                &["http_response_code"],
                prometheus::DEFAULT_BUCKETS,
            ),
            registry: maker.registry.clone(),
        })
    }

    /// Returns the registry from which the metrics are read.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Records the duration of a successful dial.
    pub fn dialed(&self, after: Duration) {
        self.dial_duration
            .with_label_values(&NONE)
            .observe(after.as_secs_f64());
    }

    /// Counts a failed dial.
    pub fn dial_failed(&self, problem: &Problem) {
        let reason = match problem {
            Problem::Forbidden => "forbidden",
            problem if problem.is_timeout() => "timeout",
            _ => "unknown",
        };
        self.dial_failures.with_label_values(&[reason]).inc();
    }

    /// Counts a failed stream to a server.
    pub fn server_failed(&self, direction: Direction) {
        let label = match direction {
            Direction::ToServer => "to_server",
            Direction::FromServer => "from_server",
        };
        self.server_failures.with_label_values(&[label]).inc();
    }

    /// Counts a tunnel that was closed because its target did not read.
    pub fn closed_tunnel(&self, reason: &str) {
        self.closed_tunnels.with_label_values(&[reason]).inc();
    }

    /// Returns the number of tunnels closed in this way, by reason.
    #[must_use]
    pub fn closed_tunnels(&self) -> Vec<(String, f64)> {
        super::counted(&self.closed_tunnels)
    }

    /// Counts an answered request for a list of leases, and records its duration.
    pub fn listed_leases(&self, status: u16, reason: &str, after: Duration) {
        let status = status.to_string();
        self.lease_lists
            .with_label_values(&[status.as_str(), reason])
            .inc();
        self.lease_list_latency
            .with_label_values(&[status.as_str()])
            .observe(after.as_secs_f64());
    }
}
