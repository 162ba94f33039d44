// SPDX-License-Identifier: Apache-2.0

//! Encodes messages as the body of a gRPC request or response. Short messages are sent together. Long data is sent
//! without a copy, whereas tonic's own encoder copies all of it.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use prost::Message as _;
use tonic::Status;

use super::data;
use super::message::Message;
use super::schema::Packet;

/// Data of at least this length, in bytes, is not copied behind its header.
const LONG: usize = 4096;

/// An encoder of messages, each with gRPC's message header.
pub trait Encode {
    /// The type of the messages.
    type Message;

    /// Appends a message to `buffer`. Returns the message's last bytes if they are to be sent behind the buffer without
    /// a copy.
    fn encode(&self, message: Self::Message, buffer: &mut BytesMut) -> Option<Bytes>;

    /// The number of encoded bytes, from which on they are sent before further messages are polled.
    fn batch(&self) -> usize;
}

/// An encoder of packets with this batch size, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packets(usize);

/// The encoder for the stream between agent and server, which carries many tunnels.
pub const LINK: Packets = Packets(128 * 1024);

/// The encoder for a stream with one tunnel.
pub const TUNNEL: Packets = Packets(64 * 1024);

impl Encode for Packets {
    type Message = Message;

    fn encode(&self, message: Message, buffer: &mut BytesMut) -> Option<Bytes> {
        match message {
            Message::Data(connect_id, bytes) if bytes.len() >= LONG => {
                data::put_head(connect_id, bytes.len(), buffer);
                Some(bytes)
            }
            message => {
                let packet = Packet::from(message);
                data::put_length(packet.encoded_len(), buffer);
                packet.encode_raw(buffer);
                None
            }
        }
    }

    fn batch(&self) -> usize {
        self.0
    }
}

/// The side of the stream that sends the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A client. A request ends without a status, even after an error.
    Client,
    /// A server. A response ends with a status.
    Server,
}

/// The body that consists of a stream of messages.
#[derive(Debug)]
pub struct Outbound<S, E> {
    messages: S,
    encode: E,
    role: Role,
    /// The encoded messages.
    buffer: BytesMut,
    /// The bytes that follow `buffer` without a copy.
    bytes: Option<Bytes>,
    /// The status with which the messages ended.
    ended: Option<Status>,
    has_ended: bool,
}

impl<S, E> Outbound<S, E> {
    /// Creates the body of a request: the messages up to the first error.
    pub fn request(messages: S, encode: E) -> Self {
        Self::new(messages, encode, Role::Client)
    }

    /// Creates the body of a response: the messages, followed by the status with which they end.
    pub fn response(messages: S, encode: E) -> Self {
        Self::new(messages, encode, Role::Server)
    }

    fn new(messages: S, encode: E, role: Role) -> Self {
        Self {
            messages,
            encode,
            role,
            buffer: BytesMut::new(),
            bytes: None,
            ended: None,
            has_ended: false,
        }
    }
}

impl<S, E> Body for Outbound<S, E>
where
    S: Stream<Item = Result<E::Message, Status>> + Unpin,
    E: Encode + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        if let Some(bytes) = body.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        while body.ended.is_none()
            && body.bytes.is_none()
            && body.buffer.len() < body.encode.batch()
        {
            match Pin::new(&mut body.messages).poll_next(context) {
                Poll::Ready(Some(Ok(message))) => {
                    body.bytes = body.encode.encode(message, &mut body.buffer);
                }
                Poll::Ready(Some(Err(status))) => body.ended = Some(status),
                Poll::Ready(None) => body.ended = Some(Status::ok("")),
                Poll::Pending if body.buffer.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if !body.buffer.is_empty() {
            // The buffer's memory goes with the frame, so an idle stream holds none.
            let written = mem::take(&mut body.buffer).freeze();
            return Poll::Ready(Some(Ok(Frame::data(written))));
        }
        let is_over = mem::replace(&mut body.has_ended, true);
        match (&body.ended, body.role) {
            (Some(status), Role::Server) if !is_over => {
                let mut trailers = HeaderMap::new();
                let added = status.add_header(&mut trailers);
                Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
            }
            _ => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt as _;

    use super::*;

    type Item = Result<Message, Status>;

    /// Returns the lengths of the data frames, and the status code at the end.
    async fn frames(messages: Vec<Item>, role: Role) -> (Vec<usize>, Option<String>) {
        let mut body = Outbound::new(stream::iter(messages), TUNNEL, role);
        let (mut lengths, mut code) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => lengths.push(data.len()),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    code = Some(trailers["grpc-status"].to_str().unwrap().to_owned());
                }
            }
        }
        (lengths, code)
    }

    fn data(length: usize) -> Message {
        Message::Data(1, vec![0; length].into())
    }

    #[tokio::test]
    async fn short_messages_go_together_and_long_bytes_by_themselves() {
        let window = || Message::Window(1, 5);
        let messages = vec![window(), data(9), data(LONG), window(), data(LONG)].into_iter();
        let messages = messages.map(Ok).collect();
        let (lengths, code) = frames(messages, Role::Server).await;
        assert_eq!(lengths.len(), 4, "{lengths:?}");
        assert_eq!((lengths[1], lengths[3]), (LONG, LONG));
        assert_eq!(code.as_deref(), Some("0"));
        // The size of a batch is limited.
        let (lengths, _) =
            frames((0..100).map(|_| Ok(data(LONG - 1))).collect(), Role::Server).await;
        assert!(
            lengths.len() > 4 && lengths.iter().all(|length| *length < 70_000),
            "{lengths:?}"
        );
    }

    #[tokio::test]
    async fn responses_end_with_a_status_and_requests_without() {
        for (role, want) in [(Role::Server, Some("14".to_owned())), (Role::Client, None)] {
            let messages = vec![Ok(data(9)), Err(Status::unavailable("x")), Ok(data(9))];
            let (lengths, code) = frames(messages, role).await;
            assert_eq!((lengths.len(), code), (1, want));
            let (lengths, code) = frames(Vec::new(), role).await;
            assert_eq!((lengths.len(), code.is_some()), (0, role == Role::Server));
        }
    }
}
