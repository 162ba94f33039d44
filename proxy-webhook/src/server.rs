// SPDX-License-Identifier: Apache-2.0

//! Accepts connections, as many at once as allowed, and ends them all when the process leaves. What
//! happens on one of them is [`connection`]'s business.

mod activity;
mod connection;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::limits;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::tls::reload::Current;

/// How long to wait when the kernel has no descriptor or memory for a connection.
const BREATH: Duration = Duration::from_millis(100);

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It works.
    Serving,
    /// It works, but tells everybody to go elsewhere.
    Leaving,
    /// It ends what is open and accepts nothing.
    Draining,
}

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// The certificates.
    pub current: Current,
    /// What answers.
    pub service: Service,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The phase, as it changes.
    pub phase: watch::Receiver<Phase>,
}

/// Accepts connections until the process drains; returns when the last one has ended, or did not in time.
pub async fn run(listener: TcpListener, shared: Arc<Shared>, max_connections: u32) {
    let slots = Arc::new(Semaphore::new(max_connections as usize));
    let mut phase = shared.phase.clone();
    tokio::select! {
        () = accept(&listener, &shared, &slots) => {}
        _ = phase.wait_for(|phase| *phase == Phase::Draining) => {}
    }
    // Who comes now is refused by the kernel, and goes elsewhere.
    drop(listener);
    let all = slots.acquire_many(max_connections);
    if timeout(limits::DRAIN, all).await.is_ok() {
        info!("all connections have ended");
    } else {
        warn!(
            "{} connections are cut: they did not end within {} s",
            max_connections as usize - slots.available_permits(),
            limits::DRAIN.as_secs()
        );
    }
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>, slots: &Arc<Semaphore>) {
    while let Ok(slot) = Arc::clone(slots).acquire_owned().await {
        let (stream, peer) = accepted(listener).await;
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            shared.metrics.connections.inc();
            connection::serve(stream, peer, &shared).await;
            shared.metrics.connections.dec();
            drop(slot);
        });
    }
}

/// The next connection.
pub async fn accepted(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                warn!("cannot accept a connection, trying again: {error}");
                sleep(BREATH).await;
            }
        }
    }
}
