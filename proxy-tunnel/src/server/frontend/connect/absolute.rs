// SPDX-License-Identifier: Apache-2.0

//! Requests in absolute form. Each connection to a target is a tunnel like that of a CONNECT request. A separate task
//! serves the tunnel at the far end of a socket pair.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use proxy_serve::shutdown::Phase;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::debug;

use super::super::Client;
use super::super::socket::Socket;
use super::tunnel;
use crate::client::{Refusal, answer};
use crate::forward::head::{Form, Head};
use crate::forward::pool::Pool;
use crate::forward::{Dial, Failure, absolute, status_of};
use crate::rewound::Rewound;
use crate::writes::writes_to_field;

/// The maximum number of idle connections to targets per client connection. They are closed with the client connection,
/// so they are never shared with another client or another tenant.
const IDLE: usize = 8;

/// Serves a connection. `head` is the head of the first request, and `read` holds the bytes already read from the
/// socket.
pub async fn serve<S: Socket>(
    socket: S,
    head: Head,
    read: Bytes,
    client: &Client,
    phase: watch::Receiver<Phase>,
) {
    let dial = Arc::new(ByTenant {
        client: client.clone(),
        user_agent: head.user_agent,
    });
    let pool = Arc::new(Pool::new(IDLE));
    let served = absolute::serve(Rewound::new(read, socket), dial, pool, phase).await;
    if let Err(why) = served {
        debug!("a connection with requests in absolute form has ended: {why}");
    }
}

/// Dials in the same way as the client's CONNECT requests.
struct ByTenant {
    client: Client,
    user_agent: String,
}

impl Dial for ByTenant {
    type Io = Rewound<Joined>;

    async fn dial(&self, target: &str) -> Result<Self::Io, Failure> {
        let (mut near, far) = Joined::pair().map_err(|error| Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            text: format!("no pair of sockets for a tunnel: {error}"),
        })?;
        let head = Head {
            form: Form::Connect,
            target: target.to_owned(),
            user_agent: self.user_agent.clone(),
            length: 0,
        };
        let client = self.client.clone();
        tokio::spawn(async move { tunnel(far, head, Bytes::new(), &client).await });
        match answer(&mut near).await {
            Ok(first) => Ok(Rewound::new(first, near)),
            Err(refusal) => Err(failure(&refusal)),
        }
    }
}

fn failure(refusal: &Refusal) -> Failure {
    let text = match refusal {
        Refusal::Status { text, .. } => text.clone(),
        other => other.to_string(),
    };
    Failure {
        status: status_of(refusal),
        text,
    }
}

/// One end of a socket pair. A socket pair has no reset, so a cut is recorded in a flag that both ends share, before
/// the socket is closed.
struct Joined {
    socket: UnixStream,
    is_cut: Arc<AtomicBool>,
}

impl Joined {
    fn pair() -> io::Result<(Self, Self)> {
        let (near, far) = UnixStream::pair()?;
        let is_cut = Arc::new(AtomicBool::new(false));
        let end = |socket| Self {
            socket,
            is_cut: Arc::clone(&is_cut),
        };
        Ok((end(near), end(far)))
    }
}

impl Socket for Joined {
    const GONE: libc::c_short = <UnixStream as Socket>::GONE;

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn abort(&self) {
        self.is_cut.store(true, Ordering::Release);
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        Poll::Ready(if is_end && self.is_cut.load(Ordering::Acquire) {
            Err(io::ErrorKind::ConnectionReset.into())
        } else {
            Ok(())
        })
    }
}

writes_to_field!(Joined, socket);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn an_end_is_regular_or_a_cut() {
        for is_cut in [false, true] {
            let (mut near, mut far) = Joined::pair().unwrap();
            far.write_all(b"some").await.unwrap();
            if is_cut {
                far.abort();
            }
            drop(far);
            let mut read = Vec::new();
            let ended = near.read_to_end(&mut read).await;
            assert_eq!((read.as_slice(), ended.is_err()), (&b"some"[..], is_cut));
        }
    }
}
