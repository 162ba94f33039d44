// SPDX-License-Identifier: Apache-2.0

//! The kernel's checks of a connection, and its reaction when the other end vanishes silently: a machine without power,
//! a network that is cut, a firewall that has forgotten the connection. Without it such a connection stays for ever
//! where nothing is to be sent, and for 15 minutes where something is.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// After how long without a byte the other end is asked whether it is there. Go's `net` does it by default.
const IDLE: Duration = Duration::from_secs(15);

/// Of a tunnel, as Go's `net`: the pause between two questions, and how many of them are asked.
const TUNNEL: (Duration, u32) = (Duration::from_secs(15), 9);

/// The pause between two questions to the other end of a link.
const LINK: Duration = Duration::from_secs(5);

/// How long the other end of a link may leave bytes, or a question, without an acknowledgement: as long as it may take
/// to answer a ping. Go's gRPC derives the same from its keepalive.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// The kind of traffic on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// One tunnel: a client's connection, or a target's. Its other end may leave bytes unread for as long as it likes.
    Tunnel,
    /// All tunnels between an agent and a server. Both ends read it always, so one that does not has gone.
    Link,
}

/// Sends bytes as they come, and has the kernel end the connection when its other end has gone: a link after 20 s, a
/// tunnel after 150 s.
///
/// # Errors
/// The kernel refuses, as it does for a connection that has just ended.
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
            // It takes the place of a number of questions.
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The effect is tested with a network that is cut, in `tests/tunnel`.
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
