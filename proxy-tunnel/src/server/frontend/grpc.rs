// SPDX-License-Identifier: Apache-2.0

//! A client that speaks gRPC: one stream carries one tunnel. A task receives the client's messages; `answers` produces
//! the messages to the client.

mod answers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tonic::Code;
use tracing::{debug, error, info, warn};

pub use self::answers::Answers;
use super::Client;
use crate::client::Mode;
use crate::flow::Inbox;
use crate::metrics::packets::Segment;
use crate::metrics::server::{Method, ServerMetrics};
use crate::server::backend::tunnel::{DIAL_TIMEOUT, Event, Tunnel};
use crate::server::tenants::tenant::Dialed;
use crate::wire::failure;
use crate::wire::metadata::Extensions;
use crate::wire::{DialRequest, Inbound, Message};

/// State that the two directions of a stream share.
#[derive(Debug)]
struct Session {
    client: Client,
    inbox: Arc<Inbox<Event>>,
    dialed: OnceLock<Dialed>,
    /// Notified when the transport has dropped the response stream, that is, when the client has disconnected.
    gone: Notify,
    has_gone: AtomicBool,
    /// The client disconnected before the regular end of the stream.
    is_cancelled: AtomicBool,
    /// The client has sent data, so it has registered its connection.
    has_spoken: AtomicBool,
    /// The task that waits for `has_spoken`.
    listener: AtomicWaker,
    extensions: Extensions,
}

impl Session {
    fn tunnel(&self) -> Option<&Arc<Tunnel>> {
        self.dialed.get().map(|dialed| &dialed.tunnel)
    }

    fn metrics(&self) -> &Arc<ServerMetrics> {
        &self.client.server.metrics
    }

    fn answer(&self, message: Message) {
        self.inbox.push(Event::Answer(message));
    }

    fn end(&self, status: Option<(Code, String)>) {
        self.inbox.push(Event::End(status));
    }
}

/// Serves a stream: spawns a task that receives the messages of `inbound`, and returns the messages to the client.
#[must_use]
pub fn serve(
    client: Client,
    inbound: Inbound,
    extensions: Extensions,
    user_agent: &str,
) -> Answers {
    debug!(userAgent = user_agent, "Proxy request from client");
    client.server.metrics.grpc(Method::Proxy, 1);
    let session = Arc::new(Session {
        inbox: Arc::new(client.tenant.inbox(Mode::Grpc)),
        client,
        dialed: OnceLock::new(),
        gone: Notify::new(),
        has_gone: AtomicBool::new(false),
        is_cancelled: AtomicBool::new(false),
        has_spoken: AtomicBool::new(false),
        listener: AtomicWaker::new(),
        extensions,
    });
    tokio::spawn(Receiver::new(Arc::clone(&session)).run(inbound));
    Answers::new(session)
}

/// How the receiver continues after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    /// The receiver ignores further messages.
    Drain,
}

/// The receiver of the client's messages.
struct Receiver {
    session: Arc<Session>,
    /// The time by which the agent must answer the dial.
    deadline: Option<Instant>,
}

