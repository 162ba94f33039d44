// SPDX-License-Identifier: Apache-2.0

//! The endpoint of `--listen`: which requests get which answers. How it is served is `proxy_serve::http`'s
//! business.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use proxy_serve::http::{self, Handler, Reply, StatusCode};
use tokio::sync::Mutex;
use tracing::error;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::board::{Board, Told};
use super::health::{self, Health, Listeners};
use super::metrics::{self, Facts, Reader};
use crate::config::Config;
use crate::status;

const JSON: &str = "application/json";
const PATHS: &str = "/metrics, /metrics?links=true, /healthz, /readyz, /status\n";

/// Answers on the address of `config`, if there is one, as long as the process lives.
///
/// What goes wrong is logged and tried again: the VIP is more important than its monitoring.
pub fn start(config: &Config, board: &Board) {
    let candidates = config.serve.addresses.clone();
    if !candidates.is_empty() {
        http::spawn_when_bound("http", candidates, Answers::new(config, board), report);
    }
}

fn report(address: &str, error: &io::Error) {
    error!(
        "no metrics and no health are served: cannot listen on {address}: {error}; give another \
         address with --listen, or an empty one to serve none"
    );
}

/// The facts that answers are made of.
struct Answers {
    board: Board,
    requires_listener: bool,
    endpoints: Vec<SocketAddr>,
    run_dir: PathBuf,
    /// Only one at a time reads the maps.
    reader: Mutex<Reader>,
    /// Only one at a time does a dry run.
    dry_run: Mutex<()>,
}

impl Answers {
    /// For the agent with this configuration, by what it publishes on `board`.
    fn new(config: &Config, board: &Board) -> Self {
        Self {
            board: board.clone(),
            requires_listener: config.serve.ready_requires_listener,
            endpoints: config.endpoints().collect(),
            run_dir: config.run_dir.clone(),
            reader: Mutex::default(),
            dry_run: Mutex::default(),
        }
    }

    fn readiness(&self, told: &Told, listeners: &Listeners) -> Health {
        let age = self.board.pulse().age();
        health::readiness(told, age, listeners, self.requires_listener)
    }

    async fn metrics(&self, links: bool) -> Reply {
        let mut reader = self.reader.lock().await;
        let told = self.board.told();
        let reading = match &told.state {
            Some(state) => Some(reader.read(state, links).await),
            None => None,
        };
        let listeners = metrics::listeners(&self.endpoints);
        let text = metrics::text(&Facts {
            told: &told,
            durations: self.board.durations(),
            readiness: &self.readiness(&told, &listeners),
            listeners: &listeners,
            reading: reading.as_ref(),
            links,
        });
        http::metrics(text)
    }

    async fn status(&self) -> Reply {
        let _turn = self.dry_run.lock().await;
        let Some(state) = self.board.told().state else {
            let body = "no pass has ended yet\n".to_owned();
            return http::text(StatusCode::SERVICE_UNAVAILABLE, body);
        };
        let request = status::Request {
            output: status::Output::Json,
            all: true,
            run_dir: self.run_dir.clone(),
            bpffs: None,
        };
        // Its dry run is not what the agent does: nothing of it belongs into the log.
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
                let told = self.board.told();
                answer(&health::liveness(&told, self.board.pulse().age()))
            }
            "/readyz" => {
                let told = self.board.told();
                answer(&self.readiness(&told, &metrics::listeners(&self.endpoints)))
            }
            "/status" => self.status().await,
            _ => http::text(StatusCode::NOT_FOUND, format!("served are {PATHS}")),
        }
    }
}

/// Prometheus can be configured to send further parameters.
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
