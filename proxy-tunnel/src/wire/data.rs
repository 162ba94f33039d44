// SPDX-License-Identifier: Apache-2.0

//! The bytes that precede the data of a connection on the wire: gRPC's message header, and the protobuf fields before
//! the data of a packet. They are encoded and decoded separately, so that the data need not be copied.

use bytes::{BufMut, Bytes};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};
use tonic::Status;

use super::{MAX_MESSAGE, PacketType};

/// The length of gRPC's message header, in bytes: a flag for compression and the message length.
pub const HEAD: usize = 5;

/// The protobuf keys of the packet's type, of its data payload, and of the payload's connection ID and data.
const TYPE: u8 = 1 << 3;
const PAYLOAD: u8 = 4 << 3 | 2;
const CONNECTION: u8 = 1 << 3;
const BYTES: u8 = 3 << 3 | 2;

/// Returns the message length in gRPC's message header.
///
/// # Errors
/// Returns an error if the message is too long, or if the header is invalid.
pub fn length(head: &[u8]) -> Result<usize, Status> {
    let [flag, length @ ..] = head else {
        return Err(Status::internal("a message without a head"));
    };
    if *flag != 0 {
        return Err(Status::internal(
            "a message is compressed, and the stream names no compression",
        ));
    }
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    if length > MAX_MESSAGE {
        return Err(Status::out_of_range(format!(
            "{length} bytes, the limit is {MAX_MESSAGE}"
        )));
    }
    Ok(length)
}

/// Writes gRPC's message header.
pub fn put_length(length: usize, buffer: &mut impl BufMut) {
    buffer.put_u8(0);
    // Message lengths are far below this limit.
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// Writes everything that precedes the data of a packet with `bytes` bytes of data.
pub fn put_head(connect_id: i64, bytes: usize, buffer: &mut impl BufMut) {
    let (number, bytes) = (connect_id.cast_unsigned(), bytes as u64);
    let length_of = |value| encoded_len_varint(value) as u64;
    let payload = 1 + length_of(number) + 1 + length_of(bytes) + bytes;
    let message = 2 + 1 + length_of(payload) + payload;
    put_length(usize::try_from(message).unwrap_or(usize::MAX), buffer);
    buffer.put_slice(&[TYPE, PacketType::Data as u8, PAYLOAD]);
    encode_varint(payload, buffer);
    buffer.put_u8(CONNECTION);
    encode_varint(number, buffer);
    buffer.put_u8(BYTES);
    encode_varint(bytes, buffer);
}

/// Removes what precedes the data from the start of a message of this length. Returns the connection ID and the number
/// of data bytes that follow. Returns `None`, and removes nothing, if the message is not a data packet, if too little
/// of it has been received, or if its encoding needs a full protobuf decoder.
pub fn take_head(message: &mut Bytes, length: usize) -> Option<(i64, usize)> {
    let mut rest = &message[..];
    let payload = varint(&mut rest, &[TYPE, PacketType::Data as u8, PAYLOAD])?;
    let before = message.len() - rest.len();
    let number = varint(&mut rest, &[CONNECTION])?;
    let bytes = varint(&mut rest, &[BYTES])?;
    let head = message.len() - rest.len();
    let (payload, bytes) = (usize::try_from(payload).ok()?, usize::try_from(bytes).ok()?);
    let is_all = before.checked_add(payload) == Some(length)
        && head.checked_add(bytes) == Some(length)
        && bytes > 0;
    if !is_all {
        return None;
    }
    drop(message.split_to(head));
    Some((number.cast_signed(), bytes))
}

/// Decodes the number behind the bytes `before`.
fn varint(rest: &mut &[u8], before: &[u8]) -> Option<u64> {
    *rest = rest.strip_prefix(before)?;
    decode_varint(rest).ok()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use prost::Message as _;

    use super::super::Message;
    use super::super::schema::Packet;
    use super::*;

    /// Returns the message as prost encodes it, with gRPC's message header.
    fn written(message: Message) -> Bytes {
        let packet = Packet::from(message);
        let mut buffer = BytesMut::new();
        put_length(packet.encoded_len(), &mut buffer);
        packet.encode(&mut buffer).unwrap();
        buffer.freeze()
    }

    #[test]
    fn heads_are_those_of_whole_packets() {
        for connect_id in [1, 127, 128, i64::from(u32::MAX), i64::MAX, -1] {
            for count in [1, 100, 127, 128, 5000, 16_383, 16_384, 131_072] {
                let data = Bytes::from(vec![7; count]);
                let whole = written(Message::Data(connect_id, data.clone()));
                let mut buffer = BytesMut::new();
                put_head(connect_id, count, &mut buffer);
                assert_eq!(whole, [&buffer[..], &data[..]].concat());

                let length = length(&whole[..HEAD]).unwrap();
                assert_eq!(length, whole.len() - HEAD);
                let head = buffer.len() - HEAD;
                for there in 0..head + 2 {
                    let mut message = whole.slice(HEAD..(HEAD + there).min(whole.len()));
                    let before = message.clone();
                    let taken = take_head(&mut message, length);
                    if there < head {
                        assert_eq!((taken, message), (None, before));
                    } else {
                        assert_eq!(taken, Some((connect_id, count)));
                        assert_eq!(message.len(), before.len() - head);
                    }
                }
            }
        }
    }

    #[test]
    fn other_messages_are_left_as_they_are() {
        let whole = written(Message::Data(5, Bytes::from_static(b"abc")));
        let message = whole.slice(HEAD..);
        for (mut message, length) in [
            (message.clone(), message.len() - 1),
            (message.clone(), message.len() + 1),
            (written(Message::Data(5, Bytes::new())).slice(HEAD..), 6),
            (written(Message::closed(5, "abc")).slice(HEAD..), 9),
            (
                Bytes::from_static(
                    b"\x08\x04\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x08\x01\x1a\x01a",
                ),
                18,
            ),
        ] {
            let before = message.clone();
            assert_eq!(take_head(&mut message, length), None);
            assert_eq!(message, before);
        }
    }

    #[test]
    fn heads_that_are_refused() {
        assert_eq!(length(&[0, 0, 64, 0, 0]).ok(), Some(MAX_MESSAGE));
        let code = |head: &[u8]| length(head).unwrap_err().code();
        assert_eq!(code(&[0, 0, 64, 0, 1]), tonic::Code::OutOfRange);
        assert_eq!(code(&[0, 255, 255, 255, 255]), tonic::Code::OutOfRange);
        assert_eq!(code(&[1, 0, 0, 0, 1]), tonic::Code::Internal);
    }
}
