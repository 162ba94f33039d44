// SPDX-License-Identifier: Apache-2.0

//! One stream to a server, and the connections that the server requested on it. The task that reads the stream never
//! waits for a target: it puts messages for a connection into that connection's inbox.

mod endpoint;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::{Code, Status};
use tracing::{debug, error, info};

use self::endpoint::{Endpoint, Event};
use super::dial::{self, dial};
use crate::destinations::Destinations;
use crate::flow::{Budget, Inbox, Limits, Outbox, Traffic, WINDOW};
use crate::go_error::DialError;
use crate::metrics::agent::{AgentMetrics, Direction};
use crate::metrics::packets::Segment;
use crate::wire::failure;
use crate::wire::metadata::Extensions;
use crate::wire::{DialRequest, DialResponse, Inbound, Message};

/// The state that all streams of an agent share.
#[derive(Debug)]
pub struct Shared {
    /// The agent's ID.
    pub agent_id: String,
    /// The agent's metrics.
    pub metrics: Arc<AgentMetrics>,
    /// The memory budget for all inboxes.
    pub budget: Arc<Budget>,
    /// The limits of one inbox.
    pub limits: Limits,
    /// The targets to which the agent may connect.
    pub allowed: Destinations,
}

#[derive(Debug, Default)]
struct Table {
    is_lost: bool,
    /// Dials in progress, by the server's number for the dial and the number of the future connection. Dropping the
    /// sender cancels the dial.
    pending: BTreeMap<(i64, i64), oneshot::Sender<()>>,
    endpoints: HashMap<i64, Arc<Endpoint>>,
}

impl Table {
    /// Cancels a dial at the server's request. Upstream's server may have sent several dials with the same number, if
    /// its clients chose the same number. In that case none of them is cancelled, as in upstream's agent, because the
    /// dial may belong to another client.
    fn give_up(&mut self, random: i64) {
        let mut dials = self.pending.range((random, i64::MIN)..=(random, i64::MAX));
        if let (Some((dial, _)), None) = (dials.next(), dials.next()) {
            let dial = *dial;
            self.pending.remove(&dial);
        }
    }
}

/// One stream to a server.
#[derive(Debug)]
pub struct Link {
    /// The server's ID.
    pub server_id: String,
    /// The queue of messages to the server.
    pub outbox: Arc<Outbox>,
    /// The extensions of upstream's protocol that the server supports.
    pub extensions: Extensions,
    shared: Arc<Shared>,
    next: AtomicI64,
    /// The number of payload bytes received from the server.
    received: AtomicU64,
    table: Mutex<Table>,
}

