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
    /// The kernel could not deliver a part of the answer.
    overrun: bool,
    /// The kernel's result: 0, or the first errno that it sent, negated.
    code: Option<i32>,
    /// A dump ends with `NLMSG_DONE`; an acknowledgement says nothing about its completeness.
    is_dump: bool,
}

impl Answers {
    /// Those to the request with this sequence number.
    pub fn to(sequence: u32) -> Self {
        Self {
            sequence,
            interrupted: false,
            overrun: false,
            code: None,
            is_dump: false,
        }
    }

    /// Those to a dump request with this sequence number.
    pub fn to_dump(sequence: u32) -> Self {
        Self {
            is_dump: true,
            ..Self::to(sequence)
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
                NetlinkPayload::Done(done) => self.set_code(done.code),
                NetlinkPayload::Error(error) if self.is_dump && error.raw_code() == 0 => {}
                NetlinkPayload::Error(error) => self.set_code(error.raw_code()),
                NetlinkPayload::Overrun(_) => self.overrun = true,
                _ => {}
            }
        }
        Ok(())
    }

    /// A success never hides an error that came before it.
    fn set_code(&mut self, code: i32) {
        if self.code.is_none_or(|known| known == 0) {
            self.code = Some(code);
        }
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
            _ if self.overrun => Err(Error::Io(io::Error::from_raw_os_error(libc::ENOBUFS))),
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN};

    use super::*;

    /// A message of nf_tables; its kind is that of a rule.
    const ANSWER: u16 = 0x0a06;
    const SEQUENCE: u32 = 7;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(SEQUENCE.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    fn end(kind: u16, code: i32) -> Vec<u8> {
        // An error carries the header of the request as well.
        let payload = [&code.to_ne_bytes()[..], &[0; 16]].concat();
        message(kind, 2, &payload[..if kind == NLMSG_DONE { 4 } else { 20 }])
    }

    /// What a dump comes to whose answer is read in these datagrams, and how many objects it has.
    fn read(answers: Answers, datagrams: &[Vec<u8>]) -> (Result<(), Error>, usize) {
        let (mut answers, mut count) = (answers, 0);
        for datagram in datagrams {
            if let Err(error) = answers.read(datagram, |Raw(_)| count += 1) {
                return (Err(error), count);
            }
        }
        (answers.end("nf_tables", "list rules"), count)
    }

    fn dump(datagrams: &[Vec<u8>]) -> Result<(), Error> {
        read(Answers::to_dump(SEQUENCE), datagrams).0
    }

    fn answer() -> Vec<u8> {
        message(ANSWER, 2, &[2, 0, 0, 0])
    }

    #[test]
    fn a_dump_that_ends_with_done_is_complete() {
        let datagrams = [answer(), [answer(), end(NLMSG_DONE, 0)].concat()];
        let (outcome, count) = read(Answers::to_dump(SEQUENCE), &datagrams);
        assert!(outcome.is_ok());
        assert_eq!(count, 2);
    }

    #[test]
    fn a_dump_without_an_end_is_no_dump() {
        for datagrams in [vec![], vec![answer()], vec![answer(), end(NLMSG_ERROR, 0)]] {
            let outcome = dump(&datagrams);
            assert!(
                matches!(outcome, Err(Error::NoAnswer { .. })),
                "{outcome:?}"
            );
        }
        // A single request is answered by an acknowledgement alone.
        let (outcome, _) = read(Answers::to(SEQUENCE), &[answer(), end(NLMSG_ERROR, 0)]);
        assert!(outcome.is_ok());
    }

    #[test]
    fn an_interruption_on_any_message_is_repeated() {
        let interrupted = |kind| message(kind, 2 | NLM_F_DUMP_INTR, &[2, 0, 0, 0]);
        let done = message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, &[0; 4]);
        for datagrams in [
            vec![interrupted(ANSWER), end(NLMSG_DONE, 0)],
            vec![answer(), done],
            vec![answer(), end(NLMSG_DONE, -libc::EINTR)],
            vec![end(NLMSG_ERROR, -libc::EAGAIN)],
        ] {
            let outcome = dump(&datagrams);
            assert!(
                matches!(outcome, Err(Error::Interrupted { .. })),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn an_error_at_the_end_or_a_lost_part_is_an_error() {
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            let failed = end(kind, -libc::ENOMEM);
            for datagrams in [
                vec![answer(), failed.clone()],
                vec![failed, end(NLMSG_DONE, 0)],
            ] {
                let error = dump(&datagrams).unwrap_err();
                assert_eq!(error.errno(), Some(libc::ENOMEM), "{error}");
            }
        }
        let lost = message(NLMSG_OVERRUN, 2, &[0; 4]);
        let outcome = dump(&[answer(), lost, end(NLMSG_DONE, 0)]);
        let Err(Error::Io(error)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error() {
        let whole = [answer(), end(NLMSG_DONE, 0)].concat();
        for length in 1..whole.len() {
            let outcome = dump(&[whole[..length].to_vec()]);
            assert!(outcome.is_err(), "{length} bytes");
        }
    }
}
