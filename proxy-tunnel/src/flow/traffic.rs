// SPDX-License-Identifier: Apache-2.0

//! The traffic of a stream between server and agent, as it is shown to operators.

use super::Outbox;

/// The counters of one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The number of dials without an answer.
    pub pending: usize,
    /// The number of established connections.
    pub established: usize,
    /// The number of connection bytes received since the stream began.
    pub received: u64,
    /// The number of connection bytes sent since the stream began.
    pub sent: u64,
    /// The number of bytes that wait to be sent.
    pub waiting: usize,
}

impl Traffic {
    /// Returns the traffic of a stream with these numbers of dials and connections, which has received `received` bytes
    /// and sends through `outbox`.
    #[must_use]
    pub fn new((pending, established): (usize, usize), received: u64, outbox: &Outbox) -> Self {
        Self {
            pending,
            established,
            received,
            sent: outbox.sent(),
            waiting: outbox.waiting(),
        }
    }
}
