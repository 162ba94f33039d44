// SPDX-License-Identifier: Apache-2.0

//! Bytes between a socket and a tunnel: reads that hold no buffer while nothing comes, writes of many
//! chunks at once.

use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::CHUNK;

/// The first buffer of a source, in bytes. It doubles whenever a read fills it.
const FIRST: usize = 8 * 1024;

/// Most chunks in one write.
pub const BATCH: usize = 32;

/// How large the next read should be.
#[derive(Debug)]
pub struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl ReadSize {
    /// A buffer for the next read of at most `most` bytes.
    #[must_use]
    pub fn buffer(&self, most: usize) -> BytesMut {
        BytesMut::with_capacity(self.0.min(most))
    }

    /// Notes how much a read brought.
    pub fn note(&mut self, bytes: usize) {
        if bytes >= self.0 {
            self.0 = (self.0 * 2).min(CHUNK);
        } else if bytes < self.0 / 4 {
            self.0 = (self.0 / 2).max(FIRST);
        }
    }
}

/// Reads at most `most` bytes; none at the source's end. While nothing comes no buffer is held: an idle tunnel
/// costs no memory for it.
///
/// # Errors
/// The source fails.
pub async fn read<R: AsyncRead + Unpin>(
    source: &mut R,
    size: &mut ReadSize,
    most: usize,
) -> io::Result<Bytes> {
    let (count, buffer) = poll_fn(|context| {
        let mut buffer = size.buffer(most);
        // The capacity may be larger than what was asked for, and `most` is a promise to the peer.
        let mut limited = bytes::BufMut::limit(&mut buffer, most);
        // The future keeps nothing from one poll to the next.
        let count = ready!(pin!(source.read_buf(&mut limited)).poll(context))?;
        Poll::Ready(io::Result::Ok((count, buffer)))
    })
    .await?;
    size.note(count);
    Ok(buffer.freeze())
}

/// Writes all chunks, as many as possible with each call of the kernel.
///
/// # Errors
/// The sink fails.
pub async fn write_all<W: AsyncWrite + Unpin>(
    sink: &mut W,
    chunks: &mut Vec<Bytes>,
) -> io::Result<()> {
    let mut first = 0;
    while first < chunks.len() {
        let written = poll_fn(|context| poll_write(sink, context, &chunks[first..])).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut rest = written;
        while rest > 0 {
            let chunk = &mut chunks[first];
            let step = rest.min(chunk.len());
            chunk.advance(step);
            rest -= step;
            if chunk.is_empty() {
                first += 1;
            }
        }
    }
    chunks.clear();
    sink.flush().await
}

/// Writes of chunks as much as is taken at once. The list of slices is made anew with each poll: a future that kept it
/// would have room for it in every tunnel.
fn poll_write<W: AsyncWrite + Unpin>(
    sink: &mut W,
    context: &mut Context<'_>,
    chunks: &[Bytes],
) -> Poll<io::Result<usize>> {
    let sink = Pin::new(sink);
    if chunks.len() == 1 || !sink.is_write_vectored() {
        return sink.poll_write(context, &chunks[0]);
    }
    let mut slices = [IoSlice::new(&[]); BATCH];
    let count = chunks.len().min(BATCH);
    for (slice, chunk) in slices.iter_mut().zip(chunks) {
        *slice = IoSlice::new(chunk);
    }
    sink.poll_write_vectored(context, &slices[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writes_everything_in_order() {
        let (mut near, mut far) = tokio::io::duplex(7);
        let mut chunks: Vec<Bytes> = (0..100_u8).map(|n| Bytes::from(vec![n; 3])).collect();
        let want: Vec<u8> = chunks.concat();
        let writer = tokio::spawn(async move {
            write_all(&mut near, &mut chunks).await.unwrap();
            assert!(chunks.is_empty());
        });
        let mut got = vec![0; want.len()];
        far.read_exact(&mut got).await.unwrap();
        writer.await.unwrap();
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn reads_no_more_than_allowed() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        tokio::io::AsyncWriteExt::write_all(&mut near, &vec![1; 100_000])
            .await
            .unwrap();
        drop(near);
        let mut size = ReadSize::default();
        assert_eq!(read(&mut far, &mut size, 10).await.unwrap().len(), 10);
        let mut total = 10;
        let mut largest = 0;
        loop {
            let bytes = read(&mut far, &mut size, CHUNK).await.unwrap();
            if bytes.is_empty() {
                break;
            }
            largest = largest.max(bytes.len());
            total += bytes.len();
        }
        assert_eq!(total, 100_000);
        assert!(largest > FIRST, "{largest}");
    }
}
