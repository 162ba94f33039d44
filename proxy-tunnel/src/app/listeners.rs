// SPDX-License-Identifier: Apache-2.0

//! Accepts the server's clients and agents: the limit on connections, the TLS handshake with its time limit, and the
//! shutdown of all connections. The module `server` handles the connections themselves.
//!
//! | limit | of clients | of agents |
//! |---|---|---|
//! | connections at once | 65,536 | 16,384 |
//! | TLS handshake | 10 s | 10 s |
//! | from there to the first gRPC request | 120 s | 120 s |
//! | head of a CONNECT request | 60 s, 64 KiB, 100 fields | |
//! | header fields of a gRPC request | 64 KiB | 64 KiB |
//! | one message | 4 MiB | 4 MiB |
//! | bytes that are received before any is consumed | 512 KiB for each stream | 8 MiB, always consumed |

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use proxy_serve::listen::accept::{Listen, Slots};
use proxy_serve::listen::unix;
use proxy_serve::reload::Current;
use proxy_serve::reminder::Reminder;
use proxy_serve::shutdown::Phase;
use proxy_serve::tls::server::Identity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::server::TlsStream;
use tracing::{debug, trace, warn};

use crate::client::Mode;
use crate::server::Server;
use crate::server::agents::AgentService;
use crate::server::authority::Lenient;
use crate::server::clients::{ProxyService, RefusingService};
use crate::server::frontend::socket::Socket;
use crate::server::frontend::{Client, ClientRefused, connect};
use crate::server::tenants::peer::Peer;
use crate::server::transport::{self, Answer, Settings};
use crate::tcp::upkeep::{self, Use};

/// The maximum number of simultaneous connections of clients.
pub const CLIENTS: u32 = 65_536;

/// The maximum number of simultaneous connections of agents.
pub const AGENTS: u32 = 16_384;

/// The time limit for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The state that the connections of one listener share.
#[derive(Debug, Clone)]
pub struct Door {
    /// The slots that limit the number of connections.
    pub slots: Slots,
    /// The phase of the process.
    pub phase: watch::Receiver<Phase>,
    failures: Arc<Mutex<Failures>>,
}

/// The failed handshakes of one listener's peers, as far as they are logged: a peer may try as often as it can.
#[derive(Debug, Default)]
struct Failures {
    /// Its certificate was refused.
    refused: Reminder,
    /// All others.
    other: Reminder,
}

impl Door {
    /// Creates a door for at most `connections` connections.
    #[must_use]
    pub fn new(connections: u32, phase: watch::Receiver<Phase>) -> Self {
        Self {
            slots: Slots::new(connections),
            phase,
            failures: Arc::default(),
        }
    }

    /// Logs a failed handshake: a refused certificate as a warning, because such a peer is meant to connect. All other
    /// failures are also caused by port scans and probes.
    fn log(&self, peer: &str, is_refused: bool, why: &dyn Display) {
        // No code panics while it holds the lock.
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = if is_refused {
            &mut failures.refused
        } else {
            &mut failures.other
        };
        match (kind.count(Instant::now()), is_refused) {
            (Some(0), true) => warn!("no TLS session with {peer}: {why}"),
            (Some(omitted), true) => warn!(omitted, "no TLS session with {peer}: {why}"),
            (Some(0), false) => debug!("no TLS session with {peer}: {why}"),
            (Some(omitted), false) => debug!(omitted, "no TLS session with {peer}: {why}"),
            // Not `debug!`: by default such records are written (`Program::VERBOSITY`).
            (None, _) => trace!("no TLS session with {peer}: {why}"),
        }
    }

