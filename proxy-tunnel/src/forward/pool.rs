// SPDX-License-Identifier: Apache-2.0

//! Connections to targets that wait for their next request. Without them each scrape would dial, and shake hands with
//! the server: clients keep a connection to their proxy, and expect that the proxy keeps those behind it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;

/// How long a connection waits: longer than the usual pause between two scrapes.
const KEEP: Duration = Duration::from_secs(90);

/// The body of a request to a target: the client's, or none.
pub type Outgoing = Either<Incoming, Empty<Bytes>>;

/// A connection to a target.
pub type Sender = SendRequest<Outgoing>;

#[derive(Debug)]
struct Idle {
    target: String,
    since: Instant,
    sender: Sender,
}

/// Idle connections, the longest waiting first.
#[derive(Debug)]
pub struct Pool {
    most: usize,
    idle: Mutex<VecDeque<Idle>>,
}

impl Pool {
    /// Room for so many; a further one takes the place of the one that has waited longest.
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

    /// A connection to this target, the one that was used last.
    pub fn take(&self, target: &str) -> Option<Sender> {
        let mut idle = self.idle();
        tidy(&mut idle);
        let at = idle.iter().rposition(|one| one.target == target)?;
        idle.remove(at).map(|one| one.sender)
    }

    /// Keeps a connection that is ready for another request.
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

    /// Closes connections that have waited for too long, and forgets those that have ended. Returns how many are left.
    pub fn tidy(&self) -> usize {
        let mut idle = self.idle();
        tidy(&mut idle);
        idle.len()
    }
}

fn tidy(idle: &mut VecDeque<Idle>) {
    idle.retain(|one| one.since.elapsed() < KEEP && !one.sender.is_closed());
}
