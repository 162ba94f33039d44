// SPDX-License-Identifier: Apache-2.0

//! Accepts connections, up to the limit, and ends them when the process shuts down. [`connection`] serves a single one.

mod connection;

use std::sync::Arc;

use proxy_serve::listen::accept::Slots;
use proxy_serve::reload::Current;
use proxy_serve::shutdown::Phase;
use proxy_serve::tls::server::Identity;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::limits;
use crate::metrics::Metrics;
use crate::service::Service;

/// The state that all connections share.
#[derive(Debug)]
pub struct Shared {
    /// The certificates.
    pub current: Current<Identity>,
    /// The service that answers.
    pub service: Service,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The current phase.
    pub phase: watch::Receiver<Phase>,
}

/// Accepts connections until the shutdown begins; returns when the last one has ended, at most [`limits::DRAIN`] later.
pub async fn run(listener: TcpListener, shared: Arc<Shared>, max_connections: u32) {
    let slots = Slots::new(max_connections);
    let mut phase = shared.phase.clone();
    tokio::select! {
        () = accept(&listener, &shared, &slots) => {}
        _ = phase.wait_for(|phase| *phase == Phase::Draining) => {}
    }
    // From now on the kernel refuses new connections, and clients connect to another replica.
    drop(listener);
    match slots.drained(limits::DRAIN).await {
        Ok(()) => info!("all connections have ended"),
        Err(open) => warn!(
            "closing {open} connections that did not end within {} s",
            limits::DRAIN.as_secs()
        ),
    }
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>, slots: &Slots) {
    loop {
        let (stream, peer, slot) = slots.accept(listener).await;
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            shared.metrics.connections.inc();
            connection::serve(stream, peer, &shared).await;
            shared.metrics.connections.dec();
            drop(slot);
        });
    }
}
