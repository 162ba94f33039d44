// SPDX-License-Identifier: Apache-2.0

//! The endpoint of `--listen`: request routing. Connections are served by `proxy_serve::http`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use proxy_serve::http::{self, Handler, Reply, StatusCode};
use proxy_serve::pages::{self, About, Page, Pages, Served};
use tokio::sync::Mutex;
use tracing::error;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::health::{self, Health, Listeners};
use super::metrics::{self, Facts, Reader};
use super::page;
use super::shared::{SharedState, Snapshot};
use crate::config::Config;
use crate::status;

const JSON: &str = "application/json";

/// Serves on the address of `config`, if there is one, until the process ends.
///
/// Failures are logged and retried; they never stop the daemon.
pub fn start(config: &Config, shared: &SharedState) {
    let candidates = config.serve.addresses.clone();
    if !candidates.is_empty() {
        let about = About {
            program: "proxy-agent",
            version: env!("CARGO_PKG_VERSION"),
            flags: config.serve.flags.clone(),
        };
        let answers = Served::new(about, Answers::new(config, shared));
        http::spawn_when_bound("http", candidates, answers, report);
    }
}

fn report(address: &str, error: &io::Error) {
    error!(
        "cannot serve metrics and health: cannot listen on {address}: {error}; set another \
         address with --listen, or an empty one to disable the endpoint"
    );
}

/// The sources of the answers.
struct Answers {
    shared: SharedState,
    requires_listener: bool,
    endpoints: Vec<SocketAddr>,
    run_dir: PathBuf,
    /// Serialises reads of the eBPF maps.
    reader: Mutex<Reader>,
    /// Serialises dry runs.
    dry_run: Mutex<()>,
}

impl Answers {
    /// Answers for the agent with this configuration, from the state that it publishes.
    fn new(config: &Config, shared: &SharedState) -> Self {
        Self {
            shared: shared.clone(),
            requires_listener: config.serve.ready_requires_listener,
            endpoints: config.endpoints().collect(),
            run_dir: config.run_dir.clone(),
            reader: Mutex::default(),
            dry_run: Mutex::default(),
        }
    }

    fn readiness(&self, snapshot: &Snapshot, listeners: &Listeners) -> Health {
        let age = self.shared.pulse().age();
        health::readiness(snapshot, age, listeners, self.requires_listener)
    }

    async fn metrics(&self, links: bool) -> Reply {
        let mut reader = self.reader.lock().await;
        let snapshot = self.shared.snapshot();
        let reading = match &snapshot.state {
            Some(state) => Some(reader.read(state, links).await),
            None => None,
        };
        let listeners = metrics::listeners(&self.endpoints);
        let text = metrics::text(&Facts {
            snapshot: &snapshot,
            durations: self.shared.durations(),
            readiness: &self.readiness(&snapshot, &listeners),
            listeners: &listeners,
            reading: reading.as_ref(),
            links,
        });
        http::metrics(text)
    }

    async fn status(&self) -> Reply {
        let _turn = self.dry_run.lock().await;
        let Some(state) = self.shared.snapshot().state else {
            let body = "no pass has ended yet\n".to_owned();
            return http::text(StatusCode::SERVICE_UNAVAILABLE, body);
        };
        let request = status::Request {
            output: status::Output::Json,
            all: true,
            run_dir: self.run_dir.clone(),
            bpffs: None,
        };
        // The dry run's log lines would be taken for those of the agent.
        let status = status::collect(&state, &request)
            .with_subscriber(NoSubscriber::new())
            .await;
        match status::json(&status) {
            Ok(body) => http::reply(StatusCode::OK, JSON, body),
            Err(error) => http::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

impl Handler for Answers {
    async fn get(&self, path: &str, query: Option<&str>) -> Reply {
        match path {
            "/metrics" => self.metrics(wants_links(query)).await,
            "/healthz" => {
                let snapshot = self.shared.snapshot();
                answer(&health::liveness(&snapshot, self.shared.pulse().age()))
            }
            "/readyz" => {
                let snapshot = self.shared.snapshot();
                answer(&self.readiness(&snapshot, &metrics::listeners(&self.endpoints)))
            }
            "/status" => self.status().await,
            _ => {
                let paths = pages::paths::<Self>().join(", ");
                http::text(StatusCode::NOT_FOUND, format!("available paths: {paths}\n"))
            }
        }
    }
}

impl Pages for Answers {
    const PATHS: &'static [&'static str] = &["/healthz", "/metrics", "/readyz", "/status"];

    /// Without a dry run: the findings of the last pass, and counters as in the metrics.
    async fn page(&self) -> Page {
        let mut reader = self.reader.lock().await;
        let snapshot = self.shared.snapshot();
        let reading = match &snapshot.state {
            Some(state) => Some(reader.read(state, false).await),
            None => None,
        };
        let readiness = self.readiness(&snapshot, &metrics::listeners(&self.endpoints));
        page::page(&snapshot, &readiness, reading.as_ref())
    }
}

/// Prometheus may send further parameters.
fn wants_links(query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or_default().split('&');
    parameters.any(|parameter| parameter == "links=true")
}

fn answer(health: &Health) -> Reply {
    let status = if health.is_good() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    http::text(status, health.to_string())
}
