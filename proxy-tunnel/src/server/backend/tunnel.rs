// SPDX-License-Identifier: Apache-2.0

//! One tunnel as the server sees it: a dial, and its connection. Its frontend takes events from the
//! inbox and sends by the lane; whichever side ends it, it ends once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use super::Backend;
use crate::flow::outbox::Ended;
use crate::flow::{Inbox, Lane, Unacknowledged, WINDOW};
use crate::metrics::server::DialFailure;
use crate::wire::{CloseResponse, DialRequest, DialResponse, Message};

/// The error that a client gets when the agent does not answer in time.
pub const DIAL_TIMEOUT: &str = "timed out waiting for backend dial";

/// Something other than bytes that happens to a tunnel.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The agent has answered the dial.
    Dialed(DialResponse),
    /// The agent has given up the dial of this number.
    DialClosed(i64),
    /// The agent's stream ended before it answered the dial of this number.
    PendingLost(i64),
    /// The target has nothing more to send.
    Finished,
    /// The connection has ended.
    Closed(CloseResponse),
    /// The connection is cut.
    Lost(String),
    /// Something that the frontend's own receiver answers.
    Answer(Message),
    /// The frontend's stream ends, with an error if there is one.
    End(Option<(tonic::Code, String)>),
}

/// One tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// The dial's number, as its client has chosen it.
    pub random: i64,
    /// The number that the agent knows the dial by.
    pub number: i64,
    /// Where it leads.
    pub address: String,
    /// When it was asked for.
    pub started: Instant,
    /// The agent's stream.
    pub backend: Arc<Backend>,
    /// The messages received for it.
    pub inbox: Arc<Inbox<Event>>,
    lane: Lane,
    connect_id: AtomicI64,
    /// Milliseconds from `started` to the agent's answer.
    established: AtomicI64,
    has_asked_to_close: AtomicBool,
    has_ended: AtomicBool,
    unacknowledged: Unacknowledged,
}

impl Tunnel {
    /// A tunnel whose dial is about to be sent.
    #[must_use]
    pub fn new(
        request: &DialRequest,
        number: i64,
        backend: Arc<Backend>,
        lane: Lane,
        inbox: Arc<Inbox<Event>>,
    ) -> Self {
        Self {
            random: request.random,
            number,
            address: request.address.clone(),
            started: Instant::now(),
            backend,
            inbox,
            lane,
            connect_id: AtomicI64::new(0),
            established: AtomicI64::new(0),
            has_asked_to_close: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            unacknowledged: Unacknowledged::default(),
        }
    }

    /// The agent's number for it; 0 before it is established.
    #[must_use]
    pub fn connect_id(&self) -> i64 {
        self.connect_id.load(Ordering::Acquire)
    }

    /// The agent has connected.
    pub fn establish(&self, connect_id: i64) {
        let millis = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.established.store(millis, Ordering::Relaxed);
        self.connect_id.store(connect_id, Ordering::Release);
    }

    /// Waits until bytes may be sent, and says how many.
    ///
    /// # Errors
    /// The agent's stream has ended.
    pub async fn ready(&self) -> Result<usize, Ended> {
        self.lane.ready().await
    }

    /// Sends to the agent.
    ///
    /// # Errors
    /// The agent's stream has ended.
    pub fn send(&self, message: Message) -> Result<(), Ended> {
        self.lane.push(message)
    }

    /// The agent has room for more.
    pub fn grant(&self, bytes: u32) {
        self.lane.grant(bytes);
    }

    /// The frontend has taken so many bytes out of the inbox.
    pub fn taken(&self, bytes: usize) {
        if !self.backend.extensions.window {
            return;
        }
        if let Some(grant) = self.unacknowledged.taken(bytes) {
            // An ended stream needs no window.
            let _ = self
                .backend
                .outbox
                .control(Message::Window(self.connect_id(), grant));
        }
    }

    /// The client asks for the end; the agent's messages are passed on until it confirms.
    ///
    /// # Errors
    /// The agent's stream has ended.
    pub fn ask_to_close(&self) -> Result<(), Ended> {
        if self.has_asked_to_close.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.send(Message::CloseRequest(self.connect_id()))
    }

    /// The client has gone: the tunnel ends in any state. Further calls do nothing.
    pub fn release(self: &Arc<Self>) {
        self.detach();
        self.inbox.close();
    }

    /// Ends the agent's side; the frontend is yet to learn of it.
    pub fn detach(self: &Arc<Self>) {
        if self.backend.forget_pending(self) {
            self.backend
                .shared
                .metrics
                .dial_failed(DialFailure::FrontendClose);
            // Upstream's agent ignores it; its late answer is then closed.
            let _ = self.send(Message::CloseDial(self.number));
        } else if self.backend.forget_established(self) {
            self.ended();
            // An ended stream has no connections.
            let _ = self.ask_to_close();
        }
    }

    /// The agent has not answered in time. True if that is so; false if the answer has just come.
    pub fn expire(&self) -> bool {
        if !self.backend.forget_pending(self) {
            return false;
        }
        self.backend.note_silence();
        self.backend
            .shared
            .metrics
            .dial_failed(DialFailure::BackendDialTimeout);
        // As in `detach`.
        let _ = self.send(Message::CloseDial(self.number));
        true
    }

    /// Whether its connection has ended: nothing that is sent arrives any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Counts its end. Who waits for room waits no longer: the agent grants none any more.
    pub fn ended(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.lane.grant(WINDOW);
        let millis = u64::try_from(self.established.load(Ordering::Relaxed)).unwrap_or_default();
        let lifetime = self
            .started
            .elapsed()
            .saturating_sub(Duration::from_millis(millis));
        self.backend.shared.metrics.ended(lifetime);
    }
}
