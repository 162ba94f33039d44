// SPDX-License-Identifier: Apache-2.0

//! HTTP/2 streams with the behaviour that tunnels need: when a tunnel is dropped, its stream is reset, even while its
//! bytes wait for the server's window. With hyper's client only the server could end such a stream. Once the response
//! has arrived, hyper's task that sends the body does not notice that the client dropped the stream, and keeps the
//! stream for as long as it waits (hyper 1.12, `PipeMap` in `proto/h2/client.rs`).

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream};
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{self, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tracing::debug;

use crate::channel::{FRAME, origin, packets};
use crate::wire::{Inbound, Message, PROXY_PATH, TUNNEL};

/// The windows of a stream and of the connection: the number of bytes that the server may send before the client
/// consumes any of them.
const WINDOWS: (u32, u32) = (1 << 20, 32 << 20);

/// The number of streams that may be opened before the server announces its limit. hyper uses the same number.
const STREAMS: usize = 100;

/// The number of bytes of one stream that may wait for the socket.
const BUFFER: usize = 1 << 20;

/// The time for which bytes written by a dropped tunnel wait for the server's window. It restarts with each window
/// update. A server that reads responds sooner, even over a long distance.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// A connection to a server, shared by its clones. It is closed when the last clone and all streams have been dropped.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    sender: SendRequest<Bytes>,
    origin: Uri,
}

/// A guard that the user of a stream holds. Without it the stream waits at most [`GRACE`] for the server's window and
/// is then reset.
#[derive(Debug)]
pub(super) struct Hold {
    _held: oneshot::Receiver<Infallible>,
}

/// The parts of an open stream that a tunnel needs.
pub(super) struct Opened {
    pub headers: MetadataMap,
    pub inbound: Inbound,
    pub hold: Hold,
}

impl Streams {
    /// Starts HTTP/2 on a byte stream. `authority` is the server's name in requests.
    pub async fn begin<I>(io: I, authority: &str) -> Result<Self, h2::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = Builder::new()
            .initial_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_frame_size(FRAME)
            .max_send_buffer_size(BUFFER)
            .initial_max_send_streams(STREAMS)
            .enable_push(false)
            .handshake(io)
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("a connection has ended: {error}");
            }
        });
        Ok(Self {
            sender,
            origin: origin(authority),
        })
    }

    /// Opens a stream that sends these messages. Returns when the server's headers have arrived.
    pub async fn open(
        &self,
        metadata: MetadataMap,
        messages: impl Stream<Item = Result<Message, Status>> + Send + Unpin + 'static,
    ) -> Result<Opened, Status> {
        let (alive, receiver) = oneshot::channel();
        let hold = Hold { _held: receiver };
        let service = Opening {
            sender: self.sender.clone(),
            alive: Some(alive),
        };
        let origin = self.origin.clone();
        let (headers, inbound) =
            packets(service, origin, PROXY_PATH, TUNNEL, metadata, messages).await?;
        Ok(Opened {
            headers,
            inbound,
            hold,
        })
    }
}

/// Sends the single request of a stream, in the form of a service for tonic.
struct Opening {
    sender: SendRequest<Bytes>,
    /// The sender is closed when the [`Hold`] is dropped.
    alive: Option<oneshot::Sender<Infallible>>,
}

impl tower_service::Service<Request<Body>> for Opening {
    type Response = Response<Answers>;
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, h2::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let sent = self.sender.send_request(request, false);
        let alive = self.alive.take();
        Box::pin(async move {
            let (response, stream) = sent?;
            let mut sending = Box::pin(send(body, stream, alive));
            // Messages that are already queued are sent together with the request's head.
            if sending.as_mut().now_or_never().is_none() {
                tokio::spawn(sending);
            }
            Ok(response.await?.map(|inbound| Answers {
                inbound,
                has_ended: false,
            }))
        })
    }
}

/// Sends a body until it ends, the stream ends, or the stream's user is gone.
async fn send(
    mut body: Body,
    mut stream: SendStream<Bytes>,
    mut alive: Option<oneshot::Sender<Infallible>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            // The server has reset the stream, or the connection has ended. The receiving side reports the reason.
            _ = poll_fn(|context| stream.poll_reset(context)) => return,
            frame = body.frame() => frame,
        };
        let data = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return stream.send_reset(Reason::CANCEL),
            // This fails only if the stream has already ended.
            None => return drop(stream.send_data(Bytes::new(), true)),
        };
        if send_data(&mut stream, data, alive.as_mut()).await.is_none() {
            return;
        }
    }
}

/// Sends as much as the server's window permits, until all bytes are sent. Returns `None` if the stream has ended.
async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    mut alive: Option<&mut oneshot::Sender<Infallible>>,
) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        if stream.capacity() == 0 {
            let mut given_up = pin!(given_up(alive.as_deref_mut()));
            let has_room = tokio::select! {
                biased;
                room = poll_fn(|context| stream.poll_capacity(context)) => matches!(room, Some(Ok(_))),
                () = &mut given_up => {
                    stream.send_reset(Reason::CANCEL);
                    false
                }
            };
            if !has_room {
                return None;
            }
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        if !piece.is_empty() {
            stream.send_data(piece, false).ok()?;
        }
    }
    Some(())
}

/// Waits until the stream's user is gone and the grace period has passed.
async fn given_up(alive: Option<&mut oneshot::Sender<Infallible>>) {
    if let Some(alive) = alive {
        alive.closed().await;
    }
    sleep(GRACE).await;
}

/// The body of the server's response.
#[derive(Debug)]
struct Answers {
    inbound: RecvStream,
    has_ended: bool,
}

impl body::Body for Answers {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.has_ended {
            match ready!(self.inbound.poll_data(context)) {
                Some(Ok(data)) => {
                    // This fails only if the stream has ended, and then there is no window to release.
                    let _ = self.inbound.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.has_ended = true,
            }
        }
        let trailers = ready!(self.inbound.poll_trailers(context));
        Poll::Ready(match trailers {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inbound.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
