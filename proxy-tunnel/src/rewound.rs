// SPDX-License-Identifier: Apache-2.0

//! A byte stream whose first bytes have already been read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::writes::writes_to_field;

/// A stream that returns `first` before the bytes of `io`.
#[derive(Debug)]
pub struct Rewound<I> {
    first: Bytes,
    io: I,
}

impl<I> Rewound<I> {
    /// Returns a stream that reads `first`, and then the bytes of `io`.
    pub const fn new(first: Bytes, io: I) -> Self {
        Self { first, io }
    }
}

/// Moves as many bytes as fit into `buffer`. The bytes must be contiguous.
pub(crate) fn take(bytes: &mut impl Buf, buffer: &mut ReadBuf<'_>) {
    let count = bytes.remaining().min(buffer.remaining());
    buffer.put_slice(&bytes.chunk()[..count]);
    bytes.advance(count);
}

impl<I: AsyncRead + Unpin> AsyncRead for Rewound<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        take(&mut self.first, buffer);
        Poll::Ready(Ok(()))
    }
}

writes_to_field!(Rewound<I>, io);
