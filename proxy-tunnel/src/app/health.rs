// SPDX-License-Identifier: Apache-2.0

//! The responses of the health and admin ports. They are identical to those of upstream's programs, byte by byte,
//! because probes and scripts parse them. In addition, the admin ports, which are bound to loopback by default, serve
//! web pages; the sidecar serves them on its only port. `proxy_serve::http` enforces the limits in time, bytes and
//! connections.

use std::fmt::{self, Display};

use prometheus::Registry;
use proxy_serve::http::{Handler, Reply, StatusCode, registry, text};
use proxy_serve::pages::{Page, Pages};

/// The readiness of a program.
pub trait Readiness: Send + 'static {
    /// Returns the status code and the text of the readiness response.
    fn readiness(&self, is_verbose: bool) -> (StatusCode, String);
}

/// The handler of a health port.
pub struct Health<R> {
    /// The readiness of the program.
    pub readiness: R,
    /// The program's metrics.
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

/// A program that has a web page.
pub trait Show: Send + 'static {
    /// Returns the page with the current values.
    fn page(&self) -> Page;
}

/// The numbers of tunnels that were closed, by reason.
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

/// The place where an admin port serves its metrics.
pub enum Metrics {
    /// The admin port serves the metrics itself.
    Here(Registry),
    /// The admin port redirects to this health port.
    On(u16),
}

/// The handler of an admin port.
pub struct Admin<S> {
    /// The metrics.
    pub metrics: Metrics,
    /// True if profiling was enabled.
    pub profiling: bool,
    /// The source of the web page.
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
