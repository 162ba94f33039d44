// SPDX-License-Identifier: Apache-2.0

//! Idle connections to targets. Without them each scrape would require a dial and a handshake with the server: clients
//! keep their connection to the proxy open and expect that the proxy does the same behind it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;

/// The time for which an idle connection is kept. It is longer than the usual scrape interval.
const KEEP: Duration = Duration::from_secs(90);

/// The body of a request to a target: the client's body, or an empty one.
pub type Outgoing = Either<Incoming, Empty<Bytes>>;

/// A connection to a target.
pub type Sender = SendRequest<Outgoing>;

#[derive(Debug)]
struct Idle {
    target: String,
    since: Instant,
    sender: Sender,
}

/// The idle connections, ordered by the time at which they became idle, oldest first.
#[derive(Debug)]
pub struct Pool {
    most: usize,
    idle: Mutex<VecDeque<Idle>>,
}

impl Pool {
    /// Creates a pool for at most `most` connections. When it is full, a new connection replaces the oldest one.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            idle: Mutex::new(VecDeque::new()),
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection to this target that was used most recently, if there is one.
    pub fn take(&self, target: &str) -> Option<Sender> {
        let mut idle = self.idle();
        tidy(&mut idle);
        let at = idle.iter().rposition(|one| one.target == target)?;
        idle.remove(at).map(|one| one.sender)
    }

    /// Adds a connection that is ready for another request.
    pub fn put(&self, target: String, sender: Sender) {
        let mut idle = self.idle();
        tidy(&mut idle);
        if idle.len() >= self.most {
            idle.pop_front();
        }
        idle.push_back(Idle {
            target,
            since: Instant::now(),
            sender,
        });
    }

    /// Closes connections that have been idle for too long, removes those that have ended, and returns the number of
    /// those that remain.
    pub fn tidy(&self) -> usize {
        let mut idle = self.idle();
        tidy(&mut idle);
        idle.len()
    }
}

fn tidy(idle: &mut VecDeque<Idle>) {
    idle.retain(|one| one.since.elapsed() < KEEP && !one.sender.is_closed());
}
