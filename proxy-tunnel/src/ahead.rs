// SPDX-License-Identifier: Apache-2.0

//! Reading from a socket more than was asked for. rustls reads 4 KiB at a time until it has a whole record of 16 KiB: of a
//! bulk transfer that is four or five system calls for each record.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::flow::pump::ReadSize;
use crate::rewound::take;
use crate::writes::writes_to_field;

/// Bytes that are read ahead at most: four records of TLS.
const MOST: usize = 64 * 1024;

/// A stream below a TLS session. It reads ahead while reads come back full, and holds a buffer no longer than there are bytes
/// in it: one where little comes costs no more than the socket alone.
#[derive(Debug)]
pub struct ReadAhead<I> {
    io: I,
    ahead: Bytes,
    size: ReadSize,
    /// The last read brought as much as it could.
    is_busy: bool,
}

impl<I> ReadAhead<I> {
    /// Nothing has been read yet.
    pub fn new(io: I) -> Self {
        Self {
            io,
            ahead: Bytes::new(),
            size: ReadSize::default(),
            is_busy: false,
        }
    }

    /// The stream.
    pub const fn get_ref(&self) -> &I {
        &self.io
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        take(&mut self.ahead, buffer);
        if !self.ahead.has_remaining() {
            self.ahead = Bytes::new();
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for ReadAhead<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.has_remaining() {
            this.give(buffer);
            return Poll::Ready(Ok(()));
        }
        let room = buffer.remaining();
        if !this.is_busy || room >= MOST {
            ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
            this.is_busy = buffer.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        let mut more = this.size.buffer(MOST);
        // The future keeps nothing from one poll to the next.
        let count = ready!(pin!(this.io.read_buf(&mut more)).poll(context))?;
        this.size.note(count);
        this.is_busy = count >= room;
        this.ahead = more.freeze();
        this.give(buffer);
        Poll::Ready(Ok(()))
    }
}

writes_to_field!(ReadAhead<I>, io);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Whatever is asked for, what comes out is what went in.
    #[tokio::test]
    async fn everything_arrives_once() {
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (near, mut far) = tokio::io::duplex(100_000);
        let mut near = ReadAhead::new(near);
        let whole = sent.clone();
        let sender = tokio::spawn(async move {
            for chunk in whole.chunks(70_001) {
                far.write_all(chunk).await.unwrap();
            }
            // Little, then the end.
            far.write_all(b"end").await.unwrap();
        });
        let mut received = Vec::new();
        let mut buffer = [0; 100_000];
        for room in [4096, 1, 18_000, 80_000, 100_000].into_iter().cycle() {
            let count = near.read(&mut buffer[..room]).await.unwrap();
            if count == 0 {
                break;
            }
            received.extend_from_slice(&buffer[..count]);
        }
        sender.await.unwrap();
        assert!(near.ahead.is_empty());
        assert_eq!(received, [&sent[..], b"end"].concat());
    }

    #[tokio::test]
    async fn it_reads_ahead_only_while_much_comes() {
        let (near, mut far) = tokio::io::duplex(1_000_000);
        let mut near = ReadAhead::new(near);
        let mut buffer = [0; 4096];
        far.write_all(&[7; 20_000]).await.unwrap();
        assert_eq!(near.read(&mut buffer).await.unwrap(), 4096);
        assert!(near.ahead.is_empty(), "the first read is the caller's own");
        assert_eq!(near.read(&mut buffer).await.unwrap(), 4096);
        assert!(!near.ahead.is_empty());
        let mut left = 20_000 - 2 * 4096;
        while left > 0 {
            left -= near.read(&mut buffer).await.unwrap();
        }
        assert!(near.is_busy && near.ahead.is_empty());
        far.write_all(&[7; 100]).await.unwrap();
        assert_eq!(near.read(&mut buffer).await.unwrap(), 100);
        assert!(!near.is_busy && near.ahead.is_empty());
    }
}
