// SPDX-License-Identifier: Apache-2.0

//! Performs a dump over route netlink, on its own socket, and repeats it while changes interrupt it.

use std::io;
use std::time::Duration;

use netlink_packet_core::{DecodeError, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::answer::{Answer, Failure};
use crate::wire;

/// The number of interrupted attempts after which a dump fails.
const ATTEMPTS: u32 = 5;

/// The pause before the first repetition. It doubles before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The size of the buffer for one read. The kernel sends at most 32 KiB at a time, and no more than the size of an
/// earlier read.
const READ_SIZE: usize = 64 * 1024;

/// The sequence number of the only request on each socket.
pub(super) const SEQUENCE: u32 = 1;

/// The error for a list that could not be read completely.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the list of {what} from the kernel")]
pub struct Error {
    /// The objects that are listed.
    pub(super) what: &'static str,
    /// The cause.
    #[source]
    pub(super) source: DumpError,
}

/// The reason why a dump cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The socket could not be opened, written or read, or the kernel responded with an error.
    #[error("route netlink failed")]
    Io(#[from] io::Error),
    /// A part of the response has an impossible length.
    #[error("the kernel's answer cannot be read")]
    Malformed(#[from] DecodeError),
    /// The listed objects changed during each of the attempts.
    #[error("the list changed while it was read, {ATTEMPTS} times in a row")]
    Interrupted,
}

/// Sends the dump request `kind` with `body`, and passes the body of each response message of type `answer` to `each`.
/// A dump that was interrupted is repeated with a new `S`.
pub async fn dump<S: Default>(
    kind: u16,
    answer: u16,
    body: &[u8],
    each: impl Fn(&mut S, &[u8]) -> Result<(), DecodeError>,
) -> Result<S, DumpError> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1..=ATTEMPTS {
        let mut state = S::default();
        match dump_once(kind, answer, body, &mut |message| each(&mut state, message)).await {
            Ok(()) => return Ok(state),
            Err(DumpError::Interrupted) if attempt < ATTEMPTS => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(error),
        }
    }
    Err(DumpError::Interrupted)
}

async fn dump_once(
    kind: u16,
    answer: u16,
    body: &[u8],
    each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>,
) -> Result<(), DumpError> {
    let socket = TokioSocket::new(NETLINK_ROUTE)?;
    let kernel = SocketAddr::new(0, 0);
    let message = wire::request(kind, NLM_F_REQUEST | NLM_F_DUMP, SEQUENCE, body);
    let sent = socket.send_to(&message, &kernel).await?;
    if sent != message.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }
    read_all(answer, each, async |datagram| {
        Ok(socket.recv_from(datagram).await?.port_number())
    })
    .await
}

/// Reads datagrams until the dump ends. `receive` returns the port ID of the sender.
async fn read_all(
    kind: u16,
    each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>,
    mut receive: impl AsyncFnMut(&mut Vec<u8>) -> io::Result<u32>,
) -> Result<(), DumpError> {
    let mut answer = Answer::to_dump(SEQUENCE);
    let mut datagram = Vec::with_capacity(READ_SIZE);
    while !answer.has_ended() {
        datagram.clear();
        if receive(&mut datagram).await? != 0 {
            // Any process may send to this socket; only port ID 0 is the kernel.
            continue;
        }
        if datagram.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        read_datagram(&mut answer, &datagram, kind, each)?;
    }
    answer.end().map_err(|failure| match failure {
        Failure::Interrupted => DumpError::Interrupted,
        failure => DumpError::Io(failure.into()),
    })
}

/// Processes one datagram of a response whose content is in messages of type `kind`.
pub(super) fn read_datagram(
    answer: &mut Answer,
    datagram: &[u8],
    kind: u16,
    each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    answer.read(datagram, |message| {
        if message.kind == kind {
            each(message.payload)
        } else {
            Ok(())
        }
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_OVERRUN};

    use super::*;

    const ANSWER: u16 = 16;

    fn message(kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        wire::request(kind, flags, sequence, &[0; 4])
    }

    /// Returns the outcome of a dump that consists of these datagrams, after which the socket fails.
    fn dumped(datagrams: &[Vec<u8>]) -> (Result<(), DumpError>, usize) {
        let (mut rest, mut count) = (datagrams.iter(), 0);
        let mut each = |_: &[u8]| {
            count += 1;
            Ok(())
        };
        let reading = read_all(ANSWER, &mut each, async |datagram| {
            let Some(next) = rest.next() else {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            };
            datagram.extend(next);
            Ok(0)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let outcome = runtime.expect("a runtime").block_on(reading);
        (outcome, count)
    }

    #[test]
    fn only_a_dump_that_is_read_to_its_end_is_complete() {
        let answer = |flags| message(ANSWER, flags, SEQUENCE);
        let done = |flags| message(NLMSG_DONE, flags, SEQUENCE);
        let overrun = message(NLMSG_OVERRUN, 2, SEQUENCE);
        let of_another = message(NLMSG_DONE, 2, SEQUENCE + 1);
        let complete = dumped(&[answer(2), answer(2), done(2)]);
        assert!(matches!(complete, (Ok(()), 2)), "{complete:?}");
        let interrupted = 2 | NLM_F_DUMP_INTR;
        for datagrams in [
            [answer(interrupted), done(2)],
            [answer(2), done(interrupted)],
        ] {
            let outcome = dumped(&datagrams);
            assert!(
                matches!(outcome, (Err(DumpError::Interrupted), 1)),
                "{outcome:?}"
            );
        }
        for datagrams in [
            vec![],
            vec![answer(2)],
            vec![answer(2), Vec::new()],
            vec![answer(2), overrun, done(2)],
            vec![answer(2), of_another],
        ] {
            let (outcome, _) = dumped(&datagrams);
            assert!(matches!(outcome, Err(DumpError::Io(_))), "{outcome:?}");
        }
    }
}
