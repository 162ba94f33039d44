// SPDX-License-Identifier: Apache-2.0

//! What the health and admin ports answer, byte by byte as upstream's programs do: probes and scripts read it. Beside
//! that the admin ports, which are on loopback by default, have pages for people; the sidecar has them on its only port.
//! Limits in time, bytes and connections are `proxy_serve::http`'s.

use std::fmt::{self, Display};

use prometheus::Registry;
use proxy_serve::http::{Handler, Reply, StatusCode, registry, text};
use proxy_serve::pages::{Page, Pages};

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

impl<R: Readiness + Show> Pages for Health<R> {
    const PATHS: &'static [&'static str] = &["/healthz", "/metrics", "/ready", "/readyz"];

    async fn page(&self) -> Page {
        self.readiness.page()
    }
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

/// What a program shows of itself in a browser.
pub trait Show: Send + 'static {
    /// Its page, as of now.
    fn page(&self) -> Page;
}

/// Tunnels that were closed, by reason.
pub struct Closed<'a>(pub &'a [(String, f64)]);

impl Display for Closed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, (reason, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{count:.0} {reason}")?;
        }
        Ok(())
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
pub struct Admin<S> {
    /// The counters.
    pub metrics: Metrics,
    /// Whether profiles were asked for.
    pub profiling: bool,
    /// What it shows.
    pub show: S,
}

impl<S: Show> Pages for Admin<S> {
    const PATHS: &'static [&'static str] = &["/metrics"];

    async fn page(&self) -> Page {
        self.show.page()
    }
}

impl<S: Show> Handler for Admin<S> {
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