impl Link {
    /// Creates the link for a stream that the server has just accepted.
    #[must_use]
    pub fn new(
        server_id: String,
        outbox: Arc<Outbox>,
        extensions: Extensions,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        Arc::new(Self {
            server_id,
            outbox,
            extensions,
            shared,
            next: AtomicI64::new(0),
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

    /// Returns the current numbers of connections and bytes on this stream.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let table = self.table();
        let (pending, established) = (table.pending.len(), table.endpoints.len());
        drop(table);
        let received = self.received.load(Ordering::Relaxed);
        Traffic::new((pending, established), received, &self.outbox)
    }

    /// Notifies the server that this agent is about to shut down.
    pub fn drain(&self) {
        info!(
            serverID = self.server_id.as_str(),
            agentID = self.shared.agent_id.as_str(),
            "drain agent client"
        );
        // The message is unnecessary if the stream has already ended.
        let _ = self.outbox.control(Message::Drain);
    }

    /// Receives the server's messages until the stream ends, and then resets all its connections.
    pub async fn serve(self: &Arc<Self>, mut inbound: Inbound) {
        let metrics = &self.shared.metrics;
        let (server_id, agent_id) = (self.server_id.as_str(), self.shared.agent_id.as_str());
        info!(serverID = server_id, agentID = agent_id, "Start serving");
        loop {
            match inbound.message().await {
                Ok(Some(Ok(message))) => {
                    if !inbound.has_continued() {
                        metrics.packets.count(Segment::ToAgent, &message);
                    }
                    self.receive(message);
                }
                Ok(Some(Err(malformed))) => {
                    metrics.packets.count_malformed(Segment::ToAgent, malformed);
                    debug!(
                        serverID = server_id,
                        "ignoring a packet of a server: {malformed}"
                    );
                }
                Ok(None) => {
                    info!(
                        serverID = server_id,
                        agentID = agent_id,
                        "received EOF, exit"
                    );
                    break;
                }
                Err(status) => {
                    self.failed(&status);
                    break;
                }
            }
            // Other tasks on this thread get a chance to run even if the server sends fast.
            tokio::task::coop::consume_budget().await;
        }
        self.lost();
    }

    fn failed(&self, status: &Status) {
        let metrics = &self.shared.metrics;
        let (code, text) = failure::at_agent(status);
        metrics.packets.receive_error(Segment::ToAgent, code);
        metrics.server_failed(Direction::FromServer);
        let (server_id, agent_id) = (self.server_id.as_str(), self.shared.agent_id.as_str());
        if code == Code::Cancelled {
            info!(serverID = server_id, agentID = agent_id, "stream canceled");
        } else {
            error!(
                serverID = server_id,
                agentID = agent_id,
                err = text.as_str(),
                "could not read stream"
            );
        }
    }

    /// Processes one message from the server.
    pub fn receive(self: &Arc<Self>, message: Message) {
        match message {
            Message::DialRequest(request) => self.dial(request),
            Message::Data(connect_id, data) => self.data(connect_id, data),
            Message::CloseRequest(connect_id) => match self.find(connect_id) {
                Some(endpoint) => {
                    endpoint.inbox.push(Event::Close);
                    endpoint.closing.notify_one();
                }
                None => self.unknown(connect_id, "Unknown connectID"),
            },
            Message::CloseDial(random) => self.table().give_up(random),
            Message::Finish(connect_id) => {
                if let Some(endpoint) = self.find(connect_id) {
                    endpoint.inbox.push(Event::Finish);
                }
            }
            Message::Window(connect_id, bytes) => {
                if let Some(endpoint) = self.find(connect_id) {
                    endpoint.lane.grant(bytes);
                }
            }
            Message::DialResponse(_) | Message::CloseResponse(_) | Message::Drain => {
                debug!("ignoring a packet that only an agent sends");
            }
        }
    }

    fn find(&self, connect_id: i64) -> Option<Arc<Endpoint>> {
        self.table().endpoints.get(&connect_id).cloned()
    }

    fn answer(&self, message: Message) {
        // An error can be ignored: the end of the stream closes all connections.
        let _ = self.outbox.control(message);
    }

    /// Replies to a message for an unknown connection. If the connection existed earlier, no reply is sent: its close
    /// message is queued behind its last bytes. A reply here would overtake both, and the client would treat the
    /// connection as cut.
    fn unknown(&self, connect_id: i64, error: &str) {
        if !(1..=self.next.load(Ordering::Relaxed)).contains(&connect_id) {
            self.answer(Message::closed(connect_id, error));
        }
    }

    fn data(&self, connect_id: i64, data: Bytes) {
        if connect_id == 0 {
            error!(
                packetType = "DATA",
                "Received packet missing ConnectID from frontend"
            );
            return;
        }
        let Some(endpoint) = self.find(connect_id) else {
            self.unknown(connect_id, "unrecognized connectID");
            return;
        };
        self.received
            .fetch_add(data.len() as u64, Ordering::Relaxed);
        if let Err(overflow) = endpoint.inbox.push_data(data) {
            error!(
                connectionID = connect_id,
                serverID = self.server_id.as_str(),
                err = %overflow,
                "closing a connection whose target does not read"
            );
            self.shared.metrics.closed_tunnel(overflow.reason());
            self.forget(connect_id);
            endpoint
                .inbox
                .cut_with(Event::Cut(Some(overflow.to_string())));
        }
    }

    /// Dials the requested target in a background task.
    fn dial(self: &Arc<Self>, request: DialRequest) {
        let connect_id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        info!(
            serverID = self.server_id.as_str(),
            agentID = self.shared.agent_id.as_str(),
            dialID = request.random,
            dialAddress = request.address.as_str(),
            "Received DIAL_REQ"
        );
        let (sender, given_up) = oneshot::channel();
        let dial = (request.random, connect_id);
        self.table().pending.insert(dial, sender);
        tokio::spawn(Arc::clone(self).dial_and_serve(request, connect_id, given_up));
    }

    /// Dials a target and serves the connection until it ends. This future stays in memory for each connection, so its
    /// size matters.
    async fn dial_and_serve(
        self: Arc<Self>,
        request: DialRequest,
        connect_id: i64,
        given_up: oneshot::Receiver<()>,
    ) {
        let start = Instant::now();
        // The dial future is larger than that of a connection, so it is on the heap while the dial lasts.
        let dialing = Box::pin(dial(
            &self.shared.allowed,
            &request.protocol,
            &request.address,
            dial::LIMIT,
        ));
        let dialed = tokio::select! {
            dialed = dialing => dialed,
            // The channel never carries a value: this branch runs when the sender is dropped.
            _ = given_up => {
                debug!(dialID = request.random, "the dial was given up");
                return;
            }
        };
        match dialed {
            Ok(stream) => self.connected(stream, request, connect_id, start).await,
            Err(error) => self.dial_failed(&request, connect_id, &error),
        }
    }

    fn dial_failed(&self, request: &DialRequest, connect_id: i64, error: &DialError) {
        let dial = (request.random, connect_id);
        self.table().pending.remove(&dial);
        self.shared.metrics.dial_failed(&error.problem);
        info!(
            dialID = request.random,
            connectionID = connect_id,
            dialAddress = request.address.as_str(),
            err = %error,
            "error dialing backend"
        );
        self.answer(Message::dial_error(request.random, error.to_string()));
    }

    async fn connected(
        self: &Arc<Self>,
        stream: TcpStream,
        request: DialRequest,
        connect_id: i64,
        start: Instant,
    ) {
        let metrics = &self.shared.metrics;
        metrics.dialed(start.elapsed());
        info!(
            dialID = request.random,
            connectionID = connect_id,
            dialAddress = request.address.as_str(),
            "Endpoint connection established"
        );
        let random = request.random;
        // The request's strings, and the space for them, are not needed once the connection is established.
        drop(request);
        let budget = Arc::clone(&self.shared.budget);
        let inbox = Inbox::new(budget, self.shared.limits, [None, None]);
        let lane = self.outbox.lane(self.extensions.window.then_some(WINDOW));
        let endpoint = Arc::new(Endpoint::new(connect_id, inbox, lane));
        {
            let mut table = self.table();
            let dial = (random, connect_id);
            let is_wanted = table.pending.remove(&dial).is_some();
            if table.is_lost || !is_wanted {
                return;
            }
            table.endpoints.insert(connect_id, Arc::clone(&endpoint));
        }
        // The response precedes the target's first byte because both use the same lane.
        let response = Message::DialResponse(DialResponse {
            error: String::new(),
            connect_id,
            random,
        });
        metrics.endpoint_connections.inc();
        if endpoint.lane.push(response).is_ok() {
            endpoint.serve(stream, self).await;
        } else {
            self.forget(connect_id);
        }
        metrics.endpoint_connections.dec();
    }

    /// Removes a connection that has ended.
    pub fn forget(&self, connect_id: i64) {
        self.table().endpoints.remove(&connect_id);
    }

    /// Resets all connections after the end of the stream.
    fn lost(&self) {
        let mut table = self.table();
        table.is_lost = true;
        let endpoints = std::mem::take(&mut table.endpoints);
        table.pending.clear();
        drop(table);
        self.outbox.end();
        for endpoint in endpoints.into_values() {
            endpoint.inbox.cut_with(Event::Cut(None));
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
