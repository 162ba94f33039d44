// SPDX-License-Identifier: Apache-2.0

//! netlink messages as bytes: splits a datagram into messages and encodes requests.

use std::panic;

use netlink_packet_core::{
    DecodeError, NLMSG_ALIGNTO, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage,
};

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// One message of a datagram, undecoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: the sequence number of the request to which the message responds.
    pub sequence: u32,
    /// `nlmsg_pid`: the port ID of the socket that requested the change, or zero if none did.
    pub port: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
    /// The header and the payload.
    bytes: &'a [u8],
}

impl Message<'_> {
    /// Decodes the message.
    ///
    /// # Errors
    ///
    /// Returns an error if the message is malformed.
    pub fn decode<P>(&self) -> Result<NetlinkMessage<P>, DecodeError>
    where
        P: NetlinkDeserializable<Error = DecodeError>,
    {
        decode(self.bytes)
    }
}

/// Decodes the first message of a datagram.
///
/// netlink-packet-netfilter 0.4 panics on some messages whose nested attributes are truncated or too short (found by
/// fuzzing; the kernel sends none). Such a message is reported as malformed, like any other.
///
/// # Errors
///
/// Returns an error if the message is malformed.
pub fn decode<P>(datagram: &[u8]) -> Result<NetlinkMessage<P>, DecodeError>
where
    P: NetlinkDeserializable<Error = DecodeError>,
{
    panic::catch_unwind(|| NetlinkMessage::<P>::deserialize(datagram))
        .unwrap_or_else(|_| Err("a nested attribute has a wrong length".into()))
}

/// Returns the messages of a datagram. A message with a wrong length is an error and ends the sequence.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, DecodeError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest).map(|header| {
            let length = header.length() as usize;
            Message {
                kind: header.message_type(),
                flags: header.flags(),
                sequence: header.sequence_number(),
                port: header.port_number(),
                payload: &rest[HEADER..length],
                bytes: &rest[..length],
            }
        });
        let next = message.as_ref().map_or(rest.len(), |message| {
            message
                .bytes
                .len()
                .next_multiple_of(usize::from(NLMSG_ALIGNTO))
        });
        rest = rest.get(next..).unwrap_or_default();
        Some(message)
    })
}

/// Encodes a request with this type, flags and sequence number.
///
/// # Panics
///
/// Panics if the body is longer than the length field permits: 4 GiB.
#[must_use]
pub fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("a request is shorter than 4 GiB");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_split_at_multiples_of_four() {
        let mut datagram = request(16, 2, 7, &[1, 2, 3]);
        datagram.push(0);
        datagram.extend(request(3, 0, 8, &[]));
        let found: Result<Vec<_>, _> = messages(&datagram).collect();
        let found = found.expect("well formed");
        let kinds: Vec<_> = found
            .iter()
            .map(|message| (message.kind, message.sequence, message.payload))
            .collect();
        assert_eq!(kinds, [(16, 7, &[1, 2, 3][..]), (3, 8, &[][..])]);
    }

    #[test]
    fn nothing_follows_a_message_with_a_wrong_length() {
        let whole = request(16, 2, 7, &[0; 8]);
        for length in 1..whole.len() {
            let mut found = messages(&whole[..length]);
            assert!(found.next().is_some_and(|message| message.is_err()));
            assert!(found.next().is_none(), "{length} bytes");
        }
        let mut short = whole;
        short[0] = 15;
        assert!(
            messages(&short)
                .next()
                .is_some_and(|message| message.is_err())
        );
    }
}
