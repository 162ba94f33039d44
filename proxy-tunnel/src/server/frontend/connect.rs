// SPDX-License-Identifier: Apache-2.0

//! A client that speaks HTTP CONNECT: one connection carries one tunnel. One task per connection does all the work, so
//! a client that does not read or write delays nothing else.

mod absolute;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proxy_serve::shutdown::Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info};

use super::socket::{Half, Halves, Socket};
use super::{Client, ClientRefused, HOLD, answers};
use crate::client::Mode;
use crate::flow::inbox::Item;
use crate::flow::pump::{self, BATCH, Reading};
use crate::forward::ask::{FAREWELL, asked, farewell};
use crate::forward::head::{self, Form, Head};
use crate::metrics::Counted;
use crate::metrics::packets::Segment;
use crate::server::Server;
use crate::server::backend::PENDING_LOST;
use crate::server::backend::tunnel::{DIAL_TIMEOUT, Event, Tunnel};
use crate::server::tenants::tenant::{DialRefused, Dialed};
use crate::wire::{DialRequest, Message, PacketType};

/// How often the server checks whether a client that has closed its sending side has disconnected.
const CHECK: Duration = Duration::from_millis(200);

/// How long the target's answer may pause after the client has closed its sending side, if the agent does not support
/// half-close. In this case the target may be waiting for more bytes.
const LINGER: Duration = Duration::from_secs(30);

/// How long a client may take to read the 200 before the target's bytes are sent anyway.
const UNREAD: Duration = Duration::from_secs(1);

/// Releases the tunnel however the connection ends, including by a panic.
struct Guard(Dialed);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.tunnel.release();
    }
}

/// How a connection ended.
enum End {
    /// All bytes were relayed.
    Regular,
    /// Bytes are missing; the client must be able to see that the stream is incomplete.
    Cut(String),
}

/// Serves a connection until it ends. `phase` is the state of the process: while it drains, connections without a
/// request are ended.
pub async fn serve<S: Socket>(mut socket: S, client: Client, phase: watch::Receiver<Phase>) {
    let _counted = Counted::new(&client.server.metrics.http_connections);
    let Some((head, read)) = asked(&mut socket, client.server.absolute_form).await else {
        return;
    };
    match head.form {
        Form::Connect => {
            let rest = Bytes::copy_from_slice(&read[head.length..]);
            drop(read);
            tunnel(socket, head, rest, &client).await;
        }
        // Boxed, because this future is larger than everything that most connections need.
        Form::Absolute => {
            Box::pin(absolute::serve(socket, head, read.freeze(), &client, phase)).await;
        }
    }
}

/// Reads a request and refuses it.
pub async fn refuse<S: Socket>(mut socket: S, server: Arc<Server>, why: ClientRefused) {
    let _counted = Counted::new(&server.metrics.http_connections);
    if asked(&mut socket, server.absolute_form).await.is_some() {
        let text = why.to_string();
        let answer = match why {
            ClientRefused::NoTenant(_) => answers::forbidden(&text),
            ClientRefused::Limit(_) => answers::limited(&text),
        };
        farewell(&mut socket, &answer).await;
    }
}

/// Dials, and relays bytes until the connection ends. `rest` holds the bytes that were read after the request head.
pub(super) async fn tunnel<S: Socket>(mut socket: S, head: Head, rest: Bytes, client: &Client) {
    let server = &client.server;
    let random = fastrand::i64(1..);
    info!(
        host = head.target.as_str(),
        userAgent = head.user_agent.as_str(),
        dialID = random,
        "Received request for host"
    );
    let metrics = &server.metrics;
    let request = DialRequest {
        protocol: "tcp".to_owned(),
        address: head.target.clone(),
        random,
    };
    let inbox = Arc::new(client.tenant.inbox(Mode::HttpConnect));
    let dialed = match client.tenant.dial(request, inbox) {
        Ok(dialed) => dialed,
        Err(refused) => {
            error!(
                dialID = random,
                dialAddress = head.target.as_str(),
                err = %refused,
                "Failed to get a backend"
            );
            metrics.dial_failed(refused.failure());
            farewell(&mut socket, &answer(&refused)).await;
            return;
        }
    };
    metrics
        .packets
        .count_kind(Segment::FromClient, PacketType::DialReq);
    // Frees the strings of the request for the life of the connection; the tunnel has a copy of the target.
    drop(head);
    let tunnel = Arc::clone(&dialed.tunnel);
    let guard = Guard(dialed);
    match pending(&mut socket, &tunnel, server).await {
        Pending::Established(early) => {
            let end = relay(socket, &tunnel, rest, early, server).await;
            if let End::Cut(why) = end {
                info!(
                    host = tunnel.address.as_str(),
                    connectionID = tunnel.connect_id(),
                    "connection cut: {why}"
                );
            }
        }
        Pending::Answer(answer) => farewell(&mut socket, &answer).await,
        Pending::Gone => debug!(
            dialID = random,
            "the client left before its dial was answered"
        ),
    }
    drop(guard);
}

