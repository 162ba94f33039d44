// SPDX-License-Identifier: Apache-2.0

//! What the health and admin ports answer, byte by byte as upstream's programs do: probes and scripts read it.
//! Limits in time, bytes and connections are `proxy_serve::http`'s.

use prometheus::Registry;
use proxy_serve::http::{Handler, Reply, StatusCode, registry, text};

/// Whether a program is ready.
pub trait Readiness: Send + 'static {
    /// The status and the text for a program that is ready, or is not.
    fn readiness(&self, is_verbose: bool) -> (StatusCode, String);
}

/// A health port.
pub struct Health<R> {
    /// Whether the program is ready.
    pub readiness: R,
    /// Its counters.
    pub registry: Registry,
}

impl<R: Readiness> Handler for Health<R> {
    async fn get(&self, path: &str, query: Option<&str>) -> Reply {
        match path {
            "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" | "/ready" => {
                let is_verbose = query.is_some_and(|query| {
                    query
                        .split('&')
                        .any(|pair| pair == "verbose" || pair.starts_with("verbose="))
                });
                let (status, body) = self.readiness.readiness(is_verbose);
                text(status, body)
            }
            "/metrics" => registry(&self.registry),
            _ => not_found(),
        }
    }
}

/// Where an admin port has its metrics.
pub enum Metrics {
    /// There.
    Here(Registry),
    /// On the health port.
    On(u16),
}

/// An admin port.
pub struct Admin {
    /// The counters.
    pub metrics: Metrics,
    /// Whether profiles were asked for.
    pub profiling: bool,
}

impl Handler for Admin {
    async fn get(&self, path: &str, _: Option<&str>) -> Reply {
        match (path, &self.metrics) {
            ("/metrics", Metrics::Here(metrics)) => registry(metrics),
            (path, _) if self.profiling && path.starts_with("/debug/pprof") => text(
                StatusCode::NOT_IMPLEMENTED,
                "this program is not written in Go and has no such profiles; perf(1) can record it\n",
            ),
            _ => not_found(),
        }
    }

    fn moved(&self, host: &str, path: &str, query: Option<&str>) -> Option<String> {
        match (&self.metrics, path) {
            (Metrics::On(port), "/metrics") => {
                let query = query.map(|query| format!("?{query}"));
                Some(format!(
                    "//{host}:{port}/metrics{}",
                    query.unwrap_or_default()
                ))
            }
            _ => None,
        }
    }
}

fn not_found() -> Reply {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}
