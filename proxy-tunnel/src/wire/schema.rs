// SPDX-License-Identifier: Apache-2.0

//! The protobuf messages with the field numbers of upstream's proto files, and this project's two extensions. Only
//! [`super::message`] uses them; it combines the type and the payload into one value.

use bytes::Bytes;

/// The type of a packet. The type determines the meaning of a packet, even if another type's payload is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PacketType {
    /// Requests a connection to a target.
    DialReq = 0,
    /// Answers a [`Self::DialReq`].
    DialRsp = 1,
    /// Requests the end of a connection.
    CloseReq = 2,
    /// Reports that a connection has ended.
    CloseRsp = 3,
    /// Carries data of a connection.
    Data = 4,
    /// Cancels a dial.
    DialCls = 5,
    /// Announces that an agent is about to exit.
    Drain = 6,
    /// Extension: reports that one direction of a connection has ended. Upstream ignores types that it does not know.
    Finish = 1001,
    /// Extension: permits more bytes on a connection.
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

    /// Returns the position in [`Self::ALL`].
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

    /// Returns the name in metrics and logs.
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

/// The payload of a packet.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Payload {
    /// The payload of [`PacketType::DialReq`].
    #[prost(message, tag = "2")]
    DialRequest(DialRequest),
    /// The payload of [`PacketType::DialRsp`].
    #[prost(message, tag = "3")]
    DialResponse(DialResponse),
    /// The payload of [`PacketType::Data`].
    #[prost(message, tag = "4")]
    Data(Data),
    /// The payload of [`PacketType::CloseReq`].
    #[prost(message, tag = "5")]
    CloseRequest(CloseRequest),
    /// The payload of [`PacketType::CloseRsp`].
    #[prost(message, tag = "6")]
    CloseResponse(CloseResponse),
    /// The payload of [`PacketType::DialCls`].
    #[prost(message, tag = "7")]
    CloseDial(CloseDial),
    /// The payload of [`PacketType::Drain`].
    #[prost(message, tag = "8")]
    Drain(Drain),
    /// The payload of [`PacketType::Finish`].
    #[prost(message, tag = "1001")]
    Finish(Finish),
    /// The payload of [`PacketType::Window`].
    #[prost(message, tag = "1002")]
    Window(Window),
}

/// Requests a connection.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DialRequest {
    /// Go's name for the network; in practice always `tcp`.
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// The target as `host:port`.
    #[prost(string, tag = "2")]
    pub address: String,
    /// The dial ID, which the client chooses.
    #[prost(int64, tag = "3")]
    pub random: i64,
}

/// Answers a dial request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DialResponse {
    /// The error; empty if the connection is established.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The connection ID, which the agent chooses; 0 if there is an error.
    #[prost(int64, tag = "2")]
    pub connect_id: i64,
    /// The dial ID of the request.
    #[prost(int64, tag = "3")]
    pub random: i64,
}

/// Requests the end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CloseRequest {
    /// The connection ID.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
}

/// Reports that a connection has ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CloseResponse {
    /// The error; empty if the connection ended regularly.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The connection ID.
    #[prost(int64, tag = "2")]
    pub connect_id: i64,
}

/// Cancels a dial.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CloseDial {
    /// The dial ID.
    #[prost(int64, tag = "1")]
    pub random: i64,
}

/// Announces that an agent is about to exit.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Drain {}

/// Carries data of a connection.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Data {
    /// The connection ID.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
    /// An error, which upstream never sets.
    #[prost(string, tag = "2")]
    pub error: String,
    /// The data.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// Reports that the sender has closed its direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Finish {
    /// The connection ID.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
}

/// Reports that the receiver has taken bytes of a connection, and permits as many more.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Window {
    /// The connection ID.
    #[prost(int64, tag = "1")]
    pub connect_id: i64,
    /// The number of bytes.
    #[prost(uint32, tag = "2")]
    pub bytes: u32,
}
