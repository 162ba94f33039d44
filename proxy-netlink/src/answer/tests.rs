// SPDX-License-Identifier: Apache-2.0

//! Tests which datagrams form a complete response.

use super::*;
use crate::wire::request;

/// A message type with content; its value does not matter.
const CONTENT: u16 = 0x0a06;
const SEQUENCE: u32 = 7;

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    request(kind, flags, SEQUENCE, payload)
}

fn end(kind: u16, code: i32) -> Vec<u8> {
    // An error message also contains the header of the request.
    let payload = [&code.to_ne_bytes()[..], &[0; 16]].concat();
    message(kind, 2, &payload[..if kind == NLMSG_DONE { 4 } else { 20 }])
}

/// Returns the outcome of a response that consists of these datagrams, and the number of its messages with content.
fn read(mut answer: Answer, datagrams: &[Vec<u8>]) -> (io::Result<()>, usize) {
    let mut count = 0;
    for datagram in datagrams {
        let each = |_: Message<'_>| {
            count += 1;
            Ok(())
        };
        if answer.read(datagram, each).is_err() {
            return (Err(io::Error::from(io::ErrorKind::InvalidData)), count);
        }
    }
    (answer.end().map_err(io::Error::from), count)
}

fn dump(datagrams: &[Vec<u8>]) -> io::Result<()> {
    read(Answer::to_dump(SEQUENCE), datagrams).0
}

fn content() -> Vec<u8> {
    message(CONTENT, 2, &[2, 0, 0, 0])
}

#[test]
fn a_dump_that_ends_with_done_is_complete() {
    let of_another = request(CONTENT, 2, SEQUENCE + 1, &[0; 4]);
    let datagrams = [
        content(),
        [of_another, content(), end(NLMSG_DONE, 0)].concat(),
    ];
    let (outcome, count) = read(Answer::to_dump(SEQUENCE), &datagrams);
    assert!(outcome.is_ok());
    assert_eq!(count, 2);
    assert!(dump(&[message(NLMSG_DONE, 2, &[])]).is_ok());
}

#[test]
fn a_dump_without_an_end_is_incomplete() {
    let done_of_another = request(NLMSG_DONE, 2, SEQUENCE + 1, &[0; 4]);
    for datagrams in [
        vec![],
        vec![content()],
        vec![content(), done_of_another],
        vec![content(), end(NLMSG_ERROR, 0)],
    ] {
        let error = dump(&datagrams).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
    // The response to a single request may consist of an acknowledgement only.
    let (outcome, _) = read(Answer::to(SEQUENCE), &[content(), end(NLMSG_ERROR, 0)]);
    assert!(outcome.is_ok());
}

#[test]
fn an_interruption_on_any_message_is_reported() {
    let interrupted = |kind| message(kind, 2 | NLM_F_DUMP_INTR, &[2, 0, 0, 0]);
    let done = message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, &[0; 4]);
    for datagrams in [
        vec![interrupted(CONTENT), end(NLMSG_DONE, 0)],
        vec![content(), done],
        vec![content(), end(NLMSG_DONE, -libc::EINTR)],
        vec![end(NLMSG_ERROR, -libc::EAGAIN)],
    ] {
        let error = dump(&datagrams).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
    }
}

#[test]
fn an_error_at_the_end_or_a_lost_part_is_an_error() {
    for kind in [NLMSG_DONE, NLMSG_ERROR] {
        let failed = end(kind, -libc::ENOMEM);
        for datagrams in [
            vec![content(), failed.clone()],
            vec![failed, end(NLMSG_DONE, 0)],
        ] {
            let error = dump(&datagrams).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error}");
        }
    }
    let lost = message(NLMSG_OVERRUN, 2, &[0; 4]);
    let error = dump(&[content(), lost, end(NLMSG_DONE, 0)]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
}

#[test]
fn a_message_that_is_cut_off_is_an_error() {
    let whole = [content(), end(NLMSG_DONE, 0)].concat();
    for length in 1..whole.len() {
        assert!(dump(&[whole[..length].to_vec()]).is_err(), "{length} bytes");
    }
    for payload in [&[][..], &[0; 3]] {
        assert!(dump(&[message(NLMSG_ERROR, 0, payload)]).is_err());
    }
}

#[test]
fn a_caller_that_waits_sees_the_end() {
    let ended = |answer: Answer, datagram: &[u8]| {
        let mut answer = answer;
        answer.read(datagram, |_| Ok(())).expect("well formed");
        answer.has_ended()
    };
    assert!(!ended(Answer::to_dump(SEQUENCE), &content()));
    for last in [
        end(NLMSG_DONE, 0),
        end(NLMSG_ERROR, 0),
        end(NLMSG_ERROR, -libc::ENOENT),
        message(NLMSG_OVERRUN, 2, &[0; 4]),
    ] {
        assert!(ended(Answer::to_dump(SEQUENCE), &last));
    }
}
