// SPDX-License-Identifier: Apache-2.0

//! HTTP/2 below gRPC: one connection with its limits, and the step from an HTTP request to tonic. What a
//! service answers is `agents`' and `frontend::grpc`'s business.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status, async_trait};

use crate::wire::{Encode, GRPC, Inbound, Outbound};

/// How long a peer may take from the connection to its first request, as in upstream.
const FIRST_REQUEST: Duration = Duration::from_mins(2);

/// How long a peer may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of one HTTP/2 frame that a peer may send.
const FRAME: u32 = 128 * 1024;

/// Bytes of the header fields of one request.
const HEADERS: u32 = 64 * 1024;

/// Streams of one connection. Upstream does not limit them.
const STREAMS: u32 = 65_536;

/// The settings that differ between connections of agents and of clients.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// After how long without a byte the peer is pinged.
    pub keepalive: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// Bytes that a peer may send on a stream, and on a connection, before any of them is taken.
    pub windows: (u32, u32),
    /// Bytes that wait in the kernel's stead for the peer's window.
    pub send_buffer: usize,
}

impl Settings {
    /// For agents: one stream carries everything, and it is always read.
    #[must_use]
    pub const fn link(keepalive: Duration) -> Self {
        Self {
            keepalive,
            ping_timeout: PING_TIMEOUT,
            windows: (8 << 20, 16 << 20),
            send_buffer: 1 << 20,
        }
    }

    /// For clients: a stream is a tunnel, and waits where its agent does not take its bytes.
    #[must_use]
    pub const fn tunnels(keepalive: Duration) -> Self {
        Self {
            keepalive,
            ping_timeout: PING_TIMEOUT,
            windows: (512 << 10, 32 << 20),
            send_buffer: 256 << 10,
        }
    }
}

/// Answers gRPC requests.
#[async_trait]
pub trait Answer: Send + Sync + 'static {
    /// Answers one.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body>;
}

/// Serves a connection until it ends. When `leave` is ready, the peer is asked to finish; open
/// streams go on.
///
/// # Errors
/// Why it ended early, for the log.
pub async fn serve<I, A>(
    io: I,
    settings: Settings,
    service: Arc<A>,
    leave: impl Future<Output = ()>,
) -> Result<(), String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Answer,
{
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&has_asked);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let (stream, connection) = settings.windows;
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.keepalive)
        .keep_alive_timeout(settings.ping_timeout)
        .initial_stream_window_size(stream)
        .initial_connection_window_size(connection)
        .max_send_buf_size(settings.send_buffer)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let mut leave = std::pin::pin!(leave);
    let mut first = std::pin::pin!(sleep(FIRST_REQUEST));
    let (mut is_leaving, mut is_new) = (false, true);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
            () = leave.as_mut(), if !is_leaving => {
                is_leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = first.as_mut(), if is_new => {
                is_new = false;
                if !has_asked.load(Ordering::Relaxed) {
                    return Err(format!("no request within {} s", FIRST_REQUEST.as_secs()));
                }
            }
        }
    }
}

/// Takes one request as a stream of packets and answers with another, or with a status.
pub async fn streaming<S, F, R, E>(
    encode: E,
    request: Request<Incoming>,
    mut handler: S,
) -> Response<Body>
where
    S: FnMut(tonic::Request<Inbound>) -> F + Send,
    F: Future<Output = Result<tonic::Response<R>, Status>> + Send,
    R: Stream<Item = Result<E::Message, Status>> + Send + Unpin + 'static,
    E: Encode + Send + Unpin + 'static,
{
    let (head, body) = request.into_parts();
    let metadata = MetadataMap::from_headers(head.headers);
    if let Some(encoding) = metadata
        .get("grpc-encoding")
        .filter(|name| name.as_bytes() != b"identity")
    {
        let text = format!("messages are compressed by {encoding:?}, which is not supported");
        return Status::unimplemented(text).into_http();
    }
    let request =
        tonic::Request::from_parts(metadata, Extensions::new(), Inbound::of_request(body));
    match handler(request).await {
        Ok(answer) => {
            let (metadata, messages, _) = answer.into_parts();
            let body = Body::new(Outbound::response(messages, encode));
            let mut response = Response::new(body);
            *response.headers_mut() = metadata.into_headers();
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
            response
        }
        Err(status) => status.into_http(),
    }
}

/// The answer to a path that has no service.
#[must_use]
pub fn unknown(path: &str) -> Response<Body> {
    Status::unimplemented(format!("unknown service or method {path}")).into_http()
}
