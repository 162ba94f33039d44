// SPDX-License-Identifier: Apache-2.0

//! The counters of packets and of stream errors, by segment. Because every packet is counted, each counter is looked up
//! only once.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::Stream;
use prometheus::{IntCounter, IntCounterVec};
use tonic::{Code, Status};

use super::Maker;
use crate::wire::{Malformed, Message, PacketType};

/// The two ends between which a packet is sent, with the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// From a client to the server.
    FromClient,
    /// From the server to a client.
    ToClient,
    /// From an agent to the server.
    FromAgent,
    /// From the server to an agent.
    ToAgent,
}

impl Segment {
    const fn label(self) -> &'static str {
        match self {
            Self::FromClient => "from_client",
            Self::ToClient => "to_client",
            Self::FromAgent => "from_agent",
            Self::ToAgent => "to_agent",
        }
    }
}

/// The two metric families.
#[derive(Debug)]
pub struct Packets {
    counters: IntCounterVec,
    errors: IntCounterVec,
    known: [[OnceLock<IntCounter>; PacketType::ALL.len()]; 4],
}

impl Packets {
    pub(super) fn new(maker: &Maker) -> Self {
        Self {
            counters: maker.counters(
                "stream_packets_total",
                "Packets on gRPC streams and HTTP CONNECT connections, by segment and packet type.",
                &["segment", "packet_type"],
            ),
            errors: maker.counters(
                "stream_errors_total",
                "Errors of gRPC streams, by segment, gRPC code and packet type.",
                &["segment", "code", "packet_type"],
            ),
            known: Default::default(),
        }
    }

    /// Counts a packet.
    pub fn count(&self, segment: Segment, message: &Message) {
        self.count_kind(segment, message.kind());
    }

    /// Counts a packet of this type.
    pub fn count_kind(&self, segment: Segment, kind: PacketType) {
        self.known[segment as usize][kind.index()]
            .get_or_init(|| {
                self.counters
                    .with_label_values(&[segment.label(), kind.name()])
            })
            .inc();
    }

    /// Counts a packet that could not be interpreted.
    pub fn count_malformed(&self, segment: Segment, malformed: Malformed) {
        self.counters
            .with_label_values(&[segment.label(), malformed.type_name().as_str()])
            .inc();
    }

    /// Counts a receive error. The type of the packet is not known.
    pub fn receive_error(&self, segment: Segment, code: Code) {
        self.errors
            .with_label_values(&[segment.label(), go_code(code), "Unknown"])
            .inc();
    }

    /// Counts a send error.
    pub fn send_error(&self, segment: Segment, code: Code, kind: PacketType) {
        self.errors
            .with_label_values(&[segment.label(), go_code(code), kind.name()])
            .inc();
    }
}

/// A stream that counts its messages as they are sent.
#[derive(Debug)]
pub struct Counted<S> {
    /// The wrapped stream.
    pub inner: S,
    /// The counters.
    pub packets: Arc<Packets>,
    /// The segment on which the messages are sent.
    pub segment: Segment,
}

impl<S> Stream for Counted<S>
where
    S: Stream<Item = Result<Message, Status>> + Unpin,
{
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let polled = Pin::new(&mut self.inner).poll_next(context);
        if let Poll::Ready(Some(Ok(message))) = &polled {
            self.packets.count(self.segment, message);
        }
        polled
    }
}

/// Returns the name that Go has for a gRPC code.
#[must_use]
pub const fn go_code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
