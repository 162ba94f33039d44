// SPDX-License-Identifier: Apache-2.0

//! The webhook's metrics. `docs/webhook.md` lists them.

use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::review::Verdict;

/// Upper bounds of the buckets of durations, in seconds. With the manifests in deploy/webhook the API server waits for
/// 2 s.
const BUCKETS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 2.0,
];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The pod was patched.
    Patched,
    /// The pod needed no patch.
    Unchanged,
    /// The body was not a valid review.
    Malformed,
    /// The method was not `POST`, or the content type not `application/json`.
    Unacceptable,
    /// The path is not served.
    NotFound,
    /// The body was too long.
    TooLarge,
    /// The body took too long to arrive, or ended early.
    Incomplete,
    /// Too many concurrent requests, or too many bytes of bodies.
    Overload,
}

impl Outcome {
    /// All outcomes, in the order of their values, which index the counters.
    const ALL: [Self; 8] = [
        Self::Patched,
        Self::Unchanged,
        Self::Malformed,
        Self::Unacceptable,
        Self::NotFound,
        Self::TooLarge,
        Self::Incomplete,
        Self::Overload,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Patched => "patched",
            Self::Unchanged => "unchanged",
            Self::Malformed => "malformed",
            Self::Unacceptable => "unacceptable",
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::Incomplete => "incomplete",
            Self::Overload => "overload",
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Patched => Self::Patched,
            Verdict::Unchanged => Self::Unchanged,
            Verdict::Malformed => Self::Malformed,
        }
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: [IntCounter; Outcome::ALL.len()],
    duration: Histogram,
    /// Changed certificate files that were loaded.
    pub reloaded: IntCounter,
    /// Changed certificate files that could not be loaded.
    pub refused: IntCounter,
    /// Expiry of the server's certificate, in Unix time.
    pub server_ends: Gauge,
    ends: GaugeVec,
    /// Open connections.
    pub connections: IntGauge,
    /// Requests that are being received or answered.
    pub in_flight: IntGauge,
    /// Connections whose TLS handshake failed.
    pub handshake_failures: IntCounter,
}

impl Metrics {
    /// All metrics, with value zero.
    ///
    /// # Errors
    /// None known: the names are constants.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("apiserver_proxy_webhook".to_owned()), None)?;
        let build = GaugeVec::new(
            Opts::new("build_info", "The version of the webhook; always 1"),
            &["version"],
        )?;
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        let requests = IntCounterVec::new(
            Opts::new("requests_total", "Requests, by result"),
            &["result"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "review_duration_seconds",
                "Time from the end of a request's head to its answer, for reviews",
            )
            .buckets(BUCKETS.to_vec()),
        )?;
        let reloads = IntCounterVec::new(
            Opts::new(
                "certificate_reloads_total",
                "Reloads of changed certificate files, by result",
            ),
            &["result"],
        )?;
        let ends = GaugeVec::new(
            Opts::new(
                "certificate_expiry_timestamp_seconds",
                "Expiry of a certificate in use, in Unix time; of several CAs, the earliest",
            ),
            &["certificate"],
        )?;
        let connections = IntGauge::new("connections", "Open connections")?;
        let in_flight = IntGauge::new(
            "requests_in_flight",
            "Requests that are being received or answered",
        )?;
        let handshake_failures = IntCounter::new(
            "handshake_failures_total",
            "Connections whose TLS handshake failed",
        )?;
        registry.register(Box::new(build))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(reloads.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(handshake_failures.clone()))?;
        Ok(Self {
            registry,
            requests: Outcome::ALL.map(|outcome| requests.with_label_values(&[outcome.label()])),
            duration,
            reloaded: reloads.with_label_values(&["success"]),
            refused: reloads.with_label_values(&["failure"]),
            server_ends: ends.with_label_values(&["server"]),
            ends,
            connections,
            in_flight,
            handshake_failures,
        })
    }

    /// Counts a request that has ended.
    pub fn ended(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }

    /// Counts an answered review; `took` is the time since the end of its request's head.
    pub fn answered(&self, verdict: Verdict, took: Duration) {
        self.ended(verdict.into());
        self.duration.observe(took.as_secs_f64());
    }

    /// Sets the earliest expiry of the CAs by which client certificates are verified, in Unix time.
    pub fn client_ca_ends(&self, end: Duration) {
        self.ends
            .with_label_values(&["client_ca"])
            .set(end.as_secs_f64());
    }

    /// The registry of all metrics.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn every_outcome_has_its_counter() {
        let metrics = Metrics::new().unwrap();
        for outcome in Outcome::ALL {
            metrics.ended(outcome);
            let line = format!(
                "apiserver_proxy_webhook_requests_total{{result=\"{}\"}} 1\n",
                outcome.label()
            );
            let text = TextEncoder::new().encode_to_string(&metrics.registry().gather());
            let text = text.unwrap();
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
