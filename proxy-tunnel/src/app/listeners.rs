// SPDX-License-Identifier: Apache-2.0

//! Accepting the server's clients and agents: how many, the TLS handshake and its limit, and the end of all of
//! them. What happens on a connection is `server`'s business.
//!
//! | limit | of clients | of agents |
//! |---|---|---|
//! | connections at once | 65,536 | 16,384 |
//! | TLS handshake | 10 s | 10 s |
//! | from there to the first gRPC request | 120 s | 120 s |
//! | head of a CONNECT request | 60 s, 64 KiB, 100 fields | |
//! | header fields of a gRPC request | 64 KiB | 64 KiB |
//! | one message | 4 MiB | 4 MiB |
//! | bytes that are read before any is taken | 512 KiB for each stream | 8 MiB, always taken |

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proxy_serve::listen::accept::{Listen, Slots};
use proxy_serve::shutdown::Phase;
use proxy_serve::tls::reload::Current;
use proxy_serve::tls::server::Identity;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::server::Server;
use crate::server::frontend::connect;
use crate::server::frontend::socket::Socket;
use crate::server::transport::{self, Answer, Settings};

/// Connections of clients at once.
pub const CLIENTS: u32 = 65_536;

/// Connections of agents at once.
pub const AGENTS: u32 = 16_384;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the connections of one listener share.
#[derive(Debug, Clone)]
pub struct Door {
    /// Room for them.
    pub slots: Slots,
    /// The phase of the process.
    pub phase: watch::Receiver<Phase>,
}

impl Door {
    /// A door for so many connections.
    #[must_use]
    pub fn new(connections: u32, phase: watch::Receiver<Phase>) -> Self {
        Self {
            slots: Slots::new(connections),
            phase,
        }
    }

    /// Ready when the process drains.
    fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.clone();
        async move {
            // A process without phases does not drain.
            if phase
                .wait_for(|phase| *phase == Phase::Draining)
                .await
                .is_err()
            {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Accepts connections until the process drains, and serves each in a task of its own.
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
            let serving = serve(stream);
            tokio::spawn(async move {
                serving.await;
                drop(slot);
            });
        }
    }
}

/// gRPC on a stream of bytes.
pub async fn grpc<A: Answer>(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    settings: Settings,
    service: Arc<A>,
    door: Door,
) {
    if let Err(why) = transport::serve(io, settings, service, door.draining()).await {
        debug!("a connection has ended: {why}");
    }
}

/// HTTP CONNECT on a stream of bytes.
pub async fn http_connect(io: impl Socket, server: Arc<Server>) {
    connect::serve(io, &server).await;
}

/// A TLS session; none if the peer does not get one.
pub async fn handshake(stream: TcpStream, tls: &Current<Identity>) -> Option<TlsStream<TcpStream>> {
    // Messages are written whole; an error would mean that the peer has gone.
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.get().config));
    let failed = |why: &dyn Debug| debug!("no TLS session: {why:?}");
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(session)) => Some(session),
        Ok(Err(error)) => {
            failed(&error);
            None
        }
        Err(_) => {
            failed(&format_args!("not within {} s", HANDSHAKE.as_secs()));
            None
        }
    }
}

/// A TCP listener for TLS with what its sessions are made of.
#[derive(Debug)]
pub struct Secured {
    /// The listener.
    pub listener: TcpListener,
    /// Certificate, key and CAs.
    pub tls: Current<Identity>,
}
