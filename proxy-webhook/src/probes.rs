// SPDX-License-Identifier: Apache-2.0

//! The second listener, for kubelet and Prometheus: `/healthz`, `/readyz`, `/metrics`, without TLS.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::limits;
use crate::metrics::Metrics;
use crate::server::{Phase, accepted};
use crate::service::text;

/// Serves until the process ends.
pub async fn run(listener: TcpListener, metrics: Arc<Metrics>, phase: watch::Receiver<Phase>) {
    let slots = Arc::new(Semaphore::new(limits::PROBE_CONNECTIONS));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let (stream, _) = accepted(&listener).await;
        let metrics = Arc::clone(&metrics);
        let phase = phase.clone();
        tokio::spawn(async move {
            serve(stream, &metrics, &phase).await;
            drop(slot);
        });
    }
}

async fn serve(stream: TcpStream, metrics: &Metrics, phase: &watch::Receiver<Phase>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, metrics, *phase.borrow());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD)
        .max_buf_size(limits::HTTP1_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(limits::IDLE, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!("a probe: {error}"),
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, phase: Phase) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok"),
        "/readyz" if phase == Phase::Serving => text(StatusCode::OK, "ok"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
        "/metrics" => match metrics.text() {
            Ok(metrics) => {
                let mut response = Response::new(Full::from(metrics));
                response.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static(prometheus::TEXT_FORMAT),
                );
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "not found; there are /healthz, /readyz and /metrics",
        ),
    }
}
