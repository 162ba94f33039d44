// SPDX-License-Identifier: Apache-2.0

//! HTTP: accepts the requests that are reviews and rejects the others. `review` computes the answers to reviews.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use prometheus::IntGauge;
use proxy_serve::budget::{Budget, Share};
use tokio::time::timeout;
use tracing::debug;

use crate::limits;
use crate::metrics::{Metrics, Outcome};
use crate::review::{self, EnvEntry};

/// The served paths: that of Gardener's webhook, and Gardener Resource Manager's.
pub const PATHS: [&str; 2] = [
    "/webhook/pod-apiserver-env",
    "/webhooks/kubernetes-service-host",
];

/// Initial capacity in bytes for a body that arrives in several pieces.
const FIRST_ROOM: usize = 64 << 10;

/// Answers requests.
#[derive(Debug)]
pub struct Service {
    entry: EnvEntry,
    requests: Budget,
    bodies: Budget,
    metrics: Arc<Metrics>,
}

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rejection {
    Path,
    Method,
    ContentType,
    TooLarge,
    Slow,
    Broken,
    Overload,
}

impl Rejection {
    const fn status(self) -> StatusCode {
        match self {
            Self::Path => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::Overload => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn outcome(self) -> Outcome {
        match self {
            Self::Path => Outcome::NotFound,
            Self::Method | Self::ContentType => Outcome::Unacceptable,
            Self::TooLarge => Outcome::TooLarge,
            Self::Slow | Self::Broken => Outcome::Incomplete,
            Self::Overload => Outcome::Overload,
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = text(self.status(), &self.to_string());
        let header = match self {
            Self::Method => (ALLOW, "POST"),
            Self::Overload => (RETRY_AFTER, "1"),
            _ => return response,
        };
        response
            .headers_mut()
            .insert(header.0, HeaderValue::from_static(header.1));
        response
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => write!(f, "not found; reviews are served on {}", PATHS[0]),
            Self::Method => f.write_str("only POST is allowed on this path"),
            Self::ContentType => f.write_str("the content type must be application/json"),
            Self::TooLarge => write!(f, "the body is longer than {} bytes", limits::BODY),
            Self::Slow => write!(
                f,
                "the body did not arrive within {} s",
                limits::RECEIVE.as_secs()
            ),
            Self::Broken => f.write_str("the body could not be received"),
            Self::Overload => f.write_str("too many concurrent requests; try again"),
        }
    }
}

/// A short answer in plain text.
pub fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

impl Service {
    /// A service that adds `entry` to containers, for at most `max_requests` concurrent requests.
    #[must_use]
    pub fn new(entry: EnvEntry, max_requests: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            entry,
            requests: Budget::new(max_requests),
            bodies: Budget::new(limits::BODIES),
            metrics,
        }
    }

    /// Answers a request.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let _in_flight = InFlight::new(&self.metrics.in_flight);
        match self.review(request).await {
            Ok(response) => response,
            Err(rejection) => {
                debug!("{} {rejection}", rejection.status().as_u16());
                self.metrics.ended(rejection.outcome());
                rejection.response()
            }
        }
    }

    async fn review(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Rejection> {
        let start = Instant::now();
        // The API server adds a query with its timeout.
        if !PATHS.contains(&request.uri().path()) {
            return Err(Rejection::Path);
        }
        if request.method() != Method::POST {
            return Err(Rejection::Method);
        }
        if !is_json(request.headers()) {
            return Err(Rejection::ContentType);
        }
        let mut slot = self.requests.share();
        if !slot.grow(1) {
            return Err(Rejection::Overload);
        }
        let mut room = self.bodies.share();
        let body = timeout(limits::RECEIVE, collect(request.into_body(), &mut room))
            .await
            .unwrap_or(Err(Rejection::Slow))?;
        let answer = review::answer(&body, &self.entry);
        let took = start.elapsed();
        debug!("{:?}, {} bytes, {took:?}", answer.verdict, body.len());
        self.metrics.answered(answer.verdict, took);
        let mut response = Response::new(Full::from(answer.body));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// Counts a request until it is dropped, which may be before it is answered.
struct InFlight<'a>(&'a IntGauge);

impl<'a> InFlight<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Whether the content type is JSON, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

/// Receives a body. Memory is allocated for received bytes, not for the announced length.
async fn collect(mut body: Incoming, room: &mut Share<'_>) -> Result<Bytes, Rejection> {
    let promised = body.size_hint();
    if promised.lower() > limits::BODY as u64 {
        return Err(Rejection::TooLarge);
    }
    let first = match next(&mut body, room, 0).await? {
        // Most reviews arrive in one piece and need no copy.
        Some(first) if body.is_end_stream() => return Ok(first),
        Some(first) => first,
        None => return Ok(Bytes::new()),
    };
    let promised = usize::try_from(promised.lower()).unwrap_or(limits::BODY);
    let mut whole = Vec::with_capacity(promised.min(FIRST_ROOM).max(first.len()));
    whole.extend_from_slice(&first);
    drop(first);
    while let Some(piece) = next(&mut body, room, whole.len()).await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

/// The next piece of a body of which `have` bytes were received.
async fn next(
    body: &mut Incoming,
    room: &mut Share<'_>,
    have: usize,
) -> Result<Option<Bytes>, Rejection> {
    while let Some(frame) = body.frame().await {
        // Trailers are ignored.
        let Ok(piece) = frame.map_err(|_| Rejection::Broken)?.into_data() else {
            continue;
        };
        if have + piece.len() > limits::BODY {
            return Err(Rejection::TooLarge);
        }
        if !room.grow(piece.len()) {
            return Err(Rejection::Overload);
        }
        return Ok(Some(piece));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        let is_json = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(is_json("application/json"));
        assert!(is_json("Application/JSON; charset=utf-8"));
        assert!(!is_json("application/json-patch+json"));
        assert!(!is_json("text/plain"));
        assert!(!is_json(""));
        assert!(!super::is_json(&HeaderMap::new()));
    }
}
