// SPDX-License-Identifier: Apache-2.0

//! The socket operations that a CONNECT connection needs besides reading and writing: to detect whether the peer has
//! closed both directions or only one, to query whether the peer has read all bytes, and to end the connection in a way
//! that differs from a regular end.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A client's connection.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Returns the file descriptor of the socket.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// The event that `poll` reports when the peer has closed the connection, after its last byte has been read. TLS
    /// has its own end-of-stream message, so POLLRDHUP, the end of the TCP stream, means that the peer has
    /// disconnected. On a Unix socket, the peer's `shutdown` of one direction raises POLLRDHUP too; only the end of
    /// both directions raises POLLHUP.
    const GONE: libc::c_short;

    /// Returns whether the peer has closed both directions.
    fn is_gone(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.descriptor().as_raw_fd(),
            events: Self::GONE,
            revents: 0,
        };
        // SAFETY: `polled` is one valid element, and the descriptor is open for as long as `self` is borrowed.
        let count = unsafe { libc::poll(&raw mut polled, 1, 0) };
        // The call does not block. After an error the state is unknown.
        count > 0 && polled.revents & (Self::GONE | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// Makes the kernel end the connection with a reset instead of a regular end. Unix sockets have no reset: there,
    /// only the protocol inside the tunnel shows that bytes are missing.
    fn abort(&self) {
        // This has no effect on a Unix socket, and fails on TCP only if the connection has already ended.
        let _ = SockRef::from(&self.descriptor()).set_linger(Some(Duration::ZERO));
    }

    /// Returns the number of bytes that the peer has not yet taken, or 0 if the kernel does not report it.
    fn unread(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one int, and the descriptor is open for as long as `self` is borrowed.
        let result = unsafe {
            libc::ioctl(
                self.descriptor().as_raw_fd(),
                libc::TIOCOUTQ,
                &raw mut bytes,
            )
        };
        if result == 0 {
            usize::try_from(bytes).unwrap_or(0)
        } else {
            0
        }
    }
}

impl Socket for UnixStream {
    const GONE: libc::c_short = libc::POLLHUP;

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Socket for TlsStream<TcpStream> {
    const GONE: libc::c_short = libc::POLLRDHUP;

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.get_ref().0.as_fd()
    }
}

/// A socket that two parts of one task read and write.
#[derive(Debug)]
pub struct Halves<S>(Mutex<S>);

impl<S> Halves<S> {
    /// Creates the shared socket.
    pub const fn new(socket: S) -> Self {
        Self(Mutex::new(socket))
    }

    /// Locks the socket. The guard must not be held across an await.
    pub fn lock(&self) -> MutexGuard<'_, S> {
        // Both parts run in one task, so a panic ends both.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The view of the shared socket that one of the two parts uses.
#[derive(Debug)]
pub struct Half<'a, S>(pub &'a Halves<S>);

impl<S: AsyncRead + Unpin> AsyncRead for Half<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Half<'_, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_unix_peer_that_shuts_down_has_not_gone() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        assert!(!near.is_gone());
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        assert!(!near.is_gone(), "it still reads");
        drop(far);
        assert!(near.is_gone());
    }

    #[tokio::test]
    async fn what_a_unix_peer_has_not_read_is_known() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        assert_eq!(near.unread(), 0);
        near.write_all(b"200").await.unwrap();
        assert!(near.unread() > 0);
        far.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(near.unread(), 0);
    }
}
