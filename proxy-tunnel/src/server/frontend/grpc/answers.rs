// SPDX-License-Identifier: Apache-2.0

//! The messages to a gRPC client. The transport polls them from the tunnel's inbox as fast as the client reads.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status};

use super::super::HOLD;
use super::Session;
use crate::flow::inbox::Item;
use crate::metrics::packets::Segment;
use crate::metrics::server::Method;
use crate::server::backend::PENDING_LOST;
use crate::server::backend::tunnel::Event;
use crate::wire::Message;

/// The stream of messages to the client.
#[derive(Debug)]
pub struct Answers {
    session: Arc<Session>,
    hold: Option<Pin<Box<Sleep>>>,
    has_ended: bool,
    /// The client was sent a close of its connection when only the target had closed its sending side.
    has_closed: bool,
    /// The status that ends the stream after the message that was just returned.
    end: Option<(Code, String)>,
}

impl Answers {
    /// Creates the messages of a new stream.
    pub(super) const fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            hold: None,
            has_ended: false,
            has_closed: false,
            end: None,
        }
    }

    /// Converts an item of the inbox to the next message, or to the end of the stream. Returns `None` if the client
    /// gets nothing.
    fn convert(&mut self, item: Item<Event>) -> Option<Result<Message, Option<(Code, String)>>> {
        let connect_id = self
            .session
            .tunnel()
            .map_or(0, |tunnel| tunnel.connect_id());
        let event = match item {
            Item::Data(data) => {
                if let Some(tunnel) = self.session.tunnel() {
                    tunnel.taken(data.len());
                }
                return Some(Ok(Message::Data(connect_id, data)));
            }
            Item::Event(event) => event,
        };
        Some(match event {
            Event::Dialed(response) => {
                if response.error.is_empty() && !self.session.extensions.half_close {
                    // This project's client supports half-close and registers its connection before it reads on, so it
                    // needs no hold.
                    self.hold = Some(Box::pin(sleep(HOLD)));
                }
                Ok(Message::DialResponse(response))
            }
            Event::DialClosed(random) => Ok(Message::CloseDial(random)),
            Event::PendingLost(random) => Ok(Message::dial_error(random, PENDING_LOST)),
            Event::Finished if self.session.extensions.half_close => {
                Ok(Message::Finish(connect_id))
            }
            // Upstream's protocol has no half-close; its client knows only the end of both directions.
            Event::Finished => {
                self.session.tunnel()?.detach();
                self.has_closed = true;
                Ok(Message::closed(connect_id, ""))
            }
            // The client was already told of the end.
            Event::Closed(_) if self.has_closed => return None,
            Event::Closed(response) => Ok(Message::CloseResponse(response)),
            Event::Lost(why) => {
                self.end = Some((Code::Unavailable, why.clone()));
                Ok(Message::closed(connect_id, why))
            }
            Event::Answer(message) => Ok(message),
            Event::End(status) => Err(status),
        })
    }
}

impl Stream for Answers {
    type Item = Result<Message, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some((code, text)) = self.end.take() {
            self.has_ended = true;
            return Poll::Ready(Some(Err(Status::new(code, text))));
        }
        if self.has_ended {
            return Poll::Ready(None);
        }
        let session = Arc::clone(&self.session);
        if let Some(hold) = &mut self.hold {
            session.listener.register(context.waker());
            let has_spoken = session.has_spoken.load(Ordering::Acquire);
            if !has_spoken && hold.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.hold = None;
        }
        loop {
            let item = ready!(self.session.inbox.poll_next(context));
            let Some(converted) = self.convert(item) else {
                continue;
            };
            let metrics = self.session.metrics();
            return Poll::Ready(match converted {
                Ok(message) => {
                    metrics.packets.count(Segment::ToClient, &message);
                    Some(Ok(message))
                }
                Err(None) => {
                    self.has_ended = true;
                    None
                }
                Err(Some((code, text))) => {
                    self.has_ended = true;
                    Some(Err(Status::new(code, text)))
                }
            });
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if !self.has_ended {
            self.session.is_cancelled.store(true, Ordering::Release);
        }
        self.session.has_gone.store(true, Ordering::Release);
        if let Some(tunnel) = self.session.tunnel() {
            tunnel.release();
        }
        self.session.inbox.close();
        self.session.gone.notify_one();
        self.session.metrics().grpc(Method::Proxy, -1);
    }
}
