// SPDX-License-Identifier: Apache-2.0

//! A connection through a tunnel, as a byte stream.

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

/// The time that a server has to confirm that a tunnel is closed.
const CLOSE: Duration = Duration::from_secs(10);

/// A connection to a target. A read returns the end of file when the target has closed, and an error if the connection
/// was cut on the way. `shutdown` closes the sending side of the connection to the target, if server and agent support
/// that.
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

/// The ways in which the target's bytes end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The target has closed its sending side.
    Finished,
    /// The connection was closed regularly.
    Closed,
    /// The connection was cut.
    Cut(String),
}

/// The tasks that read and write a connection. Both are woken by events, because the writer must notice the end, too.
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

/// A stream of packets, presented as a connection.
#[derive(Debug)]
pub(super) struct GrpcTunnel {
    outbox: Arc<Outbox>,
    lane: Lane,
    inbound: Option<Inbound>,
    _hold: Hold,
    connect_id: i64,
    can_finish: bool,
    has_finished: bool,
    /// True if both directions have ended.
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

    /// Processes one message.
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
            // Malformed packets, and packets that do not apply here or belong to other connections, are ignored. All
            // implementations do so.
            Some(Ok(_)) => {}
            Some(Err(status)) => self.closed(End::Cut(status.message().to_owned())),
            None => self.closed(End::Cut(
                "the server ended the stream before the connection was closed".to_owned(),
            )),
        }
        Poll::Ready(())
    }

    /// Records that nothing can be sent any more. The reader reports the first end that was recorded.
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
            // The server does not accept any more bytes.
            Poll::Pending if self.poll_closed(context) => {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            polled => polled.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)),
        }
    }

    /// Returns true if nothing can be sent any more. A task that only writes must notice this too, once the reader has
    /// consumed the bytes that precede the end. Otherwise bytes written later would be lost without an error, or the
    /// writer would wait forever.
    fn poll_closed(&mut self, context: &Context<'_>) -> bool {
        self.tasks.writer.register(context.waker());
        while self.waiting.is_empty() && !self.has_closed && self.poll_message().is_ready() {
            self.tasks.reader.wake();
        }
        self.has_closed
    }

    /// Ends the sending side without waiting, as TCP does: bytes written before are still sent first.
    fn shutdown(&mut self) {
        if !self.has_finished {
            self.has_finished = true;
            if self.can_finish {
                // An error can be ignored: the reader reports that the stream has ended.
                let _ = self.lane.push(Message::Finish(self.connect_id));
            }
        }
    }
}

impl Drop for GrpcTunnel {
    fn drop(&mut self) {
        if !matches!(self.end, Some(End::Closed)) {
            // The request is unnecessary if the stream has already ended.
            let _ = self.lane.push(Message::CloseRequest(self.connect_id));
        }
        self.outbox.finish(None);
        let Some(mut inbound) = self.inbound.take() else {
            return;
        };
        // Queued messages are sent only while the stream lives, so the task delays the reset of the stream.
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
