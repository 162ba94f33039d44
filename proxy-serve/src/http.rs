// SPDX-License-Identifier: Apache-2.0

//! The endpoint for health, readiness, metrics and administration: a small HTTP/1 server on a thread of its
//! own, so that neither the program's work nor its clients wait for the other. Which paths there are is the
//! program's business: it is a [`Handler`].
//!
//! A connection has one request, [`TIME_LIMIT`] for it and its answer, and [`MAX_REQUEST`] bytes for its head;
//! bodies are not read. Of more than [`MAX_CONNECTIONS`] connections the oldest is ended: a slow client keeps
//! no other one out.

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

/// Connections at the same time. A further one ends the oldest.
pub const MAX_CONNECTIONS: usize = 32;
/// The time that a connection has for its request and the answer.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head; the least that hyper takes.
pub const MAX_REQUEST: usize = 8192;

/// First delay after an address could not be bound; it doubles up to the longest.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// The time after which the same failure is reported again.
const REMINDER: Duration = Duration::from_mins(10);
/// Address space only: pages that are not touched take no memory.
const STACK: usize = 1 << 20;

/// The content type of text.
const TEXT: &str = "text/plain; charset=utf-8";

/// An answer, with its whole body.
pub type Reply = Response<Full<Bytes>>;

/// Answers requests. It lives on the endpoint's thread; its futures need not be `Send`.
pub trait Handler: Send + 'static {
    /// The answer to `GET` or `HEAD` of a path with its query. The server itself refuses other methods, and
    /// leaves the body of an answer to `HEAD` away.
    fn get(&self, path: &str, query: Option<&str>) -> impl Future<Output = Reply>;

    /// Where a path has moved to, as the value of `Location`; then [`Self::get`] is not asked. `host` is what
    /// the client calls this server, without a port.
    fn moved(&self, _host: &str, _path: &str, _query: Option<&str>) -> Option<String> {
        None
    }
}

/// An answer of this content type.
#[must_use]
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Texts may hold what peers have said: browsers must not take them for anything else.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A text for people. It ends where `body` ends: give a newline where there should be one.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, TEXT, body)
}

/// Metrics in Prometheus' text format, or the error that kept them from being written.
#[must_use]
pub fn metrics<E: std::fmt::Display>(written: Result<String, E>) -> Reply {
    match written {
        Ok(body) => reply(StatusCode::OK, prometheus::TEXT_FORMAT, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// All metrics of a registry.
#[must_use]
pub fn registry(registry: &prometheus::Registry) -> Reply {
    metrics(prometheus::TextEncoder::new().encode_to_string(&registry.gather()))
}

/// Serves on `listener` until `stop` ends; then open connections are ended too.
///
/// # Errors
/// There can be no further thread.
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

/// Serves on the first of `candidates` that can be bound, for as long as the process lives. As long as none can
/// be, binding is tried again and again; `report` gets the first candidate and the error, not more often than
/// every ten minutes while it is the same one.
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
    // Made on the thread: futures of handlers stay there.
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

/// Tries to bind until it works.
async fn bind(candidates: &[SocketAddr], report: impl Fn(&io::Error)) -> TcpListener {
    let mut delay = RETRY;
    let mut reported: Option<(String, Instant)> = None;
    loop {
        // Of a list tokio takes the first that works.
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

/// One connection, to its end.
async fn connection(stream: TcpStream, handler: Rc<impl Handler>) {
    let service = service_fn(|request| answer(request, &*handler));
    let connection = http1::Builder::new()
        .keep_alive(false)
        // A client may close its sending side and still wait for the answer.
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    // Malformed requests and clients that leave early are not logged.
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
