// SPDX-License-Identifier: Apache-2.0

//! One stream of an agent, and the tunnels that it carries. The task that reads the stream calls [`Backend::receive`],
//! which never blocks: it puts the messages for a tunnel into the tunnel's inbox.

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

/// The error that a client gets when the agent's stream ends during an established connection.
pub const ESTABLISHED_LOST: &str = "the agent's stream ended, the connection is cut";

/// How long an agent that did not answer a dial in time is avoided, unless a message from it arrives earlier. After
/// this time it gets another dial, because an agent of this project that was suspended does not answer dials that were
/// given up in the meantime.
const SUSPICION: Duration = Duration::from_secs(30);

/// The error that a client gets for an answer that contains neither a connection ID nor an error.
const NO_NUMBER: &str = "the agent's answer has no connection";

/// The state that the streams of a tenant's agents share.
#[derive(Debug)]
pub struct Shared {
    /// The server's metrics.
    pub metrics: Arc<ServerMetrics>,
    /// The memory budget of the inboxes.
    pub budget: Arc<Budget>,
    /// The limits of one inbox.
    pub limits: Limits,
}

impl Shared {
    /// Creates a state with default limits, for tests.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn for_tests() -> Self {
        Self {
            metrics: ServerMetrics::new(),
            budget: Arc::new(Budget::new(64 << 20)),
            limits: Limits::default(),
        }
    }

    /// Creates an inbox for a tunnel of a client in this mode.
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
    /// Pending dials, by the dial ID that the agent knows.
    pending: HashMap<i64, Arc<Tunnel>>,
    given_up: GivenUp,
    established: HashMap<i64, Arc<Tunnel>>,
    /// Connections that the server has closed and the agent has not yet confirmed. The agent's messages for them are
    /// dropped.
    closing: HashSet<i64>,
}

/// The maximum number of connections that wait for the agent's confirmation. Only a malicious agent leaves so many
/// unconfirmed. The server answers each of its messages for further connections with a request to close.
const MOST_CLOSING: usize = 65_536;

impl Table {
    fn note_closing(&mut self, connect_id: i64) {
        if self.closing.len() < MOST_CLOSING {
            self.closing.insert(connect_id);
        }
    }

    /// Returns the ID for a dial: the client's, unless the agent may still send an answer with this ID to another dial.
    /// Clients choose their IDs independently, and some choose the same ones (with Go before 1.20, every process draws
    /// the same sequence).
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
    /// The agent's ID; several streams may have the same one.
    pub agent_id: String,
    /// The destinations that the agent can reach.
    pub identifiers: Identifiers,
    /// The queue of messages to the agent.
    pub outbox: Arc<Outbox>,
    /// The protocol extensions that the agent supports.
    pub extensions: Extensions,
    /// The state that this stream shares with others.
    pub shared: Arc<Shared>,
    is_draining: AtomicBool,
    /// The agent did not answer a dial in time, and has sent nothing since.
    is_silent: AtomicBool,
    /// The number of tunnel bytes received from the agent.
    received: AtomicU64,
    table: Mutex<Table>,
}

/// The error of a dial that is not sent because the agent's stream has just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{PENDING_LOST}")]
pub struct DialRefused;

impl Backend {
    /// Creates a stream without tunnels.
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
        // A panic while the lock is held leaves the maps consistent.
        self.table
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns whether the agent has announced that it is about to exit.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Returns how congested the agent is: whether it is silent, how much data waits to be sent to it (in units of 64
    /// KiB), and how many dials it has not answered.
    #[must_use]
    pub fn load(&self) -> (bool, usize, usize) {
        // Small amounts are in flight and are no sign of congestion.
        let waiting = self.outbox.waiting() / (64 * 1024);
        let table = self.table();
        let is_silent = self.is_silent.load(Ordering::Relaxed)
            && table.given_up.is_recent(SUSPICION, Instant::now());
        (is_silent, waiting, table.pending.len())
    }

    /// Returns the traffic of this stream.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let table = self.table();
        let (pending, established) = (table.pending.len(), table.established.len());
        drop(table);
        let received = self.received.load(Ordering::Relaxed);
        Traffic::new((pending, established), received, &self.outbox)
    }

    /// Records that the agent did not answer a dial in time.
    pub fn note_silence(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Sends a dial request to the agent. The outcome is added to `inbox`.
    ///
    /// # Errors
    /// Returns an error if the stream has ended.
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
            // The transport has just ended; the task that reads from it will detect that too.
            self.forget_pending(&tunnel);
            return Err(DialRefused);
        }
        Ok(tunnel)
    }

    /// Removes a pending dial. Returns true if it was still pending.
    pub fn forget_pending(&self, tunnel: &Tunnel) -> bool {
        let number = tunnel.number;
        let mut table = self.table();
        // If the dial was answered, its ID may already belong to another dial.
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

    /// Removes an established connection whose end the agent has not confirmed yet. Returns true if the connection was
    /// established.
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

    /// Asks the agent to close a connection that has no client. The ID must come from the agent, never from a client: a
    /// client could name a connection of another client, even one whose dial response has not arrived yet.
    fn close_unknown(&self, connect_id: i64) {
        // A stream that has ended has no connections.
        let _ = self.outbox.control(Message::CloseRequest(connect_id));
    }

    /// Like [`Self::close_unknown`], for a connection that exists at the agent: its target may send until the agent has
    /// received the request. An agent that answers a dial twice names a connection that has a client, which is left
    /// alone.
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

    /// Handles a message from the agent.
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
        // The client knows the dial by its own ID.
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
        // Pushed while the lock is held, so that no other event of this tunnel precedes it.
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

    /// Ends all tunnels with an error, because the stream has ended.
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

    /// Returns the numbers of pending dials, of established connections, and of closed connections that the agent has
    /// not confirmed.
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
