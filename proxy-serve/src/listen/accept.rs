// SPDX-License-Identifier: Apache-2.0

//! Accepts connections, a bounded number at once, also when the kernel has no descriptor or memory for a
//! further one.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::unix;

/// The pause after the kernel could not give a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The least time between two warnings about the same trouble.
const REMINDER: Duration = Duration::from_secs(10);

/// A listening socket.
pub trait Listen {
    /// A connection.
    type Stream;
    /// The other side's address.
    type Peer: Debug;

    /// Accepts one connection.
    ///
    /// # Errors
    /// The kernel has none to give.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

impl Listen for unix::Listener {
    type Stream = UnixStream;
    type Peer = tokio::net::unix::SocketAddr;

    async fn accept(&self) -> io::Result<(Self::Stream, Self::Peer)> {
        self.socket().accept().await
    }
}

/// The next connection. Errors are logged, and accepting goes on.
pub async fn next<L: Listen>(listener: &L) -> (L::Stream, L::Peer) {
    // When the last warning was.
    let mut warned: Option<Instant> = None;
    loop {
        let error = match listener.accept().await {
            Ok(connection) => {
                if warned.is_some() {
                    info!("connections are accepted again");
                }
                return connection;
            }
            Err(error) => error,
        };
        if is_peers(&error) {
            debug!("a connection ended before it was accepted: {error}");
            continue;
        }
        if warned.is_none_or(|at| at.elapsed() >= REMINDER) {
            warn!("cannot accept a connection, trying again: {error}");
            warned = Some(Instant::now());
        }
        sleep(PAUSE).await;
    }
}

/// Whether an error is about the one connection that was to be accepted: Linux reports its errors
/// here on the network (accept(2)). The next one may be there at once.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Room for a number of connections at once.
#[derive(Debug, Clone)]
pub struct Slots {
    semaphore: Arc<Semaphore>,
    size: u32,
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "its drop gives the room back")] OwnedSemaphorePermit);

impl Slots {
    /// Room for `size` connections.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            semaphore: Arc::new(Semaphore::new(size as usize)),
            size,
        }
    }

    /// Waits for room for one connection.
    ///
    /// # Panics
    /// Never: nothing closes the semaphore.
    pub async fn take(&self) -> Slot {
        let permit = Arc::clone(&self.semaphore).acquire_owned().await;
        Slot(permit.expect("the semaphore is never closed"))
    }

    /// Connections at this moment.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.size as usize - self.semaphore.available_permits()
    }

    /// Waits until all connections have ended, at most for `limit`.
    ///
    /// # Errors
    /// So many have not ended.
    pub async fn drained(&self, limit: Duration) -> Result<(), usize> {
        let all = self.semaphore.acquire_many(self.size);
        match timeout(limit, all).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.taken()),
        }
    }

    /// The next connection, when there is room for it.
    pub async fn accept<L: Listen>(&self, listener: &L) -> (L::Stream, L::Peer, Slot) {
        let slot = self.take().await;
        let (stream, peer) = next(listener).await;
        (stream, peer, slot)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Gives the results in order.
    struct Script(Mutex<Vec<io::Result<u8>>>);

    impl Listen for Script {
        type Stream = u8;
        type Peer = ();

        async fn accept(&self) -> io::Result<(u8, ())> {
            let next = self.0.lock().unwrap().pop();
            match next {
                Some(result) => result.map(|number| (number, ())),
                None => std::future::pending().await,
            }
        }
    }

    fn os(code: i32) -> io::Result<u8> {
        Err(io::Error::from_raw_os_error(code))
    }

    #[tokio::test]
    async fn accepting_goes_on_after_errors() {
        let script = vec![
            Ok(7),
            os(libc::ENFILE),
            os(libc::EMFILE),
            os(libc::ECONNABORTED),
        ];
        let start = Instant::now();
        assert_eq!(next(&Script(Mutex::new(script))).await.0, 7);
        // A pause after each of the two that are about this machine.
        assert!(start.elapsed() >= 2 * PAUSE, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_slot_is_room_for_one_connection() {
        let slots = Slots::new(1);
        let script = Script(Mutex::new(vec![Ok(2), Ok(1)]));
        let (first, (), slot) = slots.accept(&script).await;
        assert_eq!((first, slots.taken()), (1, 1));
        let second = timeout(PAUSE, slots.accept(&script));
        assert!(second.await.is_err(), "there was no room");
        assert_eq!(slots.drained(PAUSE).await, Err(1));
        drop(slot);
        let (second, (), slot) = slots.accept(&script).await;
        assert_eq!(second, 2);
        drop(slot);
        assert_eq!(slots.drained(PAUSE).await, Ok(()));
    }
}
