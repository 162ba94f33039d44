// SPDX-License-Identifier: Apache-2.0

//! A packet as one value, in which the type and the payload always match and the payload is never missing. Upstream's
//! programs panic on a packet without its payload; here it is a [`Malformed`] value, which the receiver logs and
//! ignores, like a packet of an unknown type.

use bytes::Bytes;
use thiserror::Error;

use super::schema::{
    CloseDial, CloseRequest, CloseResponse, Data, DialRequest, DialResponse, Drain, Finish, Packet,
    PacketType, Payload, Window,
};

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Requests a connection.
    DialRequest(DialRequest),
    /// Answers a dial request.
    DialResponse(DialResponse),
    /// Requests the end of the connection with this ID.
    CloseRequest(i64),
    /// Reports that a connection has ended.
    CloseResponse(CloseResponse),
    /// Carries data of the connection with this ID.
    Data(i64, Bytes),
    /// Cancels the dial with this ID.
    CloseDial(i64),
    /// Announces that the sending agent is about to exit.
    Drain,
    /// Reports that the sender has closed its direction of the connection with this ID.
    Finish(i64),
    /// Permits this number of further bytes on the connection with this ID.
    Window(i64, u32),
}

/// A packet that cannot be interpreted. The receiver ignores it, and its stream continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The packet has a type that this version does not know.
    #[error("unknown packet type {0}")]
    UnknownType(i32),
    /// The payload is missing or belongs to another type.
    #[error("packet of type {} without its payload", .0.name())]
    MissingPayload(PacketType),
}

impl Malformed {
    /// Returns the type's name in metrics, or its number if it has no name.
    #[must_use]
    pub fn type_name(self) -> String {
        match self {
            Self::UnknownType(number) => number.to_string(),
            Self::MissingPayload(kind) => kind.name().to_owned(),
        }
    }
}

impl Message {
    /// Returns the answer to a dial that failed.
    #[must_use]
    pub fn dial_error(random: i64, error: impl Into<String>) -> Self {
        Self::DialResponse(DialResponse {
            error: error.into(),
            connect_id: 0,
            random,
        })
    }

    /// Returns the end of a connection, with an error unless `error` is empty.
    #[must_use]
    pub fn closed(connect_id: i64, error: impl Into<String>) -> Self {
        Self::CloseResponse(CloseResponse {
            error: error.into(),
            connect_id,
        })
    }

    /// Returns the packet's type.
    #[must_use]
    pub const fn kind(&self) -> PacketType {
        match self {
            Self::DialRequest(_) => PacketType::DialReq,
            Self::DialResponse(_) => PacketType::DialRsp,
            Self::CloseRequest(_) => PacketType::CloseReq,
            Self::CloseResponse(_) => PacketType::CloseRsp,
            Self::Data(..) => PacketType::Data,
            Self::CloseDial(_) => PacketType::DialCls,
            Self::Drain => PacketType::Drain,
            Self::Finish(_) => PacketType::Finish,
            Self::Window(..) => PacketType::Window,
        }
    }

    /// Returns the number of data bytes in the packet.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Data(_, data) => data.len(),
            _ => 0,
        }
    }
}

impl From<Message> for Packet {
    fn from(message: Message) -> Self {
        let kind = message.kind() as i32;
        let payload = match message {
            Message::DialRequest(dial) => Payload::DialRequest(dial),
            Message::DialResponse(dial) => Payload::DialResponse(dial),
            Message::CloseRequest(connect_id) => Payload::CloseRequest(CloseRequest { connect_id }),
            Message::CloseResponse(close) => Payload::CloseResponse(close),
            Message::Data(connect_id, data) => Payload::Data(Data {
                connect_id,
                error: String::new(),
                data,
            }),
            Message::CloseDial(random) => Payload::CloseDial(CloseDial { random }),
            Message::Drain => Payload::Drain(Drain {}),
            Message::Finish(connect_id) => Payload::Finish(Finish { connect_id }),
            Message::Window(connect_id, bytes) => Payload::Window(Window { connect_id, bytes }),
        };
        Self {
            kind,
            payload: Some(payload),
        }
    }
}

impl TryFrom<Packet> for Message {
    type Error = Malformed;

