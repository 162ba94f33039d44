// SPDX-License-Identifier: Apache-2.0

//! One tunnel from the server's point of view: a dial and its connection. The frontend receives events from the inbox
//! and sends through the lane. Either side may end the tunnel; it ends exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use super::Backend;
use crate::flow::outbox::Ended;
use crate::flow::{Inbox, Lane, Unacknowledged, WINDOW};
use crate::metrics::server::DialFailure;
use crate::wire::{CloseResponse, DialRequest, DialResponse, Message};

/// The error that a client gets if the agent does not answer in time.
pub const DIAL_TIMEOUT: &str = "timed out waiting for backend dial";

/// An event of a tunnel other than data.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The agent has answered the dial.
    Dialed(DialResponse),
    /// The agent has cancelled the dial with this ID.
    DialClosed(i64),
    /// The agent's stream ended before the agent answered the dial with this ID.
    PendingLost(i64),
    /// The target has closed its sending side.
    Finished,
    /// The connection has ended.
    Closed(CloseResponse),
    /// The connection is cut.
    Lost(String),
    /// A message that the frontend's own receiver sends to the client.
    Answer(Message),
    /// The frontend's stream ends, with an error if there is one.
    End(Option<(tonic::Code, String)>),
}

/// One tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// The dial ID that the client has chosen.
    pub random: i64,
    /// The dial ID that the agent knows.
    pub number: i64,
    /// The address of the target.
    pub address: String,
    /// The time at which the client requested the dial.
    pub started: Instant,
    /// The agent's stream.
    pub backend: Arc<Backend>,
    /// The messages received for this tunnel.
    pub inbox: Arc<Inbox<Event>>,
    lane: Lane,
    connect_id: AtomicI64,
    /// The time from `started` to the agent's answer, in milliseconds.
    established: AtomicI64,
    has_asked_to_close: AtomicBool,
    has_ended: AtomicBool,
    unacknowledged: Unacknowledged,
}

impl Tunnel {
    /// Creates a tunnel whose dial request is about to be sent.
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

    /// Returns the agent's connection ID; 0 before the connection is established.
    #[must_use]
    pub fn connect_id(&self) -> i64 {
        self.connect_id.load(Ordering::Acquire)
    }

    /// Records that the agent has connected to the target.
    pub fn establish(&self, connect_id: i64) {
        let millis = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.established.store(millis, Ordering::Relaxed);
        self.connect_id.store(connect_id, Ordering::Release);
    }

    /// Waits until data may be sent, and returns how many bytes.
    ///
    /// # Errors
    /// Returns an error if the agent's stream has ended.
    pub async fn ready(&self) -> Result<usize, Ended> {
        self.lane.ready().await
    }

    /// Sends a message to the agent.
    ///
    /// # Errors
    /// Returns an error if the agent's stream has ended.
    pub fn send(&self, message: Message) -> Result<(), Ended> {
        self.lane.push(message)
    }

    /// Records that the agent has room for `bytes` more bytes.
    pub fn grant(&self, bytes: u32) {
        self.lane.grant(bytes);
    }

    /// Records that the frontend has taken `bytes` bytes out of the inbox. Sends a window update once that is worth a
    /// message.
    pub fn taken(&self, bytes: usize) {
        if !self.backend.extensions.window {
            return;
        }
        if let Some(grant) = self.unacknowledged.taken(bytes) {
            // A stream that has ended needs no window.
            let _ = self
                .backend
                .outbox
                .control(Message::Window(self.connect_id(), grant));
        }
    }

    /// Asks the agent to close the connection, on behalf of the client. The agent's messages are still passed on until
    /// it confirms the close.
    ///
    /// # Errors
    /// Returns an error if the agent's stream has ended.
    pub fn ask_to_close(&self) -> Result<(), Ended> {
        if self.has_asked_to_close.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.send(Message::CloseRequest(self.connect_id()))
    }

    /// Ends the tunnel in any state, because the client has disconnected. Further calls do nothing.
    pub fn release(self: &Arc<Self>) {
        self.detach();
        self.inbox.close();
    }

    /// Ends the agent's side of the tunnel; the frontend still has to be told.
    pub fn detach(self: &Arc<Self>) {
        if self.backend.forget_pending(self) {
            self.backend
                .shared
                .metrics
                .dial_failed(DialFailure::FrontendClose);
            // Upstream's agent ignores this message; if it answers the dial later, that connection is then closed.
            let _ = self.send(Message::CloseDial(self.number));
        } else if self.backend.forget_established(self) {
            self.ended();
            // A stream that has ended has no connections.
            let _ = self.ask_to_close();
        }
    }

    /// Ends a dial that the agent has not answered in time. Returns false if the answer has just arrived.
    pub fn expire(&self) -> bool {
        if !self.backend.forget_pending(self) {
            return false;
        }
        self.backend.note_silence();
        self.backend
            .shared
            .metrics
            .dial_failed(DialFailure::BackendDialTimeout);
        // See `detach`.
        let _ = self.send(Message::CloseDial(self.number));
        true
    }

    /// Returns whether the connection has ended, so that data sent on it is lost.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Counts the end of the connection. Also opens the lane's window, so that a task that waits for room continues:
    /// the agent will not grant any more.
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
