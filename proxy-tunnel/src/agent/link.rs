// SPDX-License-Identifier: Apache-2.0

//! One stream to a server, and the connections that the server asked for on it. The task that reads the stream waits
//! for no target: messages for a connection go into its inbox.

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

/// State that all streams of an agent share.
#[derive(Debug)]
pub struct Shared {
    /// The agent's name.
    pub agent_id: String,
    /// The counters.
    pub metrics: Arc<AgentMetrics>,
    /// The memory for all inboxes.
    pub budget: Arc<Budget>,
    /// The bounds of one inbox.
    pub limits: Limits,
    /// The targets that may be connected to.
    pub allowed: Destinations,
}

#[derive(Debug, Default)]
struct Table {
    is_lost: bool,
    /// By the server's number and that of the connection to come. Dropping the sender gives the dial up.
    pending: BTreeMap<(i64, i64), oneshot::Sender<()>>,
    endpoints: HashMap<i64, Arc<Endpoint>>,
}

impl Table {
    /// The server gives a dial up. Upstream's server may have asked for several by one number, if its clients have
    /// chosen the same; none of them is given up then, as by upstream's agent: it may be another client's.
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
    /// The server's name.
    pub server_id: String,
    /// The queue of messages to the server.
    pub outbox: Arc<Outbox>,
    /// The extensions of upstream's protocol that the server supports.
    pub extensions: Extensions,
    shared: Arc<Shared>,
    next: AtomicI64,
    /// Bytes of connections that have come from the server.
    received: AtomicU64,
    table: Mutex<Table>,
}

impl Link {
    /// A stream that has just been accepted.
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
        // A panic while it is held leaves maps that are consistent.
        self.table
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What goes through it.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let table = self.table();
        let (pending, established) = (table.pending.len(), table.endpoints.len());
        drop(table);
        let received = self.received.load(Ordering::Relaxed);
        Traffic::new((pending, established), received, &self.outbox)
    }

    /// Notifies the server that this agent is about to leave.
    pub fn drain(&self) {
        info!(
            serverID = self.server_id.as_str(),
            agentID = self.shared.agent_id.as_str(),
            "drain agent client"
        );
        // A stream that has ended needs nothing.
        let _ = self.outbox.control(Message::Drain);
    }

    /// Receives the server's messages until the stream ends. Then all its connections are cut.
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
            // A fast server leaves room for others on this thread.
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

    /// Takes a message of the server.
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
        // A stream that has ended closes all its connections.
        let _ = self.outbox.control(message);
    }

    /// Answers for a connection that is not there. One that was there has had its end put behind its last bytes; an
    /// answer here would overtake both, and the client would take the connection for cut.
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

    /// Dials in the background.
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

    /// Dials a target and serves the connection to its end. Each connection holds this future's size in memory.
    async fn dial_and_serve(
        self: Arc<Self>,
        request: DialRequest,
        connect_id: i64,
        given_up: oneshot::Receiver<()>,
    ) {
        let start = Instant::now();
        // On the heap, for as long as it lasts: it needs more room than a connection does.
        let dialing = Box::pin(dial(
            &self.shared.allowed,
            &request.protocol,
            &request.address,
            dial::LIMIT,
        ));
        let dialed = tokio::select! {
            dialed = dialing => dialed,
            // Nothing is ever sent: the sender was dropped.
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
        // A connection keeps neither its texts nor room for them.
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
        // Before any byte of the target: both are in its lane.
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

    /// A connection has ended.
    pub fn forget(&self, connect_id: i64) {
        self.table().endpoints.remove(&connect_id);
    }

    /// The stream has ended: so have all its connections, by a reset.
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
