// SPDX-License-Identifier: Apache-2.0

//! The server's families, `konnectivity_network_proxy_server_…`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::certificates::Certificates;
use super::packets::Packets;
use super::tenants::Tenants;
use super::{Maker, NONE};

const LATENCY: [f64; 9] = [
    0.000_001, 0.000_01, 0.000_1, 0.005, 0.025, 0.1, 0.5, 2.5, 12.5,
];
const LIFETIME: [f64; 12] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 43_200.0, 86_400.0,
];

/// Why a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// No agent can be chosen.
    NoAgent,
    /// A limit of the client's tenant is reached, or the tenant was removed.
    Tenant,
    /// The agent answered with an error.
    ErrorResponse,
    /// The agent answered a dial that is not pending.
    UnrecognizedResponse,
    /// The agent's answer could not be sent to the client.
    SendResponse,
    /// The agent disconnected, or cancelled the dial.
    BackendClose,
    /// The agent did not answer in time.
    BackendDialTimeout,
    /// The client disconnected, or cancelled the dial.
    FrontendClose,
}

impl DialFailure {
    const fn reason(self) -> &'static str {
        match self {
            Self::NoAgent => "no_agent",
            Self::Tenant => "tenant",
            Self::ErrorResponse => "error_response",
            Self::UnrecognizedResponse => "unrecognized_response",
            Self::SendResponse => "send_rsp",
            Self::BackendClose => "backend_close",
            Self::BackendDialTimeout => "backend_dial_timeout",
            Self::FrontendClose => "frontend_close",
        }
    }
}

/// The gRPC services, as in the label `service_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The service for clients.
    Proxy,
    /// The service for agents.
    Connect,
}

impl Method {
    const fn label(self) -> &'static str {
        match self {
            Self::Proxy => "Proxy",
            Self::Connect => "Connect",
        }
    }
}

/// All metrics of the server.
#[derive(Debug)]
pub struct ServerMetrics {
    registry: Registry,
    /// The counters of packets and of stream errors.
    pub packets: Arc<Packets>,
    /// The metrics of tenants.
    pub tenants: Tenants,
    /// The expiry times of the certificates.
    pub certificates: Arc<Certificates>,
    /// The number of open HTTP CONNECT connections.
    pub http_connections: IntGauge,
    /// The number of expired leases that were deleted.
    pub culled_leases: IntCounter,
    /// The number of HTTP CONNECT connections that buffer more than their limit.
    pub full_queues: IntGauge,
    /// The number of buffered bytes.
    pub buffered: IntGauge,
    dial_duration: HistogramVec,
    write_duration: HistogramVec,
    connection_duration: HistogramVec,
    grpc_connections: IntGaugeVec,
    backend_connections: IntGaugeVec,
    backends: IntGaugeVec,
    pending: IntGaugeVec,
    established: IntGaugeVec,
    full_receive: IntGaugeVec,
    dial_failures: IntCounterVec,
    closed_tunnels: IntCounterVec,
    leases: LeaseRequests,
}

/// The metrics of lease requests.
#[derive(Debug)]
struct LeaseRequests {
    lists: IntCounterVec,
    deletes: IntCounterVec,
    list_latency: HistogramVec,
    delete_latency: HistogramVec,
}

impl LeaseRequests {
    fn new(maker: &Maker) -> Self {
        Self {
            lists: maker.counters(
                "lease_list_total",
                "Lists of leases, by HTTP status.",
                &["http_status_code", "reason"],
            ),
            deletes: maker.counters(
                "lease_delete_total",
                "Deletions of expired leases, by HTTP status.",
                &["http_status_code", "reason"],
            ),
            list_latency: maker.histograms(
                "lease_list_latency_seconds",
                "Seconds that lists of leases took.",
                &["http_status_code"],
                prometheus::DEFAULT_BUCKETS,
            ),
            delete_latency: maker.histograms(
                "lease_delete_latency_seconds",
                "Seconds that deletions of leases took.",
                &["http_status_code"],
                prometheus::DEFAULT_BUCKETS,
            ),
        }
    }
}

