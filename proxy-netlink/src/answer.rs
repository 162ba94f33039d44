// SPDX-License-Identifier: Apache-2.0

//! The only reader of the kernel's responses: it processes the datagrams that follow a request and finally reports
//! whether the response is complete. The callers provide the sockets and interpret the messages.
//!
//! A dump is complete only if `NLMSG_DONE` with code 0 arrived and no message carried `NLM_F_DUMP_INTR`. The dump
//! streams of the crate rtnetlink do not check that: they omit a message that they cannot decode, they drop the flag
//! with the header, and they end in the same way whether the kernel sent `NLMSG_DONE`, `NLMSG_DONE` with an error, or
//! the connection was lost.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
};

use crate::wire::{Message, messages};

/// The state of reading the response to one request.
#[derive(Debug)]
pub struct Answer {
    /// The sequence number of the request.
    sequence: u32,
    interrupted: bool,
    /// True if the kernel could not deliver a part of the response.
    overrun: bool,
    acknowledged: bool,
    /// The kernel's result: 0, or the negated value of the first errno that it sent.
    code: Option<i32>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Single,
    /// A dump ends with `NLMSG_DONE`. An acknowledgement does not mean that it is complete.
    Dump,
}

/// The reason why a response cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The list changed while it was read. Another attempt may succeed.
    #[error("the list changed while it was read")]
    Interrupted,
    /// The kernel rejected the request.
    #[error(transparent)]
    Refused(io::Error),
    /// The receive buffer had no space for a part of the response (`ENOBUFS`).
    #[error("a part of the kernel's answer was lost")]
    Lost(#[source] io::Error),
    /// The response has no end.
    #[error("the kernel's answer is incomplete")]
    Incomplete,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) | Failure::Lost(error) => error,
            Failure::Interrupted => Self::from(io::ErrorKind::Interrupted),
            Failure::Incomplete => Self::from(io::ErrorKind::UnexpectedEof),
        }
    }
}

impl Answer {
    /// Starts to read the response to the request with this sequence number.
    #[must_use]
    pub fn to(sequence: u32) -> Self {
        Self {
            sequence,
            interrupted: false,
            overrun: false,
            acknowledged: false,
            code: None,
            kind: Kind::Single,
        }
    }

    /// Starts to read the response to the dump request with this sequence number.
    #[must_use]
    pub fn to_dump(sequence: u32) -> Self {
        Self {
            kind: Kind::Dump,
            ..Self::to(sequence)
        }
    }

    /// Processes one datagram and passes the messages with content to `each`.
    ///
    /// # Errors
    ///
    /// Returns an error if a message is malformed or if `each` fails.
    pub fn read(
        &mut self,
        datagram: &[u8],
        mut each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        for message in messages(datagram) {
            let message = message?;
            if message.sequence != self.sequence {
                // This message belongs to an earlier request, whose response was not read completely.
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_NOOP => {}
                NLMSG_DONE | NLMSG_ERROR => self.take_result(&message)?,
                NLMSG_OVERRUN => self.overrun = true,
                _ => each(message)?,
            }
        }
        Ok(())
    }

    fn take_result(&mut self, message: &Message<'_>) -> Result<(), DecodeError> {
        let code = match message.payload.first_chunk() {
            Some(code) => i32::from_ne_bytes(*code),
            // An empty NLMSG_DONE means success.
            None if message.kind == NLMSG_DONE && message.payload.is_empty() => 0,
            None => return Err(DecodeError::from("a result without its code")),
        };
        if self.kind == Kind::Dump && message.kind == NLMSG_ERROR && code == 0 {
            self.acknowledged = true;
        } else if self.code.is_none_or(|known| known == 0) {
            // A success must not hide an error that arrived before it.
            self.code = Some(code);
        }
        Ok(())
    }

    /// Returns true if the kernel sends no further datagrams, for callers that wait for each datagram.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.code.is_some() || self.overrun || self.acknowledged
    }

    /// Returns the result after the last datagram.
    ///
    /// # Errors
    ///
    /// Returns an error unless the kernel reported success and nothing interrupted the dump.
    pub fn end(self) -> Result<(), Failure> {
        match self.code {
            _ if self.overrun => Err(Failure::Lost(io::Error::from_raw_os_error(libc::ENOBUFS))),
            Some(0) if self.interrupted => Err(Failure::Interrupted),
            Some(0) => Ok(()),
            Some(code) if code == -libc::EINTR || code == -libc::EAGAIN => {
                Err(Failure::Interrupted)
            }
            Some(code) => Err(Failure::Refused(io::Error::from_raw_os_error(
                code.saturating_abs(),
            ))),
            None => Err(Failure::Incomplete),
        }
    }
}

#[cfg(test)]
mod tests;
