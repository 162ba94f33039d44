// SPDX-License-Identifier: Apache-2.0

//! The protobuf messages, field by field as upstream's proto files number them, and our two extensions.
//! Nothing outside of [`super::message`] looks at them: there the type and the payload become one value.

use bytes::Bytes;

/// The kind of a packet. It decides what a packet is, not which payload is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PacketType {
    /// Asks for a connection to a target.
    DialReq = 0,
    /// Answers a [`Self::DialReq`].
    DialRsp = 1,
    /// Asks for the end of a connection.
    CloseReq = 2,
    /// A connection has ended.
    CloseRsp = 3,
    /// Bytes of a connection.
    Data = 4,
    /// A dial is given up.
    DialCls = 5,
    /// An agent is about to leave.
    Drain = 6,
    /// Extension: one direction of a connection has ended. Upstream ignores types that it does not know.
    Finish = 1001,
    /// Extension: more bytes of a connection may be sent.
    Window = 1002,
}

impl PacketType {
    /// All types, in the order of [`Self::index`].
    pub const ALL: [Self; 9] = [
        Self::DialReq,
        Self::DialRsp,
        Self::CloseReq,
        Self::CloseRsp,
        Self::Data,
        Self::DialCls,
        Self::Drain,
        Self::Finish,
        Self::Window,
    ];

    /// Position in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::DialReq => 0,
            Self::DialRsp => 1,
            Self::CloseReq => 2,
            Self::CloseRsp => 3,
            Self::Data => 4,
            Self::DialCls => 5,
            Self::Drain => 6,
            Self::Finish => 7,
            Self::Window => 8,
        }
    }

    /// The name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DialReq => "DIAL_REQ",
            Self::DialRsp => "DIAL_RSP",
            Self::CloseReq => "CLOSE_REQ",
            Self::CloseRsp => "CLOSE_RSP",
            Self::Data => "DATA",
            Self::DialCls => "DIAL_CLS",
            Self::Drain => "DRAIN",
            Self::Finish => "FINISH",
            Self::Window => "WINDOW",
        }
    }
}

/// The message of both services, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Packet {
    /// A [`PacketType`], or a number that this version does not know.
    #[prost(enumeration = "PacketType", tag = "1")]
    pub kind: i32,
    /// The payload of the type; a peer may omit it.
    #[prost(oneof = "Payload", tags = "2, 3, 4, 5, 6, 7, 8, 1001, 1002")]
    pub payload: Option<Payload>,
}

/// The payloads.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Payload {
    /// Of [`PacketType::DialReq`].
    #[prost(message, tag = "2")]
    DialRequest(DialRequest),
    /// Of [`PacketType::DialRsp`].
    #[prost(message, tag = "3")]
    DialResponse(DialResponse),
    /// Of [`PacketType::Data`].
    #[prost(message, tag = "4")]
    Data(Data),
    /// Of [`PacketType::CloseReq`].
    #[prost(message, tag = "5")]
    CloseRequest(CloseRequest),
    /// Of [`PacketType::CloseRsp`].
    #[prost(message, tag = "6")]
    CloseResponse(CloseResponse),
    /// Of [`PacketType::DialCls`].
    #[prost(message, tag = "7")]
    CloseDial(CloseDial),
    /// Of [`PacketType::Drain`].
    #[prost(message, tag = "8")]
    Drain(Drain),
    /// Of [`PacketType::Finish`].
    #[prost(message, tag = "1001")]
    Finish(Finish),
    /// Of [`PacketType::Window`].
    #[prost(message, tag = "1002")]
    Window(Window),
}

/// Asks for a connection.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DialRequest {
    /// Go's name of the network, in practice `tcp`.
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// `host:port`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Number of the dial, chosen by the client.
    #[prost(int64, tag = "3")]
    pub random: i64,
}

/// Answers a dial.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DialResponse {
    /// Empty: the connection is established.
    #[prost(string, tag = "1")]
    pub error: String,
    /// Number of the connection, chosen by the agent; 0 with an error.
    #[prost(int64, tag = "2")]
    pub connect_id: i64,
    /// The request's number.
    #[prost(int64, tag = "3")]
    pub random: i64,
}

/// Asks for the end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CloseRequest {
    /// The connection.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
}

/// A connection has ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CloseResponse {
    /// Empty: it ended as it should.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The connection.
    #[prost(int64, tag = "2")]
    pub connect_id: i64,
}

/// A dial is given up.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CloseDial {
    /// The dial's number.
    #[prost(int64, tag = "1")]
    pub random: i64,
}

/// An agent is about to leave.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Drain {}

/// Bytes of a connection.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Data {
    /// The connection.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
    /// Never used by upstream.
    #[prost(string, tag = "2")]
    pub error: String,
    /// The bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// One direction of a connection has ended: its sender has nothing more to send.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Finish {
    /// The connection.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
}

/// So many bytes of a connection have been taken and may be followed by as many.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Window {
    /// The connection.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
    /// How many.
    #[prost(uint32, tag = "2")]
    pub bytes: u32,
}
