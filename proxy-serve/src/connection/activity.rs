// SPDX-License-Identifier: Apache-2.0

//! The activity of a connection: idle, receiving an HTTP/1 head, or responding. hyper has only one time limit for the
//! first two.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::Instant;

use super::Limits;

/// The activity of a connection. Times are in milliseconds since the connection was established.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    limits: Limits,
    /// The number of requests in progress.
    busy: AtomicU32,
    /// The time at which the last request ended, or 0 before that.
    last: AtomicU64,
    /// The time of a head's first byte plus one, or 0 while no head has begun.
    head: AtomicU64,
}

/// The reason why a connection exceeds a time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// The client has begun a request's head and does not complete it.
    Head,
    /// The client has sent no request for a long time.
    Idle,
}

impl Activity {
    /// Creates the state of a connection that has just been established.
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

    // One task drives a connection and all its requests, so the order of these stores does not matter.

    /// Marks that a request's head is complete. The request is in progress until the returned value is dropped.
    #[must_use]
    pub fn request(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Marks that bytes have been received.
    fn bytes(&self) {
        let waiting = self.busy.load(Ordering::Relaxed) == 0;
        if waiting && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// Returns the time at which the connection exceeds a time limit unless an event occurs before, and which limit it
    /// is.
    pub(super) fn deadline(&self) -> (Instant, Overdue) {
        let head = self.head.load(Ordering::Relaxed);
        let (since, limit, overdue) = if self.busy.load(Ordering::Relaxed) > 0 {
            // The service limits the time of a request in progress.
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

/// A request in progress. The value is dropped with the response, or when the client cancels the request.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.last.store(self.0.now(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An HTTP/1 connection that reports received bytes to its [`Activity`].
#[derive(Debug)]
pub struct Watched<T> {
    inner: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    /// Reports the bytes that are read from `inner`.
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