impl Receiver {
    const fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            deadline: None,
        }
    }

    async fn run(mut self, mut inbound: Inbound) {
        let metrics = Arc::clone(self.session.metrics());
        let mut next = Next::Continue;
        let status = loop {
            let received = tokio::select! {
                biased;
                () = self.session.gone.notified() => {
                    if self.session.is_cancelled.load(Ordering::Acquire) {
                        self.failed(Code::Cancelled, "");
                    }
                    break None;
                }
                () = expiry(self.deadline) => {
                    self.deadline = None;
                    self.expire();
                    continue;
                }
                received = inbound.message() => received,
            };
            let message = match received {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(malformed))) => {
                    metrics
                        .packets
                        .count_malformed(Segment::FromClient, malformed);
                    debug!("ignoring a packet of a client: {malformed}");
                    continue;
                }
                Ok(None) => break None,
                Err(status) => {
                    let (code, text) = failure::at_server(&status);
                    self.failed(code, &text);
                    break Some((code, text));
                }
            };
            if !inbound.has_continued() {
                metrics.packets.count(Segment::FromClient, &message);
            }
            if next == Next::Continue {
                next = self.take(message).await;
            }
        };
        if let Some(tunnel) = self.session.tunnel() {
            tunnel.detach();
        }
        self.session.end(status);
    }

    /// Logs and counts that the client's stream has failed.
    fn failed(&self, code: Code, text: &str) {
        let packets = &self.session.metrics().packets;
        packets.receive_error(Segment::FromClient, code);
        if code == Code::Cancelled {
            info!("Stream read from frontend cancelled");
        } else {
            warn!(err = text, "Stream read from frontend failure");
        }
    }

    fn expire(&self) {
        if let Some(tunnel) = self.session.tunnel()
            && tunnel.expire()
        {
            error!(
                dialID = tunnel.random,
                dialAddress = tunnel.address.as_str(),
                "backend dial timed out before connection was established"
            );
            self.session
                .answer(Message::dial_error(tunnel.random, DIAL_TIMEOUT));
        }
    }

    async fn take(&mut self, message: Message) -> Next {
        let session = &self.session;
        match message {
            Message::DialRequest(request) => return self.dial(request),
            Message::CloseRequest(connect_id) => {
                let Some(tunnel) = session.tunnel() else {
                    session.answer(Message::closed(connect_id, "backend uninitialized"));
                    return Next::Continue;
                };
                if tunnel.connect_id() == 0 {
                    tunnel.detach();
                    session.answer(Message::closed(connect_id, ""));
                } else if tunnel.ask_to_close().is_err() {
                    session.answer(Message::closed(connect_id, "CLOSE_REQ to backend failed"));
                }
                return Next::Drain;
            }
            Message::CloseDial(random) => match session.tunnel() {
                Some(tunnel) if tunnel.random == random && tunnel.connect_id() == 0 => {
                    error!(
                        dialID = random,
                        dialAddress = tunnel.address.as_str(),
                        "Dial cancelled (DIAL_CLS) by frontend"
                    );
                    self.deadline = None;
                    tunnel.detach();
                }
                Some(tunnel) if tunnel.random == random => {
                    // The agent's answer and this packet have crossed: the client does not know the connection, so it
                    // will not close it.
                    tunnel.detach();
                }
                _ => debug!(
                    dialID = random,
                    "Unrecognized dial cancelled (DIAL_CLS) by frontend"
                ),
            },
            Message::Data(connect_id, data) => {
                let Some(tunnel) = session.tunnel() else {
                    session.answer(Message::closed(connect_id, "backend not initialized"));
                    return Next::Drain;
                };
                let own = tunnel.connect_id();
                if connect_id == 0 || own == 0 {
                    debug!(
                        packetType = "DATA",
                        "Received packet missing ConnectID from frontend"
                    );
                } else if connect_id == own {
                    if !session.has_spoken.swap(true, Ordering::AcqRel) {
                        session.listener.wake();
                    }
                    return self.forward(Message::Data(own, data)).await;
                } else {
                    self.mismatch(own, connect_id);
                    return Next::Drain;
                }
            }
            Message::Finish(connect_id) => {
                if let Some(tunnel) = session.tunnel()
                    && tunnel.connect_id() == connect_id
                    && tunnel.backend.extensions.half_close
                {
                    // An error means that the agent's stream has ended, which the inbox reports.
                    let _ = tunnel.send(Message::Finish(connect_id));
                }
            }
            Message::DialResponse(_)
            | Message::CloseResponse(_)
            | Message::Drain
            | Message::Window(..) => debug!("ignoring a packet that no client sends"),
        }
        Next::Continue
    }

    fn dial(&mut self, request: DialRequest) -> Next {
        let session = &self.session;
        let (random, address) = (request.random, request.address.clone());
        info!(
            dialID = random,
            dialAddress = address.as_str(),
            "Received DIAL_REQ"
        );
        if session.tunnel().is_some() {
            session.answer(Message::dial_error(
                random,
                "this stream has dialed before; open another stream for another connection",
            ));
            return Next::Continue;
        }
        match session
            .client
            .tenant
            .dial(request, Arc::clone(&session.inbox))
        {
            Ok(dialed) => {
                let tunnel = Arc::clone(&dialed.tunnel);
                // The cell is empty: see the check above.
                let _ = session.dialed.set(dialed);
                if session.has_gone.load(Ordering::Acquire) {
                    tunnel.release();
                }
                self.deadline = session
                    .client
                    .server
                    .dial_timeout
                    .map(|limit| Instant::now() + limit);
                Next::Continue
            }
            Err(refused) => {
                error!(
                    dialID = random,
                    dialAddress = address.as_str(),
                    err = %refused,
                    "Failed to get a backend"
                );
                session.metrics().dial_failed(refused.failure());
                session.answer(Message::dial_error(random, refused.to_string()));
                Next::Drain
            }
        }
    }

    /// Sends data to the agent when there is room for it. Until then the client's stream is not read, which applies
    /// backpressure to the client.
    async fn forward(&self, message: Message) -> Next {
        let Some(tunnel) = self.session.tunnel() else {
            return Next::Drain;
        };
        let ready = tokio::select! {
            ready = tunnel.ready() => ready,
            () = self.session.gone.notified() => {
                // Notifies again for the receive loop, which ends on it.
                self.session.gone.notify_one();
                return Next::Drain;
            }
        };
        // Messages after the end of the connection are read and dropped, so that the end of the client's stream is
        // detected.
        if ready.is_ok() && !tunnel.has_ended() && tunnel.send(message).is_ok() {
            Next::Continue
        } else {
            Next::Drain
        }
    }

    /// Ends the connection of a client that sent data for another connection ID. Upstream asks the agent to close the
    /// other connection too, but that one can only belong to another client.
    fn mismatch(&self, own: i64, other: i64) {
        const WHY: &str = "mismatched connection IDs";
        error!(
            firstConnectionID = own,
            connectionID = other,
            "Data does not match first connection id"
        );
        if let Some(tunnel) = self.session.tunnel() {
            tunnel.detach();
        }
        self.session.answer(Message::closed(other, WHY));
        self.session.answer(Message::closed(own, WHY));
    }
}

async fn expiry(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