    fn try_from(packet: Packet) -> Result<Self, Malformed> {
        let kind =
            PacketType::try_from(packet.kind).map_err(|_| Malformed::UnknownType(packet.kind))?;
        Ok(match (kind, packet.payload) {
            (PacketType::DialReq, Some(Payload::DialRequest(dial))) => Self::DialRequest(dial),
            (PacketType::DialRsp, Some(Payload::DialResponse(dial))) => Self::DialResponse(dial),
            (PacketType::CloseReq, Some(Payload::CloseRequest(close))) => {
                Self::CloseRequest(close.connect_id)
            }
            (PacketType::CloseRsp, Some(Payload::CloseResponse(close))) => {
                Self::CloseResponse(close)
            }
            (PacketType::Data, Some(Payload::Data(data))) => Self::Data(data.connect_id, data.data),
            (PacketType::DialCls, Some(Payload::CloseDial(close))) => Self::CloseDial(close.random),
            // This packet has no content, so a peer that omits the payload is accepted.
            (PacketType::Drain, _) => Self::Drain,
            (PacketType::Finish, Some(Payload::Finish(finish))) => Self::Finish(finish.connect_id),
            (PacketType::Window, Some(Payload::Window(window))) => {
                Self::Window(window.connect_id, window.bytes)
            }
            _ => return Err(Malformed::MissingPayload(kind)),
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn messages() -> Vec<Message> {
        vec![
            Message::DialRequest(DialRequest {
                protocol: "tcp".into(),
                address: "10.0.0.1:443".into(),
                random: i64::MAX,
            }),
            Message::dial_error(7, "dial tcp 10.0.0.1:443: i/o timeout"),
            Message::CloseRequest(1),
            Message::closed(2, ""),
            Message::Data(3, Bytes::from_static(b"abc")),
            Message::CloseDial(4),
            Message::Drain,
            Message::Finish(5),
            Message::Window(6, 65_536),
        ]
    }

    #[test]
    fn every_message_survives_the_wire() {
        for (message, kind) in messages().into_iter().zip(PacketType::ALL) {
            assert_eq!(message.kind(), kind);
            let bytes = Packet::from(message.clone()).encode_to_vec();
            let packet = Packet::decode(bytes.as_slice()).unwrap();
            assert_eq!(Message::try_from(packet).unwrap(), message);
        }
    }

    /// Checks field numbers and wire types byte by byte, as a peer of upstream encodes them.
    #[test]
    fn bytes_are_those_of_the_proto_files() {
        let wire = |message| Packet::from(message).encode_to_vec();
        assert_eq!(
            wire(Message::DialRequest(DialRequest {
                protocol: "tcp".into(),
                address: "a:1".into(),
                random: 5
            })),
            b"\x12\x0c\x0a\x03tcp\x12\x03a:1\x18\x05"
        );
        assert_eq!(
            wire(Message::DialResponse(DialResponse {
                error: String::new(),
                connect_id: 1,
                random: 5
            })),
            b"\x08\x01\x1a\x04\x10\x01\x18\x05"
        );
        assert_eq!(
            wire(Message::Data(9, Bytes::from_static(b"hi"))),
            b"\x08\x04\x22\x06\x08\x09\x1a\x02hi"
        );
        assert_eq!(wire(Message::CloseRequest(9)), b"\x08\x02\x2a\x02\x08\x09");
        assert_eq!(
            wire(Message::closed(9, "x")),
            b"\x08\x03\x32\x05\x0a\x01x\x10\x09"
        );
        assert_eq!(wire(Message::CloseDial(5)), b"\x08\x05\x3a\x02\x08\x05");
        assert_eq!(wire(Message::Drain), b"\x08\x06\x42\x00");
    }

    /// Checks defect 13 of upstream, whose receivers panic on each of these packets.
    #[test]
    fn a_missing_payload_is_no_message() {
        for kind in PacketType::ALL {
            let packet = Packet {
                kind: kind as i32,
                payload: None,
            };
            let message = Message::try_from(packet);
            if kind == PacketType::Drain {
                assert_eq!(message, Ok(Message::Drain));
            } else {
                assert_eq!(message, Err(Malformed::MissingPayload(kind)));
            }
        }
    }

    #[test]
    fn the_type_decides() {
        let packet = Packet {
            kind: PacketType::CloseReq as i32,
            payload: Some(Payload::CloseDial(CloseDial { random: 1 })),
        };
        let missing = Malformed::MissingPayload(PacketType::CloseReq);
        assert_eq!(Message::try_from(packet), Err(missing));
        let unknown = Packet {
            kind: 99,
            payload: None,
        };
        assert_eq!(Message::try_from(unknown), Err(Malformed::UnknownType(99)));
        assert_eq!(
            Message::try_from(Packet::default()),
            Err(Malformed::MissingPayload(PacketType::DialReq))
        );
    }
}
