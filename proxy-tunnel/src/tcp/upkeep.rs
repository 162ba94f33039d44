// SPDX-License-Identifier: Apache-2.0

//! The kernel's checks of a connection whose peer may have vanished silently: a machine without power, a network that
//! is cut, a firewall that has forgotten the connection. Without these checks, such a connection stays open forever if
//! no data is sent, and for 15 minutes if data is sent.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// The time without received bytes after which the kernel sends keepalive probes. Go's `net` uses it by default.
const IDLE: Duration = Duration::from_secs(15);

/// The interval and the number of keepalive probes on a tunnel, as in Go's `net`.
const TUNNEL: (Duration, u32) = (Duration::from_secs(15), 9);

/// The interval of keepalive probes on a link.
const LINK: Duration = Duration::from_secs(5);

/// How long the peer of a link may leave data or probes unacknowledged: as long as it may take to acknowledge a ping.
/// Go's gRPC derives the same value from its keepalive.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// The use of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// One tunnel: a client's connection, or a target's. The peer may leave data unread for any length of time.
    Tunnel,
    /// All tunnels between an agent and a server. Both ends always read, so an end that does not read is gone.
    Link,
}

/// Disables Nagle's algorithm, and makes the kernel close the connection if its peer has vanished: a link after 20 s, a
/// tunnel after 150 s.
///
/// # Errors
/// Returns the kernel's error, which occurs for a connection that has just ended.
pub fn prepare(stream: &TcpStream, used_for: Use) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let questions = TcpKeepalive::new().with_time(IDLE);
    match used_for {
        Use::Tunnel => {
            let (pause, count) = TUNNEL;
            socket.set_tcp_keepalive(&questions.with_interval(pause).with_retries(count))
        }
        Use::Link => {
            socket.set_tcp_keepalive(&questions.with_interval(LINK))?;
            // This timeout replaces a number of probes.
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// `tests/tunnel` tests the effect with a network that is cut.
    #[tokio::test]
    async fn the_kernel_watches_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (used_for, want) in [
            (Use::Tunnel, (Duration::from_secs(15), 9, None)),
            (Use::Link, (Duration::from_secs(5), 0, Some(UNACKNOWLEDGED))),
        ] {
            let stream = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            prepare(&stream, used_for).unwrap();
            let socket = SockRef::from(&stream);
            assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
            let (interval, retries, timeout) = want;
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), interval);
            assert_eq!(socket.tcp_user_timeout().unwrap(), timeout);
            if retries > 0 {
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), retries);
            }
        }
    }
}
