// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets of this crate, which the package `fuzz` runs: functions that accept arbitrary bytes and panic on a
//! fault. Each is defined beside its parser. This module collects them and contains the code that they share.

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner};

use crate::answer::Answer;
pub use crate::events::fuzzing::events;
use crate::netfilter::Family;
pub use crate::netfilter::Message;
pub use crate::netfilter::conntrack::fuzzing::conntrack;
use crate::netfilter::object;
pub use crate::netfilter::table::fuzzing::nf_tables;
pub use crate::route::fuzzing::route;
use crate::wire;

/// Returns the first byte, with which a target selects one of its actions, and the remaining bytes.
#[must_use]
pub fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first()
        .map_or((0, data), |(first, rest)| (*first, rest))
}

/// Type, flags, sequence number and payload of a netlink message.
pub type Plain<'a> = (u16, u16, u32, &'a [u8]);

/// Returns the messages of a netlink datagram, split by code that is independent of the code under test, or `None` if
/// one of them is truncated.
#[must_use]
pub fn messages(datagram: &[u8]) -> Option<Vec<Plain<'_>>> {
    const HEADER: usize = 16;
    let mut messages = Vec::new();
    let mut at = 0;
    while at < datagram.len() {
        let header = datagram.get(at..at + HEADER)?;
        let length = usize::try_from(u32::from_ne_bytes(header[..4].try_into().ok()?)).ok()?;
        let payload = datagram.get(at + HEADER..at.checked_add(length)?)?;
        messages.push((
            u16::from_ne_bytes(header[4..6].try_into().ok()?),
            u16::from_ne_bytes(header[6..8].try_into().ok()?),
            u32::from_ne_bytes(header[8..12].try_into().ok()?),
            payload,
        ));
        at += length.next_multiple_of(4);
    }
    Some(messages)
}

/// Returns the objects in a datagram that is the response to a request with sequence number 1.
///
/// If the reader accepts a response as complete, this function checks that its messages are whole, that its last result
/// is a success, and that no message reports an interrupted dump.
#[must_use]
pub fn answers<M: Message>(datagram: &[u8]) -> Vec<M> {
    let mut found = Vec::new();
    let mut answer = Answer::to(1);
    let mut count = 0;
    let read = answer.read(datagram, |message| {
        count += 1;
        found.extend(object(message)?);
        Ok(())
    });
    if read.is_err() || answer.end().is_err() {
        return found;
    }
    let messages = messages(datagram).expect("what was accepted is whole");
    let ours = || messages.iter().filter(|(_, _, sequence, _)| *sequence == 1);
    let is_end = |kind: u16| [NLMSG_DONE, NLMSG_ERROR].contains(&kind);
    let last = ours().rfind(|(kind, ..)| is_end(*kind));
    let (.., code) = last.expect("without an end it is not complete");
    assert!(code.first_chunk::<4>().is_none_or(|code| *code == [0; 4]));
    assert!(ours().all(|(_, flags, ..)| flags & NLM_F_DUMP_INTR == 0));
    assert!(count <= ours().filter(|(kind, ..)| !is_end(*kind)).count());
    found
}

/// Encodes a message as for the kernel, and decodes it as if the kernel had sent it.
#[must_use]
pub fn echo<M: Message>(family: Family, message: impl Into<NetfilterMessageInner>) -> Option<M> {
    let header = NetfilterHeader::new(family, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let message = wire::messages(&bytes).next()?.expect("it is well formed");
    object(message).expect("it is well formed")
}
