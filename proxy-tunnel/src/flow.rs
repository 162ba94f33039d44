// SPDX-License-Identifier: Apache-2.0

//! How tunnels share a stream without waiting for each other: [`outbox`] orders the messages to
//! send, [`inbox`] holds the messages that one tunnel has received, [`budget`] bounds the memory of
//! all inboxes. No task that serves several tunnels ever waits for one of them: a pushed message is
//! accepted or refused at once.

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

/// Bytes that a peer with windows may send on a tunnel before its first bytes are taken. It is also what a
/// tunnel's inbox holds before its stall counts.
pub const WINDOW: u32 = 1024 * 1024;

/// Bytes of one tunnel that wait to be sent before its source is no longer read.
pub const LANE: usize = 256 * 1024;

/// Bytes of all tunnels of a stream that wait to be sent before a source is read only when nothing of it
/// waits.
pub const LINK: usize = 4 * 1024 * 1024;

/// Most bytes that one read from a socket takes, and thus most of one message.
pub const CHUNK: usize = 128 * 1024;

/// The bounds of a tunnel's inbox, from the flags.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that one inbox holds before its stall counts.
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

/// The bytes that one tunnel has taken since its peer was last given room for more.
#[derive(Debug, Default)]
pub struct Unacknowledged(AtomicU32);

impl Unacknowledged {
    /// So many more bytes are taken. By how much the peer's window is to grow, once that is worth a message.
    ///
    /// One task at a time takes the messages that a tunnel has received.
    pub fn taken(&self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let sum = self.0.load(Ordering::Relaxed).saturating_add(bytes);
        let grant = (sum >= WINDOW / 4).then_some(sum);
        self.0
            .store(if grant.is_some() { 0 } else { sum }, Ordering::Relaxed);
        grant
    }
}
