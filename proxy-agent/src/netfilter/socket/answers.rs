// SPDX-License-Identifier: Apache-2.0

//! What the kernel answers to a request, datagram by datagram, and what it comes to at the end. The
//! socket is the parent's business.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};

use super::Error;
use crate::kernel::netlink;

/// What the datagrams have told that were read so far.
#[derive(Debug)]
pub struct Answers {
    /// Of the request.
    sequence: u32,
    interrupted: bool,
    /// The kernel's last word: 0, or an errno, negated.
    code: Option<i32>,
}

impl Answers {
    /// Those to the request with this sequence number.
    pub fn to(sequence: u32) -> Self {
        Self {
            sequence,
            interrupted: false,
            code: None,
        }
    }

    /// Reads one datagram.
    ///
    /// # Errors
    ///
    /// If something in it is no message.
    pub fn read<P: NetlinkDeserializable<Error = DecodeError>>(
        &mut self,
        datagram: &[u8],
        mut each: impl FnMut(P),
    ) -> Result<(), Error> {
        for message in messages_in(datagram) {
            let message = message?;
            if message.header.sequence_number != self.sequence {
                // What is left of an earlier request, whose answer could not be read.
                continue;
            }
            self.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => each(message),
                NetlinkPayload::Done(done) => self.code = Some(done.code),
                NetlinkPayload::Error(error) => self.code = Some(error.raw_code()),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the answers come to when no further one is there.
    ///
    /// # Errors
    ///
    /// Anything but a success that nothing interrupted.
    pub fn end(self, subsystem: &'static str, what: &str) -> Result<(), Error> {
        let what = what.to_owned();
        let interruption = |what| Error::Interrupted {
            subsystem,
            what,
            attempts: 1,
        };
        match self.code {
            Some(0) if self.interrupted => Err(interruption(what)),
            Some(0) => Ok(()),
            Some(code) if code == -libc::EINTR || code == -libc::EAGAIN => Err(interruption(what)),
            Some(code) => Err(Error::Refused {
                subsystem,
                what,
                answer: io::Error::from_raw_os_error(code.saturating_abs()),
            }),
            None => Err(Error::NoAnswer { subsystem, what }),
        }
    }
}

/// The attributes of a message.
pub struct Raw(pub Vec<u8>);

impl NetlinkDeserializable for Raw {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        /// `struct nfgenmsg`.
        const HEADER: usize = 4;
        match payload.get(HEADER..) {
            Some(attributes) => Ok(Self(attributes.to_vec())),
            None => Err(DecodeError::buffer_too_small(payload.len(), HEADER)),
        }
    }
}

/// The messages of one datagram.
pub fn messages_in<P: NetlinkDeserializable<Error = DecodeError>>(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<P>, Error>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = netlink::decode::<P>(rest).map_err(Error::Decode);
        rest = match &message {
            Ok(message) => {
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest.get(length.next_multiple_of(4)..).unwrap_or(&[])
            }
            Err(_) => &[],
        };
        Some(message)
    })
}
