// SPDX-License-Identifier: Apache-2.0

//! Decodes a peer's packets from the body of a gRPC request or response. tonic's own decoder copies every byte into its
//! own buffer and waits for complete messages; here the data of a tunnel stays in the buffers into which HTTP/2 has
//! read it, and is passed on as it arrives.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};

use super::data::{self, HEAD};
use super::message::{Malformed, Message};
use super::schema::Packet;

/// A packet from a peer. A malformed packet is not an error of the stream: upstream's programs ignore types that they
/// do not know.
pub type Received = Result<Message, Malformed>;

/// Packets shorter than this, in bytes, are decoded only when complete.
const LONG: usize = 4096;

/// How the stream ends if the trailers contain no status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    /// A response with this HTTP status.
    Response(StatusCode),
    /// A response whose headers already contain the gRPC status.
    Ended,
}

/// What the reader expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// A message header.
    Head,
    /// A message of this length.
    Message(usize),
    /// The data of a connection.
    Bytes {
        connect_id: i64,
        left: usize,
        /// An earlier part of the same packet has been returned.
        has_begun: bool,
    },
    /// Nothing more.
    End,
}

/// The packets of one stream. A packet with data may be returned in several parts, each as a message.
pub struct Inbound {
    // The mutex is never locked; it makes this type `Sync`.
    body: Mutex<Body>,
    direction: Direction,
    reader: Reader,
    trailers: Option<HeaderMap>,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("direction", &self.direction)
            .finish_non_exhaustive()
    }
}

impl Inbound {
    /// Reads the packets of a request.
    #[must_use]
    pub fn of_request<B>(body: B) -> Self
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Self::new(body, Direction::Request)
    }

    /// Reads the packets of a response with these headers.
    ///
    /// # Errors
    /// Returns the status with which the peer refused the stream.
    pub fn of_response<B>(body: B, status: StatusCode, headers: &HeaderMap) -> Result<Self, Status>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Ok(match Status::from_header_map(headers) {
            None => Self::new(body, Direction::Response(status)),
            Some(status) if status.code() == Code::Ok => Self::new(body, Direction::Ended),
            Some(status) => return Err(status),
        })
    }

    fn new<B>(body: B, direction: Direction) -> Self
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let body = body.map_err(|error| Status::from_error(error.into()));
        Self {
            body: Mutex::new(Body::new(body)),
            direction,
            reader: Reader::default(),
            trailers: None,
        }
    }

    /// Returns the next packet, or a part of one; returns `None` at the regular end.
    ///
    /// # Errors
    /// Returns an error if the stream failed, or the status with which the peer ended it. No packets follow.
    pub async fn message(&mut self) -> Result<Option<Received>, Status> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context))
            .await
            .transpose()
    }

    /// Returns whether the last message was another part of the packet before it.
    #[must_use]
    pub const fn has_continued(&self) -> bool {
        self.reader.has_continued
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Received>, Status>> {
        loop {
            if let Some(received) = self.reader.read()? {
                return Poll::Ready(Ok(Some(received)));
            }
            let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
            match ready!(Pin::new(body).poll_frame(context)).transpose()? {
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.reader.chunk = data,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        return Poll::Ready(self.ended().map(|()| None));
                    }
                },
                None if self.reader.is_within() => {
                    return Poll::Ready(Err(Status::internal(
                        "the stream ends in the middle of a message",
                    )));
                }
                None => return Poll::Ready(self.ended().map(|()| None)),
            }
        }
    }

    /// Returns how the stream ended.
    fn ended(&mut self) -> Result<(), Status> {
        let Direction::Response(http) = self.direction else {
            return Ok(());
        };
        let status = self.trailers.take();
        match status.as_ref().and_then(Status::from_header_map) {
            Some(status) if status.code() == Code::Ok => Ok(()),
            Some(status) => Err(status),
            // The server ended the stream without a status.
            None if http == StatusCode::OK => Ok(()),
            None => Err(Status::new(
                code(http),
                format!("no status of gRPC; HTTP's is {http}"),
            )),
        }
    }
}

/// Returns gRPC's status code for an HTTP response that does not come from gRPC.
const fn code(http: StatusCode) -> Code {
    match http {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    }
}

