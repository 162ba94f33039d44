// SPDX-License-Identifier: Apache-2.0

//! The client's side of gRPC: an agent's HTTP/2 connection over a stream of bytes that the caller has opened, and its stream of
//! packets. `packets` is for other connections too: those of the client library are `client::streams`.

use std::error::Error;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::header::{CONTENT_TYPE, TE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use hyper::body::{self, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tracing::debug;

use crate::wire::{Encode, GRPC, Inbound, Outbound};

/// How long a peer may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// An agent's pings are at least so far apart, whatever its flag says: upstream's server ends the connection of an
/// agent that pings more often than every 30 s, and all tunnels on it. The difference is for clocks and delays.
pub const LEAST_KEEPALIVE: Duration = Duration::from_millis(30_500);

/// Bytes of one HTTP/2 frame that a peer may send.
pub(crate) const FRAME: u32 = 128 * 1024;

/// The purpose of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// After how long without a byte the peer is pinged.
    pub keepalive: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// Bytes that the peer may send on a stream, and on the connection, before any of them is taken.
    pub windows: (u32, u32),
}

impl Settings {
    /// For an agent's stream, which carries all its tunnels and is always read. A server is pinged after `keepalive`, or
    /// [`LEAST_KEEPALIVE`] if that is longer.
    #[must_use]
    pub fn link(keepalive: Duration) -> Self {
        Self {
            keepalive: keepalive.max(LEAST_KEEPALIVE),
            ping_timeout: PING_TIMEOUT,
            windows: (8 << 20, 16 << 20),
        }
    }
}

/// A connection. Its clones share it; it ends when the last one and all streams have been dropped.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    origin: Uri,
}

impl Channel {
    /// Begins HTTP/2. `authority` is the peer's name in requests.
    ///
    /// # Errors
    /// The peer does not speak it.
    pub async fn open<I>(io: I, authority: &str, settings: Settings) -> Result<Self, hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, connection) = settings.windows;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(settings.keepalive))
            .keep_alive_timeout(settings.ping_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(stream)
            .initial_connection_window_size(connection)
            .max_frame_size(FRAME)
            .handshake(TokioIo::new(io))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("a connection has ended: {error}");
            }
        });
        let origin = origin(authority);
        Ok(Self { sender, origin })
    }

    /// Opens a stream that sends these messages, up to the first error. It returns with the peer's headers: a
    /// server of upstream sends them with its first packet, so whatever it answers to must be there before.
    ///
    /// # Errors
    /// The peer refuses it, or the connection has ended.
    ///
    /// # Panics
    /// Never: paths are constants.
    pub async fn stream<E>(
        &self,
        path: &'static str,
        encode: E,
        metadata: MetadataMap,
        messages: impl Stream<Item = Result<E::Message, Status>> + Send + Unpin + 'static,
    ) -> Result<(MetadataMap, Inbound), Status>
    where
        E: Encode + Send + Unpin + 'static,
    {
        let service = Service(self.sender.clone());
        packets(
            service,
            self.origin.clone(),
            path,
            encode,
            metadata,
            messages,
        )
        .await
    }
}

/// The authority of requests to the peer of this name.
pub(crate) fn origin(authority: &str) -> Uri {
    Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/")
        .build()
        .unwrap_or_else(|_| Uri::from_static("http://localhost/"))
}

/// Opens a stream of packets by one request to this service; see [`Channel::stream`].
pub(crate) async fn packets<S, B, E>(
    mut service: S,
    origin: Uri,
    path: &'static str,
    encode: E,
    metadata: MetadataMap,
    messages: impl Stream<Item = Result<E::Message, Status>> + Send + Unpin + 'static,
) -> Result<(MetadataMap, Inbound), Status>
where
    S: tower_service::Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<Box<dyn Error + Send + Sync>> + Display,
    B: body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    E: Encode + Send + Unpin + 'static,
{
    poll_fn(|context| service.poll_ready(context))
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(Body::new(Outbound::request(messages, encode)));
    let mut parts = origin.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(path));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|error| Status::internal(error.to_string()))?;
    let mut headers = metadata.into_headers();
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    *request.headers_mut() = headers;
    let sent = service.call(request).await;
    let (head, body) = sent
        .map_err(|error| Status::from_error(error.into()))?
        .into_parts();
    let inbound = Inbound::of_response(body, head.status, &head.headers)?;
    Ok((MetadataMap::from_headers(head.headers), inbound))
}

/// hyper's sender as a service.
struct Service(SendRequest<Body>);

impl tower_service::Service<Request<Body>> for Service {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send + 'static>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Defect of upstream's pair: `--keepalive-time=10s` has the agent cut off every 40 s.
    #[test]
    fn an_agent_pings_no_more_often_than_servers_allow() {
        let interval = |seconds| Settings::link(Duration::from_secs(seconds)).keepalive;
        for seconds in [1, 10, 30] {
            assert!(interval(seconds) > Duration::from_secs(30), "{seconds}");
        }
        assert_eq!(interval(60), Duration::from_mins(1));
    }
}
