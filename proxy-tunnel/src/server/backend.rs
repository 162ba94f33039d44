// SPDX-License-Identifier: Apache-2.0

//! One stream of an agent, and the tunnels that go through it. [`Backend::receive`] is called by the task that reads
//! the stream and never waits: messages for a tunnel go into its inbox.

pub mod tunnel;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, error, info};

use self::tunnel::{Event, Tunnel};
use super::given_up::GivenUp;
use crate::client::Mode;
use crate::flow::{Budget, Inbox, Limits, Outbox, Traffic, WINDOW};
use crate::identifiers::Identifiers;
use crate::metrics::server::{DialFailure, Method, ServerMetrics};
use crate::wire::metadata::Extensions;
use crate::wire::{DialRequest, DialResponse, Message};

/// The error that a client gets when the agent's stream ends before its answer.
pub const PENDING_LOST: &str = "Backend context error: context canceled";

/// The error that a client gets when the agent's stream ends under an established connection.
pub const ESTABLISHED_LOST: &str = "the agent's stream ended, the connection is cut";

/// How long an agent that has left a dial without an answer is avoided, unless something comes from it before. Then it
/// gets another one: an agent of ours that was suspended does not answer a dial that was given up meanwhile.
const SUSPICION: Duration = Duration::from_secs(30);

/// The error that a client gets for an answer that is neither a connection nor an error.
const NO_NUMBER: &str = "the agent's answer has no connection";

/// State that all streams of agents share.
#[derive(Debug)]
pub struct Shared {
    /// The counters.
    pub metrics: Arc<ServerMetrics>,
    /// The memory for all inboxes.
    pub budget: Arc<Budget>,
    /// The bounds of one inbox.
    pub limits: Limits,
}

impl Shared {
    /// With defaults, for tests.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn for_tests() -> Self {
        Self {
            metrics: ServerMetrics::new(),
            budget: Arc::new(Budget::new(64 << 20)),
            limits: Limits::default(),
        }
    }

    /// An inbox for a tunnel of a client that speaks like this.
    #[must_use]
    pub fn inbox(&self, mode: Mode) -> Inbox<Event> {
        let queues = match mode {
            Mode::Grpc => None,
            Mode::HttpConnect => Some(self.metrics.full_queues.clone()),
        };
        let full = [Some(self.metrics.full(Method::Connect)), queues];
        Inbox::new(Arc::clone(&self.budget), self.limits, full)
    }
}

#[derive(Debug, Default)]
struct Table {
    is_lost: bool,
    /// By the number that the agent knows the dial by.
    pending: HashMap<i64, Arc<Tunnel>>,
    given_up: GivenUp,
    established: HashMap<i64, Arc<Tunnel>>,
    /// Closed here, and the agent has not yet confirmed: its messages for them are dropped.
    closing: HashSet<i64>,
}

/// Connections that wait for the agent's confirmation at most. Only an agent that means harm leaves so many without it:
/// each of its messages for others is answered by a request to close.
const MOST_CLOSING: usize = 65_536;

impl Table {
    fn note_closing(&mut self, connect_id: i64) {
        if self.closing.len() < MOST_CLOSING {
            self.closing.insert(connect_id);
        }
    }

    /// A number for a dial: the client's, unless the agent's answer to another dial may carry it. Clients choose their
    /// numbers without each other, and some choose the same (Go before 1.20 has every process draw the same ones).
    fn dial_number(&mut self, wanted: i64) -> i64 {
        let now = Instant::now();
        let mut number = wanted;
        while self.pending.contains_key(&number) || self.given_up.contains(number, now) {
            number = fastrand::i64(1..);
        }
        number
    }
}