impl Stream for Inbound {
    type Item = Result<Received, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let inbound = self.get_mut();
        if inbound.reader.next == Next::End {
            return Poll::Ready(None);
        }
        let polled = ready!(inbound.poll(context)).transpose();
        if !matches!(polled, Some(Ok(_))) {
            inbound.reader = Reader::ended();
        }
        Poll::Ready(polled)
    }
}

/// Finds the packets in a byte stream, independently of the sizes of the reads.
#[derive(Debug)]
pub(crate) struct Reader {
    next: Next,
    /// The received bytes that are not decoded yet.
    pub(crate) chunk: Bytes,
    /// The start of a header or message that is still incomplete.
    held: BytesMut,
    has_continued: bool,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            next: Next::Head,
            chunk: Bytes::new(),
            held: BytesMut::new(),
            has_continued: false,
        }
    }
}

impl Reader {
    fn ended() -> Self {
        Self {
            next: Next::End,
            ..Self::default()
        }
    }

    /// Returns whether a message has begun and is still incomplete.
    pub(crate) fn is_within(&self) -> bool {
        self.next != Next::Head || !self.held.is_empty() || !self.chunk.is_empty()
    }

    /// Returns the next packet, or a part of one, if enough of it was received.
    pub(crate) fn read(&mut self) -> Result<Option<Received>, Status> {
        loop {
            match self.next {
                Next::Head => {
                    let Some(head) = self.take(HEAD) else {
                        return Ok(None);
                    };
                    self.next = Next::Message(data::length(&head)?);
                }
                Next::Message(length) => {
                    if self.begins_bytes(length) {
                        continue;
                    }
                    let Some(message) = self.take(length) else {
                        return Ok(None);
                    };
                    self.next = Next::Head;
                    self.has_continued = false;
                    let packet = Packet::decode(message).map_err(|error| {
                        Status::internal(format!("a message is no packet: {error}"))
                    })?;
                    return Ok(Some(Message::try_from(packet)));
                }
                Next::Bytes {
                    connect_id,
                    left,
                    has_begun,
                } => {
                    if self.chunk.is_empty() {
                        return Ok(None);
                    }
                    let bytes = self.chunk.split_to(left.min(self.chunk.len()));
                    self.has_continued = has_begun;
                    self.next = if bytes.len() == left {
                        Next::Head
                    } else {
                        Next::Bytes {
                            connect_id,
                            left: left - bytes.len(),
                            has_begun: true,
                        }
                    };
                    return Ok(Some(Ok(Message::Data(connect_id, bytes))));
                }
                Next::End => return Ok(None),
            }
        }
    }

    /// Returns true for a long data packet whose header is complete and whose end is missing. Its data is read next.
    fn begins_bytes(&mut self, length: usize) -> bool {
        if length < LONG || !self.held.is_empty() || self.chunk.len() >= length {
            return false;
        }
        let Some((connect_id, left)) = data::take_head(&mut self.chunk, length) else {
            return false;
        };
        self.next = Next::Bytes {
            connect_id,
            left,
            has_begun: false,
        };
        true
    }

