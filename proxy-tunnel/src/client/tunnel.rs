// SPDX-License-Identifier: Apache-2.0

//! A connection through a tunnel, as bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use futures_util::{Stream as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::endpoint::Io;
use super::streams::Hold;
use crate::flow::{Lane, Outbox};
use crate::rewound::{Rewound, take};
use crate::wire::{Inbound, Message};

/// How long a server may take to confirm that a tunnel is closed.
const CLOSE: Duration = Duration::from_secs(10);

/// A connection to a target. Reading ends when the target has closed; where the way to it was cut, reading fails.
/// `shutdown` closes the sending side of the target's connection, if server and agent support it.
#[derive(Debug)]
pub struct Tunnel(Way);

#[derive(Debug)]
enum Way {
    Grpc(Box<GrpcTunnel>),
    Http(Rewound<Io>),
}

impl Tunnel {
    pub(super) fn grpc(tunnel: GrpcTunnel) -> Self {
        Self(Way::Grpc(Box::new(tunnel)))
    }

    pub(super) const fn http(io: Io, first: Bytes) -> Self {
        Self(Way::Http(Rewound::new(first, io)))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Grpc(tunnel) => tunnel.poll_read(context, buffer),
            Way::Http(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Way::Grpc(tunnel) => tunnel.poll_write(context, bytes),
            Way::Http(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Grpc(tunnel) => tunnel.poll_flush(context),
            Way::Http(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Grpc(tunnel) => {
                tunnel.shutdown();
                Poll::Ready(Ok(()))
            }
            Way::Http(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}

/// How the target's bytes end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The target has closed its sending side.
    Finished,
    /// The connection has ended as it should.
    Closed,
    /// It was cut.
    Cut(String),
}

/// The tasks that read and write a connection. Both must see events: the writer must see the end.
#[derive(Debug, Default)]
struct Tasks {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

/// A stream of packets as a connection.
#[derive(Debug)]
pub(super) struct GrpcTunnel {
    outbox: Arc<Outbox>,
    lane: Lane,
    inbound: Option<Inbound>,
    _hold: Hold,
    connect_id: i64,
    can_finish: bool,
    has_finished: bool,
    /// Both directions have ended.
    has_closed: bool,
    waiting: Bytes,
    end: Option<End>,
    tasks: Arc<Tasks>,
}

impl GrpcTunnel {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        lane: Lane,
        inbound: Inbound,
        hold: Hold,
        connect_id: i64,
        can_finish: bool,
    ) -> Self {
        Self {
            outbox,
            lane,
            inbound: Some(inbound),
            _hold: hold,
            connect_id,
            can_finish,
            has_finished: false,
            has_closed: false,
            waiting: Bytes::new(),
            end: None,
            tasks: Arc::default(),
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.waiting.is_empty() {
                take(&mut self.waiting, buffer);
                return Poll::Ready(Ok(()));
            }
            match &self.end {
                None => {}
                Some(End::Finished | End::Closed) => return Poll::Ready(Ok(())),
                Some(End::Cut(why)) => {
                    let error = io::Error::new(io::ErrorKind::ConnectionReset, why.clone());
                    return Poll::Ready(Err(error));
                }
            }
            self.tasks.reader.register(context.waker());
            ready!(self.poll_message());
        }
    }

    /// Takes one message.
    fn poll_message(&mut self) -> Poll<()> {
        let waker = Waker::from(Arc::clone(&self.tasks));
        let Some(inbound) = &mut self.inbound else {
            self.closed(End::Closed);
            return Poll::Ready(());
        };
        let own = self.connect_id;
        match ready!(Pin::new(inbound).poll_next(&mut Context::from_waker(&waker))) {
            Some(Ok(Ok(Message::Data(id, data)))) if id == own => self.waiting = data,
            Some(Ok(Ok(Message::Finish(id)))) if id == own => {
                self.end.get_or_insert(End::Finished);
            }
            Some(Ok(Ok(Message::CloseResponse(close)))) if close.connect_id == own => {
                self.closed(if close.error.is_empty() {
                    End::Closed
                } else {
                    End::Cut(close.error)
                });
            }
            // Malformed packets, and those that mean nothing here or are of other connections, are ignored by all
            // parties.
            Some(Ok(_)) => {}
            Some(Err(status)) => self.closed(End::Cut(status.message().to_owned())),
            None => self.closed(End::Cut(
                "the server ended the stream before the connection was closed".to_owned(),
            )),
        }
        Poll::Ready(())
    }

    /// Nothing can be sent any more. For the reader the first end counts.
    fn closed(&mut self, end: End) {
        self.has_closed = true;
        self.end.get_or_insert(end);
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.poll_closed(context) || self.has_finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = ready!(self.lane.poll_ready(context))
            .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
        let count = bytes.len().min(room);
        let data = Bytes::copy_from_slice(&bytes[..count]);
        Poll::Ready(match self.lane.push(Message::Data(self.connect_id, data)) {
            Ok(()) => Ok(count),
            Err(error) => Err(io::Error::new(io::ErrorKind::BrokenPipe, error)),
        })
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.lane.poll_empty(context) {
            // Nothing is taken any more.
            Poll::Pending if self.poll_closed(context) => {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            polled => polled.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)),
        }
    }

    /// Whether nothing can be sent any more. A task that only writes sees it too, while the reader has taken the bytes
    /// before it: bytes written after it would be lost without an error, or the writer would wait for ever.
    fn poll_closed(&mut self, context: &Context<'_>) -> bool {
        self.tasks.writer.register(context.waker());
        while self.waiting.is_empty() && !self.has_closed && self.poll_message().is_ready() {
            self.tasks.reader.wake();
        }
        self.has_closed
    }

    /// It does not wait, like that of TCP: bytes written before are sent before.
    fn shutdown(&mut self) {
        if !self.has_finished {
            self.has_finished = true;
            if self.can_finish {
                // A stream that has ended is reported to the reader.
                let _ = self.lane.push(Message::Finish(self.connect_id));
            }
        }
    }
}

impl Drop for GrpcTunnel {
    fn drop(&mut self) {
        if !matches!(self.end, Some(End::Closed)) {
            // A stream that has ended is closed.
            let _ = self.lane.push(Message::CloseRequest(self.connect_id));
        }
        self.outbox.finish(None);
        let Some(mut inbound) = self.inbound.take() else {
            return;
        };
        // Queued messages are sent as long as the stream lives: it must not be reset before.
        if let (false, Ok(runtime)) = (self.has_closed, Handle::try_current()) {
            runtime.spawn(timeout(CLOSE, async move {
                while let Some(Ok(message)) = inbound.next().await {
                    if matches!(message, Ok(Message::CloseResponse(_))) {
                        break;
                    }
                }
            }));
        }
    }
}
