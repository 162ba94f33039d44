// SPDX-License-Identifier: Apache-2.0

//! The second listener, for kubelet and Prometheus: `/healthz`, `/readyz`, `/metrics`, without TLS.

use std::sync::Arc;

use proxy_serve::http::{self, Handler, Reply, StatusCode};
use proxy_serve::shutdown::Phase;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Answers probes.
#[derive(Debug)]
pub struct Probes {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The phase, as it changes.
    pub phase: watch::Receiver<Phase>,
}

impl Handler for Probes {
    async fn get(&self, path: &str, _query: Option<&str>) -> Reply {
        match path {
            "/healthz" => http::text(StatusCode::OK, "ok\n"),
            "/readyz" if *self.phase.borrow() == Phase::Serving => {
                http::text(StatusCode::OK, "ok\n")
            }
            "/readyz" => http::text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
            "/metrics" => http::registry(self.metrics.registry()),
            _ => http::text(
                StatusCode::NOT_FOUND,
                "not found; there are /healthz, /readyz and /metrics\n",
            ),
        }
    }
}
