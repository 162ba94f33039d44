// SPDX-License-Identifier: Apache-2.0

//! Lets tunnels share a stream without blocking each other: [`outbox`] orders the messages to send, [`inbox`] holds the
//! messages that one tunnel has received, and [`budget`] limits the memory of all inboxes. No task that serves several
//! tunnels ever waits for one of them: a push is accepted or refused at once.

pub mod budget;
pub mod inbox;
pub mod outbox;
pub mod pump;
pub mod traffic;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use budget::Budget;
pub use inbox::{Inbox, Overflow};
pub use outbox::{Lane, Outbox, OutboxStream};
pub use traffic::Traffic;

/// How many bytes a peer that supports windows may send on a tunnel before the receiver has taken the first of them. Also
/// how many bytes an inbox may hold before the time limit for a stall starts.
pub const WINDOW: u32 = 1024 * 1024;

/// How many bytes of one tunnel may wait to be sent before its source is no longer read.
pub const LANE: usize = 256 * 1024;

/// How many bytes of all tunnels of a stream may wait to be sent. Beyond that, a source is read only if none of its own
/// bytes are waiting.
pub const LINK: usize = 4 * 1024 * 1024;

/// The maximum number of bytes per read from a socket, and therefore per message.
pub const CHUNK: usize = 128 * 1024;

/// The limits of a tunnel's inbox, from the flags.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many bytes an inbox may hold before the time limit for a stall starts.
    pub tunnel: usize,
    /// How long an inbox may hold more than that.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnel: WINDOW as usize,
            stall: Duration::from_secs(10),
        }
    }
}

/// The number of bytes that a tunnel has taken since its peer's window was last extended.
#[derive(Debug, Default)]
pub struct Unacknowledged(AtomicU32);

impl Unacknowledged {
    /// Adds `bytes` taken bytes. Returns by how much to extend the peer's window, once that is worth a message.
    ///
    /// Only one task at a time may take the messages of a tunnel.
    pub fn taken(&self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let sum = self.0.load(Ordering::Relaxed).saturating_add(bytes);
        let grant = (sum >= WINDOW / 4).then_some(sum);
        self.0
            .store(if grant.is_some() { 0 } else { sum }, Ordering::Relaxed);
        grant
    }
}
