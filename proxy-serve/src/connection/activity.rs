// SPDX-License-Identifier: Apache-2.0

//! The activity of a connection: idle, in the middle of an HTTP/1 head, or answering. hyper has one time limit
//! for the first two.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::Instant;

use super::Limits;

/// The activity of a connection. Times are in milliseconds since it began.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    limits: Limits,
    /// Requests that are being answered.
    busy: AtomicU32,
    /// When the last request began or ended.
    last: AtomicU64,
    /// One more than the time of a head's first byte; 0 while no head has begun.
    head: AtomicU64,
}

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// It has begun a request's head and does not go on.
    Head,
    /// It had no request for a long time.
    Idle,
}

impl Activity {
    /// A connection that has just been established.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            began: Instant::now(),
            limits,
            busy: AtomicU32::new(0),
            last: AtomicU64::new(0),
            head: AtomicU64::new(0),
        }
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    // One task drives a connection and all its requests: the order of these stores does not matter.

    /// A request's head is complete. It is being answered until the value is dropped.
    #[must_use]
    pub fn request(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Bytes have been received.
    fn bytes(&self) {
        let waiting = self.busy.load(Ordering::Relaxed) == 0;
        if waiting && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// The time at which the connection is overdue unless something happens before, and why it is then.
    pub(super) fn deadline(&self) -> (Instant, Overdue) {
        let head = self.head.load(Ordering::Relaxed);
        let (since, limit, overdue) = if self.busy.load(Ordering::Relaxed) > 0 {
            // The service bounds its time.
            (self.now(), self.limits.idle, Overdue::Idle)
        } else if head > 0 {
            (head - 1, self.limits.head, Overdue::Head)
        } else {
            let last = self.last.load(Ordering::Relaxed);
            (last, self.limits.idle, Overdue::Idle)
        };
        (self.began + Duration::from_millis(since) + limit, overdue)
    }
}

/// A request that is being answered. It ends when it is dropped: with its answer, or because the client has
/// cancelled it.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.last.store(self.0.now(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An HTTP/1 connection whose incoming bytes are noted in its [`Activity`].
#[derive(Debug)]
pub struct Watched<T> {
    inner: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    /// Notes the bytes that come from `inner`.
    pub const fn new(inner: T, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }
}

impl<T: Read + Unpin> Read for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            self.activity.bytes();
        }
        polled
    }
}

impl<T: Write + Unpin> Write for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
