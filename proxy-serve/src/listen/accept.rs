// SPDX-License-Identifier: Apache-2.0

//! Accepts a limited number of simultaneous connections, and continues when the kernel has no file descriptor or memory
//! for another one.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::unix;
use crate::reminder::Reminder;

/// The pause after the kernel failed to provide a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket.
pub trait Listen {
    /// A connection.
    type Stream;
    /// The address of the peer.
    type Peer: Debug;

    /// Accepts one connection.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot provide a connection.
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

/// Waits for the next connection. Errors are logged, and the attempts continue.
pub async fn next<L: Listen>(listener: &L) -> (L::Stream, L::Peer) {
    let mut reminder = Reminder::default();
    loop {
        let error = match listener.accept().await {
            Ok(connection) => {
                if reminder.is_used() {
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
        if reminder.count(Instant::now()).is_some() {
            warn!("cannot accept a connection, trying again: {error}");
        }
        sleep(PAUSE).await;
    }
}

/// Returns true if an error concerns only the connection that was to be accepted: Linux reports pending network errors
/// of that connection here (accept(2)). The next connection may be available immediately.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// A limit on the number of simultaneous connections.
#[derive(Debug, Clone)]
pub struct Slots {
    semaphore: Arc<Semaphore>,
    size: u32,
}

/// A slot for one connection, which becomes free when this value is dropped.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "its drop gives the room back")] OwnedSemaphorePermit);

impl Slots {
    /// Creates slots for `size` connections.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self {
            semaphore: Arc::new(Semaphore::new(size as usize)),
            size,
        }
    }

    /// Waits for a free slot and takes it.
    ///
    /// # Panics
    /// Never: nothing closes the semaphore.
    pub async fn take(&self) -> Slot {
        let permit = Arc::clone(&self.semaphore).acquire_owned().await;
        Slot(permit.expect("the semaphore is never closed"))
    }

    /// Returns the current number of connections.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.size as usize - self.semaphore.available_permits()
    }

    /// Waits until all connections have ended, for at most `limit`.
    ///
    /// # Errors
    /// Returns the number of remaining connections if not all have ended.
    pub async fn drained(&self, limit: Duration) -> Result<(), usize> {
        let all = self.semaphore.acquire_many(self.size);
        match timeout(limit, all).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.taken()),
        }
    }

    /// Waits for a free slot, and then for the next connection.
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

    /// A listener that returns the results in order.
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
        // There is a pause after each of the two errors that concern this host.
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
