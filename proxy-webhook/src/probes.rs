// SPDX-License-Identifier: Apache-2.0

//! The second listener, for kubelet, Prometheus and operators: `/healthz`, `/readyz`, `/metrics`, and the pages that
//! every program has, without TLS.

use std::sync::Arc;

use proxy_serve::http::{self, Handler, Reply, StatusCode};
use proxy_serve::pages::{self, Pages};
use proxy_serve::shutdown::Phase;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Answers probes.
#[derive(Debug)]
pub struct Probes {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The current phase.
    pub phase: watch::Receiver<Phase>,
}

impl Pages for Probes {
    const PATHS: &'static [&'static str] = &["/healthz", "/metrics", "/readyz"];
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
                format!(
                    "not found; available: {}\n",
                    pages::paths::<Self>().join(", ")
                ),
            ),
        }
    }
}
