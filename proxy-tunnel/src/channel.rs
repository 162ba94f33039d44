// SPDX-License-Identifier: Apache-2.0

//! The client side of gRPC: an agent's HTTP/2 connection over a byte stream that the caller has opened, and its stream
//! of packets. `packets` also serves other connections: those of the client library in `client::streams`.

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

/// How long a peer may take to acknowledge a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The minimum interval of an agent's pings, whatever its flag says. Upstream's server closes the connection of an
/// agent that pings more often than every 30 s, and with it all tunnels. The margin allows for clocks and delays.
pub const LEAST_KEEPALIVE: Duration = Duration::from_millis(30_500);

/// The maximum size of an HTTP/2 frame that a peer may send, in bytes.
pub(crate) const FRAME: u32 = 128 * 1024;

/// The settings of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The time without received bytes after which the peer is pinged.
    pub keepalive: Duration,
    /// How long the peer may take to acknowledge a ping.
    pub ping_timeout: Duration,
    /// The flow-control windows of a stream and of the connection, in bytes: how much the peer may send before the
    /// receiver has read any of it.
    pub windows: (u32, u32),
}

impl Settings {
    /// Returns the settings for an agent's connection. Its stream carries all tunnels of the agent, and the agent
    /// always reads it. The server is pinged after `keepalive`, or after [`LEAST_KEEPALIVE`] if that is longer.
    #[must_use]
    pub fn link(keepalive: Duration) -> Self {
        Self {
            keepalive: keepalive.max(LEAST_KEEPALIVE),
            ping_timeout: PING_TIMEOUT,
            windows: (8 << 20, 16 << 20),
        }
    }
}

/// An HTTP/2 connection. Clones share it; it ends when the last clone and all streams have been dropped.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: SendRequest<Body>,
    origin: Uri,
}

impl Channel {
    /// Starts HTTP/2 on a byte stream. `authority` is the peer's name in requests.
    ///
    /// # Errors
    /// Returns an error if the peer does not speak HTTP/2.
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

    /// Opens a stream that sends these messages, up to the first error. Returns when the peer's headers have arrived.
    /// Upstream's server sends them with its first packet, so a message that it answers must be available before.
    ///
    /// # Errors
    /// Returns an error if the peer refuses the stream, or if the connection has ended.
    ///
    /// # Panics
    /// Never panics: paths are constants.
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

/// Returns the URI for requests to the peer with this name.
pub(crate) fn origin(authority: &str) -> Uri {
    Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/")
        .build()
        .unwrap_or_else(|_| Uri::from_static("http://localhost/"))
}

/// Opens a stream of packets with one request to `service`; see [`Channel::stream`].
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

/// hyper's request sender as a tower service.
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

    /// Checks a defect of upstream's pair: with `--keepalive-time=10s` the agent is disconnected every 40 s.
    #[test]
    fn an_agent_pings_no_more_often_than_servers_allow() {
        let interval = |seconds| Settings::link(Duration::from_secs(seconds)).keepalive;
        for seconds in [1, 10, 30] {
            assert!(interval(seconds) > Duration::from_secs(30), "{seconds}");
        }
        assert_eq!(interval(60), Duration::from_mins(1));
    }
}
