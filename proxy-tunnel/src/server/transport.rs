// SPDX-License-Identifier: Apache-2.0

//! HTTP/2 below gRPC: one connection with its limits, and the conversion of an HTTP request to a tonic request.
//! `agents` and `frontend::grpc` produce the answers.

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

/// The time limit from the connection to the peer's first request, as in upstream.
const FIRST_REQUEST: Duration = Duration::from_mins(2);

/// How long a peer may take to acknowledge a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The maximum size of an HTTP/2 frame that a peer may send, in bytes.
const FRAME: u32 = 128 * 1024;

/// The maximum size of the header fields of a request, in bytes.
const HEADERS: u32 = 64 * 1024;

/// The maximum number of concurrent streams on a connection. Upstream does not limit them.
const STREAMS: u32 = 65_536;

/// The settings that differ between connections of agents and of clients.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The time without received bytes after which the peer is pinged.
    pub keepalive: Duration,
    /// How long the peer may take to acknowledge a ping.
    pub ping_timeout: Duration,
    /// The flow-control windows of a stream and of the connection, in bytes: how much a peer may send before the
    /// receiver has read any of it.
    pub windows: (u32, u32),
    /// The size of the send buffer of a stream, in bytes. It holds data until the peer's window has room.
    pub send_buffer: usize,
}

impl Settings {
    /// Returns the settings for agents: one stream carries all tunnels, and the server always reads it.
    #[must_use]
    pub const fn link(keepalive: Duration) -> Self {
        Self {
            keepalive,
            ping_timeout: PING_TIMEOUT,
            windows: (8 << 20, 16 << 20),
            send_buffer: 1 << 20,
        }
    }

    /// Returns the settings for clients: a stream is one tunnel, and waits while its agent does not take the bytes.
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

/// A service that answers gRPC requests.
#[async_trait]
pub trait Answer: Send + Sync + 'static {
    /// Answers one request.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body>;
}

/// Serves a connection until it ends. When `leave` completes, the peer is asked to finish; open streams continue.
///
/// # Errors
/// Returns the reason, for the log, if the connection failed or if the peer sent no request in time.
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

/// Handles a request whose body is a stream of packets. The response is a stream of packets too, or a gRPC status.
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

/// Returns the response to a path without a service.
#[must_use]
pub fn unknown(path: &str) -> Response<Body> {
    Status::unimplemented(format!("unknown service or method {path}")).into_http()
}
