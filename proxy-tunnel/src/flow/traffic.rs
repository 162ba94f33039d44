// SPDX-License-Identifier: Apache-2.0

//! What goes through one stream between server and agent, for people who look at either.

use super::Outbox;

/// The numbers of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Dials without an answer.
    pub pending: usize,
    /// Connections that are established.
    pub established: usize,
    /// Bytes of connections that were received, since the stream began.
    pub received: u64,
    /// Bytes of connections that were sent, since the stream began.
    pub sent: u64,
    /// Bytes that wait to be sent.
    pub waiting: usize,
}

impl Traffic {
    /// Of a stream with these dials and connections, which has received so many bytes and sends by `outbox`.
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
