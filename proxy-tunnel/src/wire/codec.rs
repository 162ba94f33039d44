// SPDX-License-Identifier: Apache-2.0

//! tonic's codec for packets. Sizes are chosen by the kind of stream: one that carries many tunnels
//! batches more, one that carries a single tunnel must be cheap while it is idle.

use prost::Message as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::message::{Malformed, Message};
use super::schema::Packet;

/// What comes from a peer. Malformed packets are not errors of the stream: upstream's parties ignore types
/// that they do not know.
pub type Received = Result<Message, Malformed>;

/// The codec, with its buffer's first size and the size from which on a batch is sent, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct PacketCodec {
    buffer: usize,
    batch: usize,
}

/// For the stream between agent and server.
pub const LINK: PacketCodec = PacketCodec {
    buffer: 16 * 1024,
    batch: 128 * 1024,
};

/// For a stream with one tunnel.
pub const TUNNEL: PacketCodec = PacketCodec {
    buffer: 256,
    batch: 64 * 1024,
};

impl PacketCodec {
    const fn settings(self) -> (usize, usize) {
        (self.buffer, self.batch)
    }
}

impl Codec for PacketCodec {
    type Encode = Message;
    type Decode = Received;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for PacketCodec {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Packet::from(message)
            .encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        let (buffer, batch) = self.settings();
        BufferSettings::new(buffer, batch)
    }
}

impl Decoder for PacketCodec {
    type Item = Received;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Received>, Status> {
        let packet = Packet::decode(buffer)
            .map_err(|error| Status::internal(format!("a message is no packet: {error}")))?;
        Ok(Some(Message::try_from(packet)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        let (buffer, batch) = self.settings();
        BufferSettings::new(buffer, batch)
    }
}
