// SPDX-License-Identifier: Apache-2.0

//! What is answered to which request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Mutex;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::config::Config;
use crate::status;
use crate::telemetry::board::{Board, Told};
use crate::telemetry::health::{self, Health, Listeners};
use crate::telemetry::metrics::{self, Facts, Reader};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PATHS: &str = "/metrics, /metrics?links=true, /healthz, /readyz, /status\n";

/// What answers are made of.
pub struct Answers {
    board: Board,
    requires_listener: bool,
    endpoints: Vec<SocketAddr>,
    run_dir: PathBuf,
    /// Only one at a time reads the maps.
    reader: Mutex<Reader>,
    /// Only one at a time does a dry run.
    dry_run: Mutex<()>,
}

/// An answer that is not written yet.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Answers {
    /// For the agent with this configuration, by what it tells on `board`.
    pub fn new(config: &Config, board: &Board) -> Self {
        Self {
            board: board.clone(),
            requires_listener: config.serve.ready_requires_listener,
            endpoints: config.endpoints().collect(),
            run_dir: config.run_dir.clone(),
            reader: Mutex::default(),
            dry_run: Mutex::default(),
        }
    }

    /// The answer to a request, whose body nobody reads.
    pub async fn to(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
        let answer = if is_reading {
            self.at(request.uri().path(), request.uri().query()).await
        } else {
            Answer::text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD\n".to_owned(),
            )
        };
        let mut response = Response::new(Full::new(Bytes::from(answer.body)));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if !is_reading {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        Ok(response)
    }

    async fn at(&self, path: &str, query: Option<&str>) -> Answer {
        match path {
            "/metrics" => self.metrics(wants_links(query)).await,
            "/healthz" => {
                let told = self.board.told();
                Answer::health(&health::liveness(&told, self.board.pulse().age()))
            }
            "/readyz" => {
                let told = self.board.told();
                Answer::health(&self.readiness(&told, &metrics::listeners(&self.endpoints)))
            }
            "/status" => self.status().await,
            _ => Answer::text(StatusCode::NOT_FOUND, format!("served are {PATHS}")),
        }
    }

    fn readiness(&self, told: &Told, listeners: &Listeners) -> Health {
        let age = self.board.pulse().age();
        health::readiness(told, age, listeners, self.requires_listener)
    }

    async fn metrics(&self, links: bool) -> Answer {
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
        match text {
            Ok(body) => Answer {
                status: StatusCode::OK,
                content_type: prometheus::TEXT_FORMAT,
                body,
            },
            Err(error) => Answer::broken(&error.to_string()),
        }
    }

    async fn status(&self) -> Answer {
        let _turn = self.dry_run.lock().await;
        let Some(state) = self.board.told().state else {
            let body = "no pass has ended yet\n".to_owned();
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, body);
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
            Ok(body) => Answer {
                status: StatusCode::OK,
                content_type: JSON,
                body,
            },
            Err(error) => Answer::broken(&error.to_string()),
        }
    }
}

/// Prometheus may be told to send further parameters.
fn wants_links(query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or_default().split('&');
    parameters.any(|parameter| parameter == "links=true")
}

impl Answer {
    fn text(status: StatusCode, body: String) -> Self {
        Self {
            status,
            content_type: TEXT,
            body,
        }
    }

    fn health(health: &Health) -> Self {
        let status = if health.is_good() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        Self::text(status, health.to_string())
    }

    fn broken(error: &str) -> Self {
        Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
    }
}