/// Returns the response for a dial that was refused before it was sent to the agent.
fn answer(refused: &DialRefused) -> Vec<u8> {
    let text = refused.to_string();
    match refused {
        DialRefused::NoAgent => answers::no_agent(&text),
        DialRefused::Backend(_) => answers::not_sent(&text),
        DialRefused::Limit(..) => answers::limited(&text),
        DialRefused::Removed(_) => answers::forbidden(&text),
    }
}

/// The outcome of a dial.
enum Pending {
    /// The connection is established. The bytes are the ones that the client sent while the dial was pending.
    Established(Bytes),
    Answer(Vec<u8>),
    Gone,
}

async fn pending<S: Socket>(socket: &mut S, tunnel: &Arc<Tunnel>, server: &Server) -> Pending {
    let mut early = BytesMut::new();
    let mut deadline = std::pin::pin!(server.dial_deadline());
    let mut may_read = true;
    loop {
        let item = tokio::select! {
            biased;
            item = tunnel.inbox.next() => item,
            () = &mut deadline => {
                if tunnel.expire() {
                    return Pending::Answer(answers::dial_timeout(DIAL_TIMEOUT));
                }
                continue;
            }
            // Reads only to detect that the client disconnects; few bytes arrive during a dial.
            read = socket.read_buf(&mut early), if may_read => {
                match read {
                    Ok(0) if !socket.is_gone() => may_read = false,
                    Ok(0) | Err(_) => return Pending::Gone,
                    Ok(_) => may_read = early.len() < head::LONGEST,
                }
                continue;
            }
            () = sleep(CHECK), if !may_read => {
                if socket.is_gone() {
                    return Pending::Gone;
                }
                continue;
            }
        };
        let Item::Event(event) = item else { continue };
        return match event {
            Event::Dialed(response) if response.error.is_empty() && response.connect_id != 0 => {
                Pending::Established(early.freeze())
            }
            Event::Dialed(response) => Pending::Answer(answers::dial_error(&response.error)),
            Event::PendingLost(_) | Event::Lost(_) => {
                Pending::Answer(answers::pending_lost(PENDING_LOST))
            }
            _ => Pending::Gone,
        };
    }
}

/// State that the two directions share.
struct Relay<'a, S> {
    halves: &'a Halves<S>,
    tunnel: &'a Arc<Tunnel>,
    server: &'a Server,
    /// Notified when the client has sent bytes.
    spoke: Notify,
    /// When bytes were last written to the client.
    wrote: Mutex<Instant>,
}

async fn relay<S: Socket>(
    mut socket: S,
    tunnel: &Arc<Tunnel>,
    rest: Bytes,
    early: Bytes,
    server: &Server,
) -> End {
    let wrote = async {
        socket.write_all(head::ESTABLISHED).await?;
        socket.flush().await
    };
    if let Err(error) = wrote.await {
        return End::Cut(format!("the 200 could not be written: {error}"));
    }
    let halves = Halves::new(socket);
    let relay = Relay {
        halves: &halves,
        tunnel,
        server,
        spoke: Notify::new(),
        wrote: Mutex::new(Instant::now()),
    };
    let end = tokio::select! {
        end = relay.down() => end,
        end = relay.up([rest, early]) => end,
    };
    if matches!(end, End::Cut(_)) {
        // When the socket is now dropped, TLS sends no close_notify, and TCP sends a reset.
        halves.lock().abort();
    }
    end
}