    /// Completes when the process drains.
    fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.clone();
        async move {
            // If the sender is gone, the process never drains.
            if phase
                .wait_for(|phase| *phase == Phase::Draining)
                .await
                .is_err()
            {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Accepts connections until the process drains, and serves each of them in its own task.
    pub async fn accept<L, S, F>(&self, listener: L, serve: S)
    where
        L: Listen,
        S: Fn(L::Stream) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut draining = std::pin::pin!(self.draining());
        loop {
            let (stream, _, slot) = tokio::select! {
                accepted = self.slots.accept(&listener) => accepted,
                () = draining.as_mut() => return,
            };
            // An async block around the future would reserve space for it twice.
            tokio::spawn(serve(stream).map(move |()| drop(slot)));
        }
    }
}

/// The handler for the connections of all listening sockets.
#[derive(Debug, Clone)]
pub struct Accepting {
    /// The server's state.
    pub server: Arc<Server>,
    /// The protocol of clients.
    pub mode: Mode,
    /// The door and the HTTP/2 settings for clients.
    pub clients: (Door, Settings),
    /// The door and the HTTP/2 settings for agents.
    pub agents: (Door, Settings),
}

impl Accepting {
    /// Accepts agents on this port.
    pub async fn agents(&self, port: u16, listener: TcpListener, tls: Current<Identity>) {
        let (door, settings) = &self.agents;
        door.accept(listener, |stream| {
            let (server, door, settings) = (Arc::clone(&self.server), door.clone(), *settings);
            let tls = tls.clone();
            async move {
                if let Some(session) = handshake(stream, Use::Link, &tls, &door).await {
                    let peer = Peer::with_session(port, &session);
                    let service = AgentService::new(&server, peer);
                    grpc(session, settings, service, door).await;
                }
            }
        })
        .await;
    }

    /// Accepts clients on this port.
    pub async fn clients(&self, port: u16, listener: TcpListener, tls: Current<Identity>) {
        let (door, _) = &self.clients;
        let shared = Arc::new(self.clone());
        door.accept(listener, |stream| {
            let (accepting, tls) = (Arc::clone(&shared), tls.clone());
            async move {
                // The handshake's future is on the heap, so that its memory is released after the handshake.
                let (door, _) = &accepting.clients;
                let shaken = Box::pin(handshake(stream, Use::Tunnel, &tls, door)).await;
                if let Some(session) = shaken {
                    let asked =
                        Client::new(&accepting.server, || Peer::with_session(port, &session));
                    accepting.serve(session, |session| session, asked).await;
                }
            }
        })
        .await;
    }

    /// Accepts clients on this Unix socket.
    pub async fn clients_on_socket(&self, path: PathBuf, listener: unix::Listener) {
        let (door, _) = &self.clients;
        door.accept(listener, |stream: UnixStream| {
            let asked = Client::new(&self.server, || Peer::on_socket(path.clone()));
            self.serve(stream, Lenient::new, asked)
        })
        .await;
    }

    /// Serves a client's connection. Each protocol has its own future on the heap: a common one would have the size of
    /// the largest, which is HTTP/2's.
    fn serve<S: Socket, I>(
        &self,
        io: S,
        http2: impl FnOnce(S) -> I,
        client: Result<Client, ClientRefused>,
    ) -> BoxFuture<'static, ()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (door, settings) = self.clients.clone();
        match (self.mode, client) {
            (Mode::Grpc, Ok(client)) => {
                grpc(http2(io), settings, Arc::new(ProxyService(client)), door).boxed()
            }
            // A rejected client does not count among its tenant's connections. It occupies one of the listener's slots
            // for at most the time limit of a handshake.
            (Mode::Grpc, Err(why)) => {
                let refused = grpc(http2(io), settings, Arc::new(RefusingService(why)), door);
                timeout(HANDSHAKE, refused).map(drop).boxed()
            }
            (Mode::HttpConnect, Ok(client)) => connect::serve(io, client, door.phase).boxed(),
            (Mode::HttpConnect, Err(why)) => {
                let refused = connect::refuse(io, Arc::clone(&self.server), why);
                timeout(HANDSHAKE, refused).map(drop).boxed()
            }
        }
    }
}

/// Serves gRPC on a byte stream.
async fn grpc<A: Answer>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    settings: Settings,
    service: Arc<A>,
    door: Door,
) {
    if let Err(why) = transport::serve(io, settings, service, door.draining()).await {
        debug!("a connection has ended: {why}");
    }
}

/// Returns a TLS session, or `None` if the handshake fails.
async fn handshake(
    stream: TcpStream,
    used_for: Use,
    tls: &Current<Identity>,
    door: &Door,
) -> Option<TlsStream<TcpStream>> {
    // An error means that the peer has disconnected, which the handshake detects.
    let _ = upkeep::prepare(&stream, used_for);
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.get().config));
    let address = stream.peer_addr();
    let peer = || match &address {
        Ok(address) => address.to_string(),
        Err(_) => "a peer that has gone".to_owned(),
    };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(session)) => return Some(session),
        Ok(Err(error)) => door.log(&peer(), refuses_certificate(&error), &error),
        Err(_) => {
            let why = format!("not within {} s", HANDSHAKE.as_secs());
            door.log(&peer(), false, &why);
        }
    }
    None
}

/// Returns true if the handshake failed because the peer's certificate was refused.
fn refuses_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}
