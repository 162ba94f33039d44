// SPDX-License-Identifier: Apache-2.0

//! The endpoint for health, readiness, metrics and administration: a small HTTP/1 server on its own thread, so that the
//! program's work and the endpoint's clients do not delay each other. The program defines the paths, by implementing
//! [`Handler`].
//!
//! A connection carries one request. It has [`TIME_LIMIT`] for the request and the response, and [`MAX_REQUEST`] bytes
//! for the request's head; bodies are not read. If there are more than [`MAX_CONNECTIONS`] connections, the oldest is
//! closed, so slow clients cannot block others.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
pub use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::listen::accept;

/// The maximum number of simultaneous connections. A further one closes the oldest.
pub const MAX_CONNECTIONS: usize = 32;
/// The time limit for a connection's request and response.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The maximum length of a request's head, in bytes. It is the smallest value that hyper permits.
pub const MAX_REQUEST: usize = 8192;

/// The delay after the first failed attempt to bind an address. It doubles with each attempt, up to the longest delay.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// The time after which the same failure is logged again.
const REMINDER: Duration = Duration::from_mins(10);
/// The stack size of the thread. Pages that are not touched occupy only address space.
const STACK: usize = 1 << 20;

/// The content type of plain text.
const TEXT: &str = "text/plain; charset=utf-8";

/// A response with its whole body.
pub type Reply = Response<Full<Bytes>>;

/// Responds to requests. The handler lives on the endpoint's thread, so its futures need not be `Send`.
pub trait Handler: Send + 'static {
    /// Returns the response to `GET` or `HEAD` of a path with its query. The server itself rejects other methods, and
    /// omits the body of a response to `HEAD`.
    fn get(&self, path: &str, query: Option<&str>) -> impl Future<Output = Reply>;

    /// Returns the new location of a path, as the value of `Location`; in that case [`Self::get`] is not called. `host`
    /// is the name by which the client addresses this server, without a port.
    fn moved(&self, _host: &str, _path: &str, _query: Option<&str>) -> Option<String> {
        None
    }
}

/// Creates a response with this content type.
#[must_use]
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A text may contain strings from peers, so browsers must not interpret it as another type.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Creates a response with plain text. No newline is appended to `body`.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, TEXT, body)
}

/// Creates a response with metrics in Prometheus' text format, or with the error if they could not be encoded.
#[must_use]
pub fn metrics<E: std::fmt::Display>(written: Result<String, E>) -> Reply {
    match written {
        Ok(body) => reply(StatusCode::OK, prometheus::TEXT_FORMAT, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Creates a response with all metrics of a registry.
#[must_use]
pub fn registry(registry: &prometheus::Registry) -> Reply {
    metrics(prometheus::TextEncoder::new().encode_to_string(&registry.gather()))
}

/// Serves on `listener` until `stop` completes. Open connections are then closed as well.
///
/// # Errors
/// Returns an error if no thread can be started.
pub fn spawn(
    name: &'static str,
    listener: StdListener,
    handler: impl Handler,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    on_thread(
        name,
        async move || TcpListener::from_std(listener),
        handler,
        stop,
    )
}

/// Serves on the first of `candidates` that can be bound, for as long as the process runs. While none can be bound, the
/// attempts are repeated. `report` is called with the first candidate and the error, at most every ten minutes for the
/// same error.
pub fn spawn_when_bound(
    name: &'static str,
    candidates: Vec<SocketAddr>,
    handler: impl Handler,
    report: fn(&str, &io::Error),
) {
    let first = candidates.first().map(ToString::to_string);
    let first = first.unwrap_or_default();
    let bind = {
        let first = first.clone();
        async move || Ok(bind(&candidates, |error| report(&first, error)).await)
    };
    if let Err(error) = on_thread(name, bind, handler, std::future::pending()) {
        report(&first, &error);
    }
}

fn on_thread(
    name: &'static str,
    bind: impl AsyncFnOnce() -> io::Result<TcpListener> + Send + 'static,
    handler: impl Handler,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // The future is created on the thread, because handlers' futures must not leave it.
    let work = async move || match bind().await {
        Ok(listener) => {
            let mut stop = pin!(stop);
            tokio::select! {
                () = &mut stop => {}
                () = serve(listener, Rc::new(handler)) => {}
            }
        }
        Err(error) => tracing::error!("the endpoint {name} cannot serve: {error}"),
    };
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || LocalSet::new().block_on(&runtime, work()))
        .map(drop)
}

async fn serve(listener: TcpListener, handler: Rc<impl Handler>) {
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            (stream, _) = accept::next(&listener) => stream,
            Some(_) = connections.join_next() => continue,
        };
        oldest.retain(|connection| !connection.is_finished());
        if oldest.len() >= MAX_CONNECTIONS
            && let Some(connection) = oldest.pop_front()
        {
            connection.abort();
        }
        oldest.push_back(connections.spawn_local(connection(stream, Rc::clone(&handler))));
    }
}

/// Repeats the attempts to bind until one succeeds.
async fn bind(candidates: &[SocketAddr], report: impl Fn(&io::Error)) -> TcpListener {
    let mut delay = RETRY;
    let mut reported: Option<(String, Instant)> = None;
    loop {
        // From a list, tokio binds the first address that works.
        let error = match TcpListener::bind(candidates).await {
            Ok(listener) => {
                match listener.local_addr() {
                    Ok(address) => info!("serving metrics and health on {address}"),
                    Err(error) => debug!("no address of the listener is known: {error}"),
                }
                return listener;
            }
            Err(error) => error,
        };
        let is_recent =
            |(text, at): &(String, Instant)| *text == error.to_string() && at.elapsed() < REMINDER;
        if !reported.as_ref().is_some_and(is_recent) {
            report(&error);
            reported = Some((error.to_string(), Instant::now()));
        }
        sleep(delay).await;
        delay = (2 * delay).min(LONGEST_RETRY);
    }
}

/// Serves one connection until it ends.
async fn connection(stream: TcpStream, handler: Rc<impl Handler>) {
    let service = service_fn(|request| answer(request, &*handler));
    let connection = http1::Builder::new()
        .keep_alive(false)
        // A client may close its sending side and still wait for the answer.
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    // Malformed requests and early disconnects of clients are not logged.
    let _ = timeout(TIME_LIMIT, connection).await;
}

async fn answer(request: Request<Incoming>, handler: &impl Handler) -> Result<Reply, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allowed);
        return Ok(refusal);
    }
    let uri = request.uri();
    let host = request.headers().get(HOST).map(HeaderValue::to_str);
    let host = without_port(host.and_then(Result::ok).unwrap_or_default());
    if let Some(location) = handler.moved(host, uri.path(), uri.query())
        && let Ok(location) = HeaderValue::try_from(location)
    {
        let mut reply = text(StatusCode::MOVED_PERMANENTLY, "");
        reply.headers_mut().insert(LOCATION, location);
        return Ok(reply);
    }
    Ok(handler.get(uri.path(), uri.query()).await)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    }
}

#[cfg(test)]
mod tests;
