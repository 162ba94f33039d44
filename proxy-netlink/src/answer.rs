// SPDX-License-Identifier: Apache-2.0

//! The one reader of the kernel's answers: it follows the datagrams that answer a request and reports at
//! the end whether the answer is complete. Sockets, and what the messages mean, are the callers' part.
//!
//! A dump is complete only if `NLMSG_DONE` with code 0 arrived and no message carried
//! `NLM_F_DUMP_INTR`. The dump streams of the crate rtnetlink do not check that: they leave out a
//! message they cannot decode, they drop the flag with the header, and they end in the same way whether
//! the kernel sent `NLMSG_DONE`, `NLMSG_DONE` with an error, or the connection was lost.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
};

use crate::wire::{Message, messages};

/// Progress of the answer to one request.
#[derive(Debug)]
pub struct Answer {
    /// Of the request.
    sequence: u32,
    interrupted: bool,
    /// The kernel could not deliver a part of the answer.
    overrun: bool,
    acknowledged: bool,
    /// The kernel's result: 0, or the first errno that it sent, negated.
    code: Option<i32>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Single,
    /// It ends with `NLMSG_DONE`; an acknowledgement does not mean that it is complete.
    Dump,
}

/// Why an answer is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The list changed while it was read. A repetition may succeed.
    #[error("the list changed while it was read")]
    Interrupted,
    /// The kernel refused the request.
    #[error(transparent)]
    Refused(io::Error),
    /// The receive buffer had no room for a part of the answer (`ENOBUFS`).
    #[error("a part of the kernel's answer was lost")]
    Lost(#[source] io::Error),
    /// The answer has no end.
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
    /// The answer to the request with this sequence number.
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

    /// The answer to the dump request with this sequence number.
    #[must_use]
    pub fn to_dump(sequence: u32) -> Self {
        Self {
            kind: Kind::Dump,
            ..Self::to(sequence)
        }
    }

    /// Reads one datagram and gives the messages with content to `each`.
    ///
    /// # Errors
    ///
    /// If a message is malformed, or `each` fails.
    pub fn read(
        &mut self,
        datagram: &[u8],
        mut each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        for message in messages(datagram) {
            let message = message?;
            if message.sequence != self.sequence {
                // The rest of the answer to an earlier request, which was not read to its end.
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
            // An empty NLMSG_DONE is a success.
            None if message.kind == NLMSG_DONE && message.payload.is_empty() => 0,
            None => return Err(DecodeError::from("a result without its code")),
        };
        if self.kind == Kind::Dump && message.kind == NLMSG_ERROR && code == 0 {
            self.acknowledged = true;
        } else if self.code.is_none_or(|known| known == 0) {
            // A success never hides an error that came before it.
            self.code = Some(code);
        }
        Ok(())
    }

    /// True if the kernel sends nothing more, for callers that wait for each datagram.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.code.is_some() || self.overrun || self.acknowledged
    }

    /// The result once there is nothing more to read.
    ///
    /// # Errors
    ///
    /// Anything but a success that nothing interrupted.
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