    /// Returns `length` bytes if they were received. Otherwise keeps the received part in `held`.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.held.is_empty() && self.chunk.len() >= length {
            return Some(self.chunk.split_to(length));
        }
        let missing = length - self.held.len();
        self.held.reserve(missing);
        let step = missing.min(self.chunk.len());
        self.held.extend_from_slice(&self.chunk.split_to(step));
        // The buffer's memory goes with the bytes, so an idle stream holds none.
        (step == missing).then(|| mem::take(&mut self.held).freeze())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::super::{CloseResponse, DialRequest};
    use super::*;
    use crate::wire::outbound::{Encode as _, LINK};

    fn messages() -> Vec<Message> {
        let bytes = |length: usize| -> Bytes {
            let values = (0..length).map(|at| u8::try_from(at % 251).unwrap());
            values.collect()
        };
        vec![
            Message::DialRequest(DialRequest {
                protocol: "tcp".into(),
                address: "a:1".into(),
                random: 7,
            }),
            Message::Data(1, bytes(3)),
            Message::Data(i64::MAX, bytes(LONG)),
            Message::Window(1, 5),
            Message::Data(2, bytes(100_000)),
            Message::Data(2, Bytes::new()),
            Message::CloseResponse(CloseResponse {
                error: "x".repeat(10_000),
                connect_id: 3,
            }),
        ]
    }

    /// Returns all messages that the reader finds, with the parts of a packet joined.
    fn read(wire: &Bytes, step: usize) -> Vec<Message> {
        let mut reader = Reader::default();
        let mut found = Vec::new();
        for start in (0..wire.len()).step_by(step) {
            reader.chunk = wire.slice(start..(start + step).min(wire.len()));
            while let Some(received) = reader.read().unwrap() {
                let message = received.unwrap();
                if !reader.has_continued {
                    found.push(message);
                    continue;
                }
                let (Message::Data(id, more), Some(Message::Data(last, data))) =
                    (message, found.last_mut())
                else {
                    panic!("only bytes come in parts");
                };
                assert_eq!(id, *last);
                *data = [&data[..], &more[..]].concat().into();
            }
        }
        assert!(!reader.is_within());
        found
    }

    #[test]
    fn packets_are_found_however_they_are_cut() {
        let mut wire = BytesMut::new();
        for message in messages() {
            if let Some(bytes) = LINK.encode(message, &mut wire) {
                wire.extend_from_slice(&bytes);
            }
        }
        let wire = wire.freeze();
        for step in [1, 2, 5, 17, 1000, 4095, 16_384, usize::MAX >> 1] {
            assert_eq!(read(&wire, step), messages(), "{step}");
        }
    }

    #[test]
    fn bytes_are_not_copied() {
        let data = Bytes::from(vec![7; 2 * LONG]);
        let mut head = BytesMut::new();
        let bytes = LINK.encode(Message::Data(9, data.clone()), &mut head);
        assert_eq!(bytes.map(|bytes| bytes.as_ptr()), Some(data.as_ptr()));
        let mut reader = Reader {
            chunk: head.freeze(),
            ..Reader::default()
        };
        assert!(reader.read().unwrap().is_none());
        for (range, has_continued) in [(0..LONG, false), (LONG..2 * LONG, true)] {
            reader.chunk = data.slice(range.clone());
            let Some(Ok(Message::Data(9, part))) = reader.read().unwrap() else {
                panic!("no bytes");
            };
            assert_eq!(part.as_ptr(), data[range].as_ptr());
            assert_eq!(reader.has_continued, has_continued);
        }
        assert!(!reader.is_within());
    }

    /// Returns how a response with these trailers ends.
    async fn end(http: StatusCode, headers: &[(&'static str, &'static str)]) -> Result<(), Code> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let frames = futures_util::stream::iter([Ok::<_, Status>(Frame::trailers(headers))]);
        let mut inbound =
            Inbound::of_response(StreamBody::new(frames), http, &HeaderMap::new()).unwrap();
        let ended = inbound.message().await;
        assert!(matches!(inbound.message().await, Ok(None)), "it goes on");
        ended
            .map(|end| assert!(end.is_none()))
            .map_err(|status| status.code())
    }

    #[tokio::test]
    async fn the_status_at_the_end_counts() {
        let ok = StatusCode::OK;
        assert_eq!(end(ok, &[("grpc-status", "0")]).await, Ok(()));
        assert_eq!(end(ok, &[]).await, Ok(()));
        assert_eq!(
            end(ok, &[("grpc-status", "14")]).await,
            Err(Code::Unavailable)
        );
        let not_found = StatusCode::NOT_FOUND;
        assert_eq!(end(not_found, &[]).await, Err(Code::Unimplemented));
    }

    #[tokio::test]
    async fn an_end_within_a_message_is_an_error() {
        for part in [&b"\0"[..], b"\0\0\0\0\x02", b"\0\0\0\0\x02\x08"] {
            let mut inbound = Inbound::of_request(Full::new(Bytes::from_static(part)));
            assert_eq!(inbound.message().await.unwrap_err().code(), Code::Internal);
            assert!(matches!(inbound.message().await, Ok(None)));
        }
    }

    #[test]
    fn a_refusal_is_in_the_head() {
        let head = |code: &str| {
            let headers =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
            let body = Full::new(Bytes::new());
            let inbound = Inbound::of_response(body, StatusCode::OK, &headers);
            inbound.map(drop).map_err(|status| status.code())
        };
        assert_eq!(head("7"), Err(Code::PermissionDenied));
        assert_eq!(head("0"), Ok(()));
    }
}