impl<S: Socket> Relay<'_, S> {
    fn send(&self, data: Bytes) -> bool {
        self.server
            .metrics
            .packets
            .count_kind(Segment::FromClient, PacketType::Data);
        self.tunnel
            .send(Message::Data(self.tunnel.connect_id(), data))
            .is_ok()
    }

    /// Relays bytes from the client to the agent. Returns when the client has disconnected.
    async fn up(&self, first: [Bytes; 2]) -> End {
        for data in first {
            if !data.is_empty() {
                self.spoke.notify_one();
                self.send(data);
            }
        }
        let mut half = Half(self.halves);
        let mut reading = Reading::default();
        loop {
            let ready = tokio::select! {
                biased;
                ready = self.tunnel.ready() => ready,
                () = self.abandoned() => {
                    return End::Cut("the client has gone, and its target does not read".into());
                }
            };
            let Ok(room) = ready else {
                // The other direction reports the end of the agent's stream.
                return std::future::pending().await;
            };
            match pump::read(&mut half, &mut reading, room).await {
                Ok(data) if data.is_empty() => break,
                Ok(data) => {
                    self.spoke.notify_one();
                    self.send(data);
                }
                Err(error) => return End::Cut(format!("the client failed: {error}")),
            }
        }
        let can_finish = self.tunnel.backend.extensions.half_close;
        if can_finish && !self.halves.lock().is_gone() {
            // The other direction reports an agent's stream that has ended.
            let _ = self.tunnel.send(Message::Finish(self.tunnel.connect_id()));
        }
        loop {
            if self.halves.lock().is_gone() || (!can_finish && self.quiet() > LINGER) {
                return End::Regular;
            }
            sleep(CHECK).await;
        }
    }

    /// Completes when the client has disconnected while its bytes wait for the target. The interval of the checks,
    /// `FAREWELL`, is also the time for which an agent lets bytes wait: the client's last bytes get that time to
    /// arrive, and no more.
    async fn abandoned(&self) {
        loop {
            sleep(FAREWELL).await;
            if self.halves.lock().is_gone() {
                return;
            }
        }
    }

    fn last_write(&self) -> MutexGuard<'_, Instant> {
        // No code panics while it holds this lock.
        self.wrote
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns the time since bytes were last written to the client.
    fn quiet(&self) -> Duration {
        self.last_write().elapsed()
    }

    /// Relays bytes from the agent to the client. Returns when the agent has closed the connection.
    async fn down(&self) -> End {
        self.hold().await;
        let mut half = Half(self.halves);
        loop {
            let event = match self.tunnel.inbox.next().await {
                Item::Data(data) => {
                    // The vector exists only while there is data, so an idle tunnel does not hold one.
                    let mut chunks = vec![data];
                    self.tunnel.inbox.more(&mut chunks, BATCH);
                    if let Err(error) = self.write(&mut half, &mut chunks).await {
                        return End::Cut(format!("the client does not take data: {error}"));
                    }
                    continue;
                }
                Item::Event(event) => event,
            };
            match event {
                // The other direction detects that the client has disconnected.
                Event::Finished => drop(half.shutdown().await),
                Event::Closed(response) if response.error.is_empty() => {
                    // Fails if the client has already disconnected.
                    let _ = timeout(FAREWELL, half.shutdown()).await;
                    return End::Regular;
                }
                Event::Closed(response) => return End::Cut(response.error),
                Event::Lost(why) => return End::Cut(why),
                _ => {}
            }
        }
    }

    /// Waits until the client can no longer read the target's first bytes together with the 200.
    async fn hold(&self) {
        if timeout(HOLD, self.spoke.notified()).await.is_ok() {
            return;
        }
        let start = Instant::now();
        while self.halves.lock().unread() > 0 && start.elapsed() < UNREAD {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn write(&self, half: &mut Half<'_, S>, chunks: &mut Vec<Bytes>) -> io::Result<()> {
        let bytes = chunks.iter().map(Bytes::len).sum();
        let start = Instant::now();
        for _ in chunks.iter() {
            self.server
                .metrics
                .packets
                .count_kind(Segment::ToClient, PacketType::Data);
        }
        tokio::select! {
            biased;
            written = pump::write_all(half, chunks) => written?,
            // The next event contains the reason.
            () = self.tunnel.inbox.cut() => chunks.clear(),
        }
        self.server.metrics.wrote(start.elapsed());
        *self.last_write() = Instant::now();
        self.tunnel.taken(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::server::backend::Shared;
    use crate::server::strategies::Strategy;
    use crate::server::tenants::Tenants;
    use crate::server::tenants::peer::Peer;
    use crate::server::tenants::tenant::Parts;

    #[tokio::test]
    async fn a_connection_that_rests_takes_little_memory() {
        let shared = Arc::new(Shared::for_tests());
        let metrics = Arc::clone(&shared.metrics);
        let strategies = vec![Strategy::Default];
        let server = Arc::new(Server::new(
            "server".into(),
            1,
            Tenants::one(Parts { strategies, shared }),
            metrics,
            None,
            None,
            false,
        ));
        let peer = || Peer::on_socket("/socket".into());
        let client = Client::new(&server, peer).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let (_phase, phase) = watch::channel(Phase::Serving);
        let size = size_of_val(&serve(near, client, phase));
        assert!(size <= 2048, "{size} bytes");
    }
}