/// One stream of an agent.
#[derive(Debug)]
pub struct Backend {
    /// The agent's name; several streams may have the same.
    pub agent_id: String,
    /// The destinations that the agent can reach.
    pub identifiers: Identifiers,
    /// The queue of messages to the agent.
    pub outbox: Arc<Outbox>,
    /// The extensions of upstream's protocol that the agent supports.
    pub extensions: Extensions,
    /// State that all streams share.
    pub shared: Arc<Shared>,
    is_draining: AtomicBool,
    /// A dial has had no answer in time, and nothing has come from the agent since.
    is_silent: AtomicBool,
    /// Bytes of tunnels that have come from it.
    received: AtomicU64,
    table: Mutex<Table>,
}

/// A dial does not even begin: the agent's stream has just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{PENDING_LOST}")]
pub struct DialRefused;

impl Backend {
    /// A new stream.
    #[must_use]
    pub fn new(
        agent_id: String,
        identifiers: Identifiers,
        extensions: Extensions,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        Arc::new(Self {
            agent_id,
            identifiers,
            outbox: Outbox::new(),
            extensions,
            shared,
            is_draining: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            received: AtomicU64::new(0),
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while it is held leaves maps that are consistent.
        self.table
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the agent is about to leave.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// How congested it is: whether it is silent, what waits to be sent to it, and how many dials it has not answered.
    #[must_use]
    pub fn load(&self) -> (bool, usize, usize) {
        // Small amounts are on their way, not congestion.
        let waiting = self.outbox.waiting() / (64 * 1024);
        let table = self.table();
        let is_silent = self.is_silent.load(Ordering::Relaxed)
            && table.given_up.is_recent(SUSPICION, Instant::now());
        (is_silent, waiting, table.pending.len())
    }

    /// What goes through it.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let table = self.table();
        let (pending, established) = (table.pending.len(), table.established.len());
        drop(table);
        let received = self.received.load(Ordering::Relaxed);
        Traffic::new((pending, established), received, &self.outbox)
    }

    /// The agent has left a dial without an answer for as long as it may.
    pub fn note_silence(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Asks the agent for a connection. The outcome is added to `inbox`.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn dial(
        self: &Arc<Self>,
        request: DialRequest,
        inbox: Arc<Inbox<Event>>,
    ) -> Result<Arc<Tunnel>, DialRefused> {
        let window = self.extensions.window.then_some(WINDOW);
        let lane = self.outbox.lane(window);
        let mut table = self.table();
        if table.is_lost {
            return Err(DialRefused);
        }
        let number = table.dial_number(request.random);
        let tunnel = Tunnel::new(&request, number, Arc::clone(self), lane, inbox);
        let tunnel = Arc::new(tunnel);
        table.pending.insert(number, Arc::clone(&tunnel));
        drop(table);
        if number != request.random {
            debug!(
                dialID = request.random,
                agentDialID = number,
                "the agent may know another dial by this number and gets a number of the server's"
            );
        }
        self.shared.metrics.pending(1);
        let asked = Message::DialRequest(DialRequest {
            random: number,
            ..request
        });
        if tunnel.send(asked).is_err() {
            // The transport has just gone; its reader will notice too.
            self.forget_pending(&tunnel);
            return Err(DialRefused);
        }
        Ok(tunnel)
    }

    /// Removes a pending dial; true if it was still pending.
    pub fn forget_pending(&self, tunnel: &Tunnel) -> bool {
        let number = tunnel.number;
        let mut table = self.table();
        // A number that has been answered may be another dial's.
        let is_own = |one: &Arc<Tunnel>| std::ptr::eq(Arc::as_ptr(one), tunnel);
        let removed = table.pending.get(&number).is_some_and(is_own);
        if removed {
            table.pending.remove(&number);
            table.given_up.note(number, Instant::now());
        }
        drop(table);
        if removed {
            self.shared.metrics.pending(-1);
        }
        removed
    }

    /// Removes an established connection whose end the agent has yet to confirm; true if it was there.
    pub fn forget_established(&self, tunnel: &Arc<Tunnel>) -> bool {
        let connect_id = tunnel.connect_id();
        let mut table = self.table();
        match table.established.entry(connect_id) {
            Entry::Occupied(entry) if Arc::ptr_eq(entry.get(), tunnel) => {
                entry.remove();
                table.note_closing(connect_id);
                true
            }
            _ => false,
        }
    }

    /// Asks the agent to close a connection that has no client. It is never one that a client has named: that may be
    /// another client's, also one whose dial the agent's answer has not reached yet.
    fn close_unknown(&self, connect_id: i64) {
        // An ended stream has no connections.
        let _ = self.outbox.control(Message::CloseRequest(connect_id));
    }

    /// As [`Self::close_unknown`], for one that the agent has: its target may send on until the agent takes the
    /// request. An agent that answers a dial twice names a connection that has a client.
    fn close_stray(&self, connect_id: i64) {
        let mut table = self.table();
        if table.established.contains_key(&connect_id) {
            return;
        }
        if !table.is_lost {
            table.note_closing(connect_id);
        }
        drop(table);
        self.close_unknown(connect_id);
    }

    /// Takes a message of the agent.
    pub fn receive(&self, message: Message) {
        if self.is_silent.load(Ordering::Relaxed) {
            self.is_silent.store(false, Ordering::Relaxed);
        }
        match message {
            Message::DialResponse(response) => self.dial_response(response),
            Message::Data(connect_id, data) => self.data(connect_id, data),
            Message::CloseResponse(response) => {
                let mut table = self.table();
                table.closing.remove(&response.connect_id);
                let tunnel = table.established.remove(&response.connect_id);
                drop(table);
                if let Some(tunnel) = tunnel {
                    tunnel.ended();
                    tunnel.inbox.push(Event::Closed(response));
                }
            }
            Message::CloseDial(number) => {
                let tunnel = self.table().pending.remove(&number);
                if let Some(tunnel) = tunnel {
                    self.shared.metrics.pending(-1);
                    self.shared.metrics.dial_failed(DialFailure::BackendClose);
                    error!(
                        dialID = tunnel.random,
                        agentID = self.agent_id.as_str(),
                        dialAddress = tunnel.address.as_str(),
                        "Dial terminated (DIAL_CLS) by backend"
                    );
                    tunnel.inbox.push(Event::DialClosed(tunnel.random));
                }
            }
            Message::Drain => {
                info!(agentID = self.agent_id.as_str(), "agent is draining");
                self.is_draining.store(true, Ordering::Relaxed);
            }
            Message::Finish(connect_id) => {
                if let Some(tunnel) = self.find(connect_id) {
                    tunnel.inbox.push(Event::Finished);
                }
            }
            Message::Window(connect_id, bytes) => {
                if let Some(tunnel) = self.find(connect_id) {
                    tunnel.grant(bytes);
                }
            }
            Message::DialRequest(_) | Message::CloseRequest(_) => {
                debug!(
                    agentID = self.agent_id.as_str(),
                    "ignoring a packet that only a server sends"
                );
            }
        }
    }

    fn find(&self, connect_id: i64) -> Option<Arc<Tunnel>> {
        self.table().established.get(&connect_id).cloned()
    }

    fn dial_response(&self, response: DialResponse) {
        let metrics = &self.shared.metrics;
        let agent_id = self.agent_id.as_str();
        let mut table = self.table();
        let Some(tunnel) = table.pending.remove(&response.random) else {
            drop(table);
            info!(
                dialID = response.random,
                agentID = agent_id,
                connectionID = response.connect_id,
                "DIAL_RSP not recognized; dropped"
            );
            metrics.dial_failed(DialFailure::UnrecognizedResponse);
            if response.connect_id != 0 {
                self.close_stray(response.connect_id);
            }
            return;
        };
        // As the client knows its dial.
        let mut response = DialResponse {
            random: tunnel.random,
            ..response
        };
        if response.error.is_empty() && response.connect_id == 0 {
            NO_NUMBER.clone_into(&mut response.error);
        }
        let is_connected = response.error.is_empty();
        let replaced = if is_connected {
            tunnel.establish(response.connect_id);
            table
                .established
                .insert(response.connect_id, Arc::clone(&tunnel))
        } else {
            None
        };
        // Still under the lock, so that no other event of this tunnel comes before.
        tunnel.inbox.push(Event::Dialed(response.clone()));
        drop(table);
        metrics.pending(-1);
        if let Some(replaced) = replaced {
            replaced.ended();
            replaced.inbox.cut_with(Event::Lost(
                "the agent gave its number to another connection".into(),
            ));
        }
        if is_connected {
            metrics.established();
            metrics.dialed(tunnel.started.elapsed());
            info!(
                dialID = response.random,
                connectionID = response.connect_id,
                agentID = agent_id,
                dialAddress = tunnel.address.as_str(),
                dialDuration = ?tunnel.started.elapsed(),
                "Proxy connection established"
            );
        } else {
            error!(
                dialID = response.random,
                agentID = agent_id,
                dialAddress = tunnel.address.as_str(),
                err = response.error.as_str(),
                "DIAL_RSP contains failure"
            );
            metrics.dial_failed(DialFailure::ErrorResponse);
        }
    }

    fn data(&self, connect_id: i64, data: Bytes) {
        if connect_id == 0 {
            error!(
                packetType = "DATA",
                agentID = self.agent_id.as_str(),
                "Received packet missing ConnectID from agent"
            );
            return;
        }
        let table = self.table();
        let Some(tunnel) = table.established.get(&connect_id).cloned() else {
            let is_closing = table.closing.contains(&connect_id);
            drop(table);
            if !is_closing {
                info!(
                    agentID = self.agent_id.as_str(),
                    connectionID = connect_id,
                    "could not get frontend client; closing connection"
                );
                self.close_stray(connect_id);
            }
            return;
        };
        drop(table);
        self.received
            .fetch_add(data.len() as u64, Ordering::Relaxed);
        match tunnel.inbox.push_data(data) {
            Ok(false) => {}
            Ok(true) => info!(
                agentID = self.agent_id.as_str(),
                connectionID = connect_id,
                dialAddress = tunnel.address.as_str(),
                "Receive channel from agent is full"
            ),
            Err(overflow) => {
                error!(
                    agentID = self.agent_id.as_str(),
                    connectionID = connect_id,
                    dialAddress = tunnel.address.as_str(),
                    err = %overflow,
                    "closing a connection whose client does not read"
                );
                self.shared.metrics.closed_tunnel(overflow.reason());
                tunnel.detach();
                tunnel.inbox.cut_with(Event::Lost(overflow.to_string()));
            }
        }
    }

    /// The stream has ended: so have all its tunnels, with an error.
    pub fn lost(&self) {
        let mut table = self.table();
        table.is_lost = true;
        let Table {
            pending,
            established,
            ..
        } = std::mem::take(&mut *table);
        table.is_lost = true;
        drop(table);
        self.outbox.end();
        if !established.is_empty() {
            info!(
                count = established.len(),
                agentID = self.agent_id.as_str(),
                "Close established connections to agent"
            );
        }
        for tunnel in pending.into_values() {
            self.shared.metrics.pending(-1);
            self.shared.metrics.dial_failed(DialFailure::BackendClose);
            tunnel.inbox.push(Event::PendingLost(tunnel.random));
        }
        for tunnel in established.into_values() {
            tunnel.ended();
            tunnel.inbox.cut_with(Event::Lost(ESTABLISHED_LOST.into()));
        }
    }

    /// Pending dials, established connections, and closed ones that the agent has not confirmed.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize, usize) {
        let table = self.table();
        (
            table.pending.len(),
            table.established.len(),
            table.closing.len(),
        )
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;
