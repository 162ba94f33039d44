// SPDX-License-Identifier: Apache-2.0

//! Any answer of netfilter to a request; what the targets of its parts have in common.

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner};

use super::Family;
use super::socket::Message;
use super::socket::answers::{Answers, messages_in};
use crate::fuzzing::messages;

/// What a datagram answers to a request with sequence number 1.
///
/// An answer that is taken for complete is complete: its messages are whole, the last one that tells
/// how it went tells of success, and none says that the dump was interrupted.
pub fn answers<M: Message>(datagram: &[u8]) -> Vec<M> {
    let mut found = Vec::new();
    let mut answers = Answers::to(1);
    let mut count = 0;
    let read = answers.read(datagram, |message: NetfilterMessage| {
        count += 1;
        found.extend(M::of(message.inner));
    });
    if read
        .and_then(|()| answers.end(M::SUBSYSTEM, "answer"))
        .is_err()
    {
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

/// A message as the kernel gets it, read as if the kernel had sent it.
pub fn echo<M: Message>(family: Family, message: impl Into<NetfilterMessageInner>) -> Option<M> {
    let header = NetfilterHeader::new(family, 0, 0);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut read = messages_in::<NetfilterMessage>(&bytes);
    let message = read.next()?.expect("it is well formed");
    match message.payload {
        netlink_packet_core::NetlinkPayload::InnerMessage(message) => M::of(message.inner),
        _ => None,
    }
}
