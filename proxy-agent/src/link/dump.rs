// SPDX-License-Identifier: Apache-2.0

//! One route netlink dump, read until its end and trusted only then. What the messages mean is
//! `observe`'s business.
//!
//! rtnetlink's dump requests are not used for this. They leave out a message they cannot decode,
//! they drop `NLM_F_DUMP_INTR` with the header, and they end in the same way whether the kernel
//! said `NLMSG_DONE`, `NLMSG_DONE` with an error, or the connection was lost. An incomplete table
//! would look complete.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// How often a dump is tried before its interruptions are an error.
const ATTEMPTS: u32 = 5;

/// Pause before the first repetition, doubled before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// Room for one read. The kernel fills at most 32 KiB at a time, and only as much as was read at
/// once before.
const READ_SIZE: usize = 64 * 1024;

/// Length of `struct nlmsghdr`.
const HEADER_LEN: u16 = 16;

/// The sequence number of the only request a socket here ever sends.
const SEQUENCE: u32 = 1;

/// Why a dump is not usable.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The socket could not be opened, written or read, or the kernel answered with an error.
    #[error("route netlink failed")]
    Io(#[from] io::Error),
    /// Something in the answer has a length that cannot be.
    #[error("the kernel's answer cannot be read")]
    Malformed(#[from] DecodeError),
    /// What was listed changed during each of the attempts.
    #[error("the list changed while it was read, {ATTEMPTS} times in a row")]
    Interrupted,
}

/// Sends the dump request `kind` with `body` and gives the body of each answer of type `answer` to
/// `each`. A dump that was interrupted is repeated: `restart` then makes `each`'s state empty.
pub async fn dump<S>(
    kind: u16,
    answer: u16,
    body: &[u8],
    state: &mut S,
    restart: impl Fn(&mut S),
    each: impl Fn(&mut S, &[u8]) -> Result<(), DecodeError>,
) -> Result<(), DumpError> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1..=ATTEMPTS {
        restart(state);
        if dump_once(kind, answer, body, &mut |message| each(state, message)).await? {
            return Ok(());
        }
        if attempt < ATTEMPTS {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
    Err(DumpError::Interrupted)
}

/// One attempt, on a socket of its own. False: it was interrupted.
async fn dump_once(
    kind: u16,
    answer: u16,
    body: &[u8],
    each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>,
) -> Result<bool, DumpError> {
    let socket = TokioSocket::new(NETLINK_ROUTE)?;
    let kernel = SocketAddr::new(0, 0);
    let message = request(kind, body);
    let sent = socket.send_to(&message, &kernel).await?;
    if sent != message.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }

    read_all(answer, each, async |datagram| {
        Ok(socket.recv_from(datagram).await?.port_number())
    })
    .await
}

/// Reads datagrams until the dump ends. `receive` returns the port of the sender. False: it was interrupted.
async fn read_all(
    answer: u16,
    each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>,
    mut receive: impl AsyncFnMut(&mut Vec<u8>) -> io::Result<u32>,
) -> Result<bool, DumpError> {
    let mut complete = true;
    let mut datagram = Vec::with_capacity(READ_SIZE);
    loop {
        datagram.clear();
        if receive(&mut datagram).await? != 0 {
            // Any process may send to our socket; only port 0 is the kernel.
            continue;
        }
        if datagram.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let seen = read_datagram(&datagram, answer, each)?;
        complete &= !seen.interrupted;
        if seen.done {
            return Ok(complete);
        }
    }
}

/// What one read told about the dump as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    /// The dump has ended.
    pub(super) done: bool,
    /// What is listed has changed since the dump began.
    pub(super) interrupted: bool,
}

