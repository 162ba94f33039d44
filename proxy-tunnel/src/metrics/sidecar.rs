// SPDX-License-Identifier: Apache-2.0

//! The sidecar's families, `konnectivity_network_proxy_sidecar_…`. The values of the label `tenant` are the names in
//! the sidecar's file of tenants, or `default` without such a file.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::Maker;
use super::certificates::Certificates;
use crate::client::DialError;

/// The histogram buckets for the duration of a dial, in seconds. A dial includes TLS with the server, and the
/// connection to the target.
const DIAL: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

/// All metrics of the sidecar.
#[derive(Debug)]
pub struct SidecarMetrics {
    registry: Registry,
    /// The expiry times of the certificates.
    pub certificates: Arc<Certificates>,
    connections: IntGaugeVec,
    idle: IntGaugeVec,
    server_up: IntGaugeVec,
    dials: IntCounterVec,
    dial_duration: HistogramVec,
}

/// The series of one tenant.
#[derive(Debug)]
pub struct Lines {
    /// The number of client connections.
    pub connections: IntGauge,
    /// The number of idle connections to targets.
    pub idle: IntGauge,
    /// Whether the server accepts connections: 1 or 0.
    pub server_up: IntGauge,
    dial_duration: Histogram,
    dials: IntCounterVec,
    tenant: String,
}

impl SidecarMetrics {
    /// Creates the families in their own registry.
    #[must_use]
    pub fn new() -> Self {
        let maker = Maker {
            registry: Registry::new(),
            subsystem: "sidecar",
        };
        Self {
            certificates: Certificates::new(&maker, true),
            connections: maker.gauges("connections", "Connections of clients.", &["tenant"]),
            idle: maker.gauges(
                "idle_tunnels",
                "Connections to targets that wait for the next request, each 15 s.",
                &["tenant"],
            ),
            server_up: maker.gauges(
                "server_up",
                "Whether the konnectivity server accepts connections: 1, or 0.",
                &["tenant"],
            ),
            dials: maker.counters(
                "dials_total",
                "Dials of targets, by what became of them.",
                &["tenant", "result"],
            ),
            dial_duration: maker.histograms(
                "dial_duration_seconds",
                "Seconds that dials took which succeeded.",
                &["tenant"],
                &DIAL,
            ),
            registry: maker.registry,
        }
    }

    /// Returns the registry from which the metrics are read.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the series of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Lines {
        let label = [tenant];
        Lines {
            connections: self.connections.with_label_values(&label),
            idle: self.idle.with_label_values(&label),
            server_up: self.server_up.with_label_values(&label),
            dial_duration: self.dial_duration.with_label_values(&label),
            dials: self.dials.clone(),
            tenant: tenant.to_owned(),
        }
    }
}

impl Default for SidecarMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Lines {
    fn count(&self, result: &str) {
        let labels = [self.tenant.as_str(), result];
        self.dials.with_label_values(&labels).inc();
    }

    /// Counts a successful dial that took `after`.
    pub fn dialed(&self, after: Duration) {
        self.count("ok");
        self.dial_duration.observe(after.as_secs_f64());
    }

    /// Counts a failed dial.
    pub fn failed(&self, error: &DialError) {
        self.count(error.reason());
    }

    /// Counts a dial to a target that is not permitted.
    pub fn forbidden(&self) {
        self.count("forbidden");
    }
}
