// SPDX-License-Identifier: Apache-2.0

//! HTTP/2 as tunnels need it: a stream whose tunnel has been dropped is reset, also while its bytes wait for the server's
//! window. With hyper's client only the server could end such a stream: once there is a response, the task that sends the body
//! learns nothing of its client, and keeps the stream for as long as it waits (hyper 1.12, `PipeMap` in `proto/h2/client.rs`).

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

/// Bytes that the server may send on a stream, and on the connection, before any of them is taken.
const WINDOWS: (u32, u32) = (1 << 20, 32 << 20);

/// Streams that are opened before the server says how many it takes, as hyper does it.
const STREAMS: usize = 100;

/// Bytes of one stream that wait for the socket.
const BUFFER: usize = 1 << 20;

/// How long the bytes that a dropped tunnel has written wait for the server's window at a time. A server that reads
/// answers sooner, however far away it is.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// A connection to a server. Its clones share it; it ends when the last one and all streams have been dropped.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    sender: SendRequest<Bytes>,
    origin: Uri,
}

/// Held for as long as a stream is used. Without it the stream waits no longer than [`GRACE`] for the server's window, and
/// is then reset.
#[derive(Debug)]
pub(super) struct Hold {
    _held: oneshot::Receiver<Infallible>,
}

/// A stream as its tunnel needs it.
pub(super) struct Opened {
    pub headers: MetadataMap,
    pub inbound: Inbound,
    pub hold: Hold,
}

impl Streams {
    /// Begins HTTP/2. `authority` is the server's name in requests.
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

    /// Opens a stream that sends these messages. It returns with the server's headers.
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

/// Sends the one request of a stream, as tonic wants it.
struct Opening {
    sender: SendRequest<Bytes>,
    /// Closed when the [`Hold`] has been dropped.
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
            // Messages that wait already go with the request's head.
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

/// Sends a body to its end, or until the stream or its use ends.
async fn send(
    mut body: Body,
    mut stream: SendStream<Bytes>,
    mut alive: Option<oneshot::Sender<Infallible>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            // The server has ended the stream, or the connection has ended: the answers' side says why.
            _ = poll_fn(|context| stream.poll_reset(context)) => return,
            frame = body.frame() => frame,
        };
        let data = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return stream.send_reset(Reason::CANCEL),
            // It fails where the stream has ended.
            None => return drop(stream.send_data(Bytes::new(), true)),
        };
        if send_data(&mut stream, data, alive.as_mut()).await.is_none() {
            return;
        }
    }
}

/// Sends as much as the server has room for, until everything is sent. None: the stream has ended.
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

/// Waits until the stream is not used any more, and its grace has passed.
async fn given_up(alive: Option<&mut oneshot::Sender<Infallible>>) {
    if let Some(alive) = alive {
        alive.closed().await;
    }
    sleep(GRACE).await;
}

/// What the server sends.
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
                    // It fails where the stream has ended: then there is no window.
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
