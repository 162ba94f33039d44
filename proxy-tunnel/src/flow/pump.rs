// SPDX-License-Identifier: Apache-2.0

//! Transfers bytes between a socket and a tunnel: reads that hold no buffer while no data arrives, and writes of many
//! chunks at once.

use std::future::{Future as _, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::CHUNK;

/// The initial buffer size of a source, in bytes. It doubles whenever a read fills the buffer.
const FIRST: usize = 8 * 1024;

/// The maximum number of chunks per write.
pub const BATCH: usize = 32;

/// The state of a source between two reads.
#[derive(Debug)]
pub struct Reading {
    /// The buffer size of the next read, in bytes.
    size: usize,
    /// The error that the source reported after the data of the last read.
    failed: Option<io::Error>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            size: FIRST,
            failed: None,
        }
    }
}

impl Reading {
    /// Adapts the buffer size to the number of bytes that a read returned.
    fn note(&mut self, bytes: usize) {
        if bytes >= self.size {
            self.size = (self.size * 2).min(CHUNK);
        } else if bytes < self.size / 4 {
            self.size = (self.size / 2).max(FIRST);
        }
    }
}

/// Reads at most `most` bytes; returns no bytes at the end of the source. Reads everything that is available, because
/// TLS returns no more than one record (16 KiB) per read. No buffer is held while no data arrives, so an idle tunnel
/// needs no memory for it.
///
/// # Errors
/// Returns the error of the source.
pub async fn read<R: AsyncRead + Unpin>(
    source: &mut R,
    reading: &mut Reading,
    most: usize,
) -> io::Result<Bytes> {
    poll_fn(|context| poll_read(source, reading, most, context)).await
}

fn poll_read<R: AsyncRead + Unpin>(
    source: &mut R,
    reading: &mut Reading,
    most: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    if let Some(error) = reading.failed.take() {
        return Poll::Ready(Err(error));
    }
    let size = reading.size.min(most);
    let mut buffer = BytesMut::with_capacity(size);
    while buffer.len() < size {
        // The capacity may be larger than requested, but no more than `most` bytes may be sent to the peer.
        let left = size - buffer.len();
        let mut limited = bytes::BufMut::limit(&mut buffer, left);
        // The future has no state between polls, so it can be created for each of them.
        match pin!(source.read_buf(&mut limited)).poll(context) {
            Poll::Ready(Ok(1..)) => {}
            Poll::Pending if buffer.is_empty() => return Poll::Pending,
            // A source that has ended reports that on each read.
            Poll::Ready(Ok(0)) | Poll::Pending => break,
            Poll::Ready(Err(error)) if buffer.is_empty() => return Poll::Ready(Err(error)),
            Poll::Ready(Err(error)) => {
                reading.failed = Some(error);
                break;
            }
        }
    }
    reading.note(buffer.len());
    Poll::Ready(Ok(buffer.freeze()))
}

/// Writes all chunks, as many as possible per system call.
///
/// # Errors
/// Returns the error of the sink.
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

/// Writes as much of the chunks as the sink accepts at once. The list of slices is rebuilt on each poll: if the future
/// kept it, every tunnel would need memory for it.
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
        let mut reading = Reading::default();
        assert_eq!(read(&mut far, &mut reading, 10).await.unwrap().len(), 10);
        let mut total = 10;
        let mut largest = 0;
        loop {
            let bytes = read(&mut far, &mut reading, CHUNK).await.unwrap();
            if bytes.is_empty() {
                break;
            }
            largest = largest.max(bytes.len());
            total += bytes.len();
        }
        assert_eq!(total, 100_000);
        assert!(largest > FIRST, "{largest}");
    }

    /// Returns these pieces one by one, as TLS returns records, and then fails.
    struct Records(Vec<&'static [u8]>);

    impl AsyncRead for Records {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            buffer.put_slice(self.0.remove(0));
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_there_is_read_at_once_and_an_error_after_it() {
        let mut source = Records(vec![b"one", b"two"]);
        let mut reading = Reading::default();
        let read_once = read(&mut source, &mut reading, CHUNK).await;
        assert_eq!(read_once.unwrap(), "onetwo");
        let error = read(&mut source, &mut reading, CHUNK).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
