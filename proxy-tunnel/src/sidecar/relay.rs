// SPDX-License-Identifier: Apache-2.0

//! Forwards bytes between a client and its tunnel until both directions have ended or one of them is cut.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::sleep;

use crate::flow::CHUNK;
use crate::flow::pump::{self, Reading};
use crate::forward::head::ESTABLISHED;

/// The time for which one direction may be idle after the other has ended. A client that has closed one direction has
/// often gone altogether.
const LINGER: Duration = Duration::from_mins(2);

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// All bytes were forwarded, or the client closed the connection earlier.
    Regular,
    /// Bytes are missing. The value is the reason.
    Cut(String),
}

/// Sends the response to the client and then forwards bytes. The bytes in `first` are sent to the target before all
/// others. If the tunnel is cut, the client receives a reset, provided that its socket type supports resets.
pub async fn run<S, T>(mut socket: S, tunnel: T, first: Bytes) -> End
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
    T: AsyncRead + AsyncWrite,
{
    let answered = async {
        socket.write_all(ESTABLISHED).await?;
        socket.flush().await
    };
    if answered.await.is_err() {
        return End::Regular;
    }
    let end = carry(&mut socket, tunnel, first, LINGER).await;
    if matches!(end, End::Cut(_)) {
        // This fails for a Unix socket, which has no reset, and for a connection that has already ended.
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
    end
}

async fn carry<S, T>(socket: &mut S, tunnel: T, first: Bytes, linger: Duration) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = tokio::io::split(socket);
    let (mut from_target, mut to_target) = tokio::io::split(tunnel);
    let moved = AtomicU64::new(0);
    let mut up = pin!(async {
        // The other direction reports a failure of the tunnel.
        let _ = to_target.write_all(&first).await;
        match one_way(&mut from_client, &mut to_target, &moved).await {
            Err(Failed::Read(_)) => Some(End::Regular),
            Err(Failed::Write) | Ok(()) => None,
        }
    });
    let mut down = pin!(async {
        match one_way(&mut from_target, &mut to_client, &moved).await {
            Err(Failed::Read(why)) => Some(End::Cut(why.to_string())),
            Err(Failed::Write) => Some(End::Regular),
            Ok(()) => None,
        }
    });
    let (mut is_up, mut is_down) = (true, true);
    let mut seen = 0;
    while is_up || is_down {
        let has_one_ended = !(is_up && is_down);
        let ended = tokio::select! {
            end = &mut up, if is_up => {
                is_up = false;
                end
            }
            end = &mut down, if is_down => {
                is_down = false;
                end
            }
            () = sleep(linger), if has_one_ended => {
                let now = moved.load(Ordering::Relaxed);
                let is_quiet = now == seen;
                seen = now;
                is_quiet.then_some(End::Regular)
            }
        };
        if let Some(end) = ended {
            return end;
        }
    }
    End::Regular
}

enum Failed {
    Read(io::Error),
    Write,
}

/// Forwards bytes until their source ends, and then ends the other side. `moved` counts the writes.
async fn one_way<R, W>(from: &mut R, to: &mut W, moved: &AtomicU64) -> Result<(), Failed>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reading = Reading::default();
    let mut chunks = Vec::with_capacity(1);
    loop {
        let data = pump::read(from, &mut reading, CHUNK)
            .await
            .map_err(Failed::Read)?;
        if data.is_empty() {
            return to.shutdown().await.map_err(|_| Failed::Write);
        }
        chunks.push(data);
        pump::write_all(to, &mut chunks)
            .await
            .map_err(|_| Failed::Write)?;
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Returns a client that has read its 200, the target's end of the tunnel, and the relay between them.
    async fn connected() -> (TcpStream, DuplexStream, JoinHandle<End>) {
        let (mut client, socket) = pair().await;
        let (target, tunnel) = duplex(1024);
        let relay = tokio::spawn(run(socket, tunnel, Bytes::from_static(b"first ")));
        let mut head = vec![0; ESTABLISHED.len()];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(head, ESTABLISHED);
        (client, target, relay)
    }

    #[tokio::test]
    async fn each_side_ends_after_the_other() {
        let (mut client, mut target, relay) = connected().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        target.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "first question");
        target.write_all(b"answer").await.unwrap();
        target.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        assert_eq!(relay.await.unwrap(), End::Regular);
    }

    /// Tests that a client whose tunnel is cut receives the forwarded bytes and then a reset instead of an end of file.
    #[tokio::test]
    async fn a_cut_is_a_reset() {
        struct Cut;
        impl AsyncRead for Cut {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Err(io::Error::other("the agent is lost")))
            }
        }
        let (mut client, socket) = pair().await;
        let tunnel = tokio::io::join(Cut, tokio::io::sink());
        let end = run(socket, tunnel, Bytes::new()).await;
        assert_eq!(end, End::Cut("the agent is lost".into()));
        let mut answer = Vec::new();
        let read = client.read_to_end(&mut answer).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_side_that_pauses_after_the_other_has_ended_is_given_up() {
        let (client, target) = (duplex(1024), duplex(1024));
        let (mut near, mut socket) = client;
        let (_target, tunnel) = target;
        near.shutdown().await.unwrap();
        let linger = Duration::from_millis(20);
        let end = carry(&mut socket, tunnel, Bytes::new(), linger).await;
        assert_eq!(end, End::Regular);
    }
}