/// Walks through the messages of one read.
pub(super) fn read_datagram(
    mut rest: &[u8],
    answer: u16,
    each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>,
) -> Result<Datagram, DumpError> {
    let mut seen = Datagram {
        done: false,
        interrupted: false,
    };
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        let length = message.length() as usize;
        let payload = &rest[usize::from(HEADER_LEN)..length];
        if message.sequence_number() == SEQUENCE {
            seen.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_DONE => {
                    check_code(payload)?;
                    seen.done = true;
                }
                NLMSG_ERROR => {
                    check_code(payload)?;
                    return Err(DecodeError::from("an acknowledgement instead of a list").into());
                }
                NLMSG_OVERRUN => return Err(io::Error::from_raw_os_error(libc::ENOBUFS).into()),
                kind if kind == answer => each(payload)?,
                _ => {}
            }
        }
        let next = length.next_multiple_of(usize::from(NLMSG_ALIGNTO));
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(seen)
}

/// The error that `NLMSG_DONE` and `NLMSG_ERROR` begin with: a negated errno, or 0.
fn check_code(payload: &[u8]) -> Result<(), DumpError> {
    // An empty NLMSG_DONE is a success.
    let code = payload
        .first_chunk()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code.saturating_neg()).into())
    }
}

/// The request as it goes over the socket.
fn request(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = usize::from(HEADER_LEN) + body.len();
    let mut message = Vec::with_capacity(length);
    let length = u32::try_from(length).expect("a request is a few bytes long");
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: u16 = 16;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = request(kind, payload);
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    fn read(datagram: &[u8]) -> Result<(Datagram, usize), DumpError> {
        let mut count = 0;
        let seen = read_datagram(datagram, ANSWER, &mut |_| {
            count += 1;
            Ok(())
        })?;
        Ok((seen, count))
    }

    #[test]
    fn answers_are_counted_until_done() {
        let datagram = [
            message(ANSWER, 2, SEQUENCE, &[1, 2, 3, 4]),
            message(ANSWER, 2, SEQUENCE + 1, &[1, 2, 3, 4]),
            message(NLMSG_DONE, 2, SEQUENCE, &0_i32.to_ne_bytes()),
        ]
        .concat();
        let (seen, count) = read(&datagram).expect("well formed");
        assert_eq!((seen.done, seen.interrupted, count), (true, false, 1));
    }

    #[test]
    fn an_interruption_is_seen_on_any_message() {
        for kind in [ANSWER, NLMSG_DONE] {
            let datagram = message(kind, 2 | NLM_F_DUMP_INTR, SEQUENCE, &[0; 4]);
            assert!(read(&datagram).expect("well formed").0.interrupted);
        }
    }

    #[test]
    fn a_dump_that_failed_half_way_is_an_error() {
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            let datagram = message(kind, 2, SEQUENCE, &(-libc::ENOMEM).to_ne_bytes());
            let Err(DumpError::Io(error)) = read(&datagram) else {
                panic!("an error code must not be lost");
            };
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        }
    }

    /// What the dump comes to that these datagrams make; behind them the socket fails.
    fn dumped(datagrams: &[Vec<u8>]) -> (Result<bool, DumpError>, usize) {
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
        let answer = |flags| message(ANSWER, flags, SEQUENCE, &[0; 4]);
        let done = |flags| message(NLMSG_DONE, flags, SEQUENCE, &[0; 4]);
        let overrun = message(NLMSG_OVERRUN, 2, SEQUENCE, &[0; 4]);
        let of_another = message(NLMSG_DONE, 2, SEQUENCE + 1, &[0; 4]);
        let complete = dumped(&[answer(2), answer(2), done(2)]);
        assert!(matches!(complete, (Ok(true), 2)), "{complete:?}");
        let interrupted = 2 | NLM_F_DUMP_INTR;
        for datagrams in [
            [answer(interrupted), done(2)],
            [answer(2), done(interrupted)],
        ] {
            let outcome = dumped(&datagrams);
            assert!(matches!(outcome, (Ok(false), 1)), "{outcome:?}");
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

    #[test]
    fn a_truncated_message_is_an_error() {
        let whole = message(ANSWER, 2, SEQUENCE, &[0; 8]);
        for length in 1..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