impl ServerMetrics {
    /// Creates the families in their own registry.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let maker = Maker {
            registry: Registry::new(),
            subsystem: "server",
        };
        let http_connections = maker.add(IntGauge::with_opts(maker.opts(
            "http_connections",
            "Number of current HTTP CONNECT connections",
        )));
        let culled_leases = maker.add(IntCounter::with_opts(maker.opts(
            "culled_leases_count",
            "Expired leases that this server has deleted.",
        )));
        let full_queues = maker.add(IntGauge::with_opts(maker.opts(
            "full_frontend_write_queues",
            "HTTP CONNECT connections of which too much is buffered, because their clients do not read.",
        )));
        // Upstream's loop for an agent waits for a client whose queue is full; this server never does.
        maker.add(IntGauge::with_opts(maker.opts(
            "blocked_frontend_write_channels",
            "Always 0: no client's queue keeps an agent's packets for other clients waiting.",
        )));
        let buffered = maker.add(IntGauge::with_opts(maker.opts(
            "buffered_bytes",
            "Bytes received from agents that clients have not yet taken.",
        )));
        let backend_connections = maker.gauges(
            "ready_backend_connections",
            "Streams of connected agents. Deprecated: ready_backends counts them by strategy.",
            &NONE,
        );
        backend_connections.with_label_values(&NONE).set(0);
        Arc::new(Self {
            packets: Arc::new(Packets::new(&maker)),
            tenants: Tenants::new(&maker),
            certificates: Certificates::new(&maker, false),
            http_connections,
            culled_leases,
            full_queues,
            buffered,
            backend_connections,
            dial_duration: maker.histograms(
                "dial_duration_seconds",
                "Seconds from a dial request to the agent's answer.",
                &NONE,
                &LATENCY,
            ),
            write_duration: maker.histograms(
                "frontend_write_duration_seconds",
                "Seconds that writes to HTTP CONNECT clients took.",
                &NONE,
                &LATENCY,
            ),
            connection_duration: maker.histograms(
                "connection_duration_seconds",
                "Seconds that connections were established before they were closed.",
                &NONE,
                &LIFETIME,
            ),
            grpc_connections: maker.gauges(
                "grpc_connections",
                "Open gRPC streams, by service method.",
                &["service_method"],
            ),
            backends: maker.gauges(
                "ready_backends",
                "Streams of connected agents, by the strategy that can choose them.",
                &["proxy_strategy"],
            ),
            pending: maker.gauges("pending_backend_dials", "Dials without an answer.", &NONE),
            established: maker.gauges(
                "established_connections",
                "Established connections from clients to targets.",
                &NONE,
            ),
            full_receive: maker.gauges(
                "full_receive_channels",
                "Tunnels whose sender waits because too much of them is buffered, by service method.",
                &["service_method"],
            ),
            dial_failures: maker.counters(
                "dial_failure_count",
                "Number of dial failures observed. Multiple failures can occur for a single dial request.",
                &["reason"],
            ),
            closed_tunnels: maker.counters(
                "tunnels_closed_total",
                "Tunnels that this server closed because their client did not read, by reason.",
                &["reason"],
            ),
            leases: LeaseRequests::new(&maker),
            registry: maker.registry,
        })
    }

    /// Returns the registry from which the metrics are read.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a failed dial.
    pub fn dial_failed(&self, failure: DialFailure) {
        self.dial_failures
            .with_label_values(&[failure.reason()])
            .inc();
    }

    /// Records the time from a dial's request to its answer.
    pub fn dialed(&self, after: Duration) {
        self.dial_duration
            .with_label_values(&NONE)
            .observe(after.as_secs_f64());
    }

    /// Records the duration of a write to a client.
    pub fn wrote(&self, duration: Duration) {
        self.write_duration
            .with_label_values(&NONE)
            .observe(duration.as_secs_f64());
    }

    /// Adds `change` to the number of pending dials.
    pub fn pending(&self, change: i64) {
        self.pending.with_label_values(&NONE).add(change);
    }

    /// Counts a newly established connection.
    pub fn established(&self) {
        self.established.with_label_values(&NONE).inc();
    }

    /// Counts the end of a connection, and records its duration.
    pub fn ended(&self, after: Duration) {
        self.established.with_label_values(&NONE).dec();
        self.connection_duration
            .with_label_values(&NONE)
            .observe(after.as_secs_f64());
    }

    /// Returns the numbers of pending dials and of established connections.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn open(&self) -> (i64, i64) {
        let value = |gauge: &IntGaugeVec| gauge.with_label_values(&NONE).get();
        (value(&self.pending), value(&self.established))
    }

    /// Adds `change` to the number of gRPC streams.
    pub fn grpc(&self, method: Method, change: i64) {
        self.grpc_connections
            .with_label_values(&[method.label()])
            .add(change);
    }

    /// Returns the gauge for the tunnels of a service that buffer more than their limit.
    #[must_use]
    pub fn full(&self, method: Method) -> IntGauge {
        self.full_receive.with_label_values(&[method.label()])
    }

    /// Counts a tunnel that was closed because its client did not read.
    pub fn closed_tunnel(&self, reason: &str) {
        self.closed_tunnels.with_label_values(&[reason]).inc();
    }

    /// Returns the number of tunnels closed in this way, by reason.
    #[must_use]
    pub fn closed_tunnels(&self) -> Vec<(String, f64)> {
        super::counted(&self.closed_tunnels)
    }

    /// Adds `change` to the number of agent streams.
    pub fn backend_connections(&self, change: i64) {
        self.backend_connections
            .with_label_values(&NONE)
            .add(change);
    }

    /// Adds `change` to the number of agents that a strategy can choose.
    pub fn backends(&self, strategy: &str, change: i64) {
        self.backends.with_label_values(&[strategy]).add(change);
    }

    /// Counts an answered request for a list of leases, and records its duration.
    pub fn listed_leases(&self, status: u16, reason: &str, after: Duration) {
        let status = status.to_string();
        self.leases
            .lists
            .with_label_values(&[status.as_str(), reason])
            .inc();
        self.leases
            .list_latency
            .with_label_values(&[status.as_str()])
            .observe(after.as_secs_f64());
    }

    /// Counts an answered request to delete a lease, and records its duration.
    pub fn deleted_lease(&self, status: u16, reason: &str, after: Duration) {
        let status = status.to_string();
        self.leases
            .deletes
            .with_label_values(&[status.as_str(), reason])
            .inc();
        self.leases
            .delete_latency
            .with_label_values(&[status.as_str()])
            .observe(after.as_secs_f64());
    }
}
