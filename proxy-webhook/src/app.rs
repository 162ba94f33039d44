// SPDX-License-Identifier: Apache-2.0

//! The order of things: certificates, sockets, serving, signals, the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::cli::Args;
use crate::listen::{bind_of, listen};
use crate::metrics::Metrics;
use crate::probes;
use crate::review::EnvEntry;
use crate::server::{self, Phase, Shared};
use crate::service::{PATHS, Service};
use crate::tls::Paths;
use crate::tls::reload::Reloader;

/// Serves until a signal says otherwise.
///
/// # Errors
/// The certificates cannot be used, or an address is not to be had: nothing has been served then.
pub async fn run(args: &Args) -> Result<()> {
    let metrics = Arc::new(Metrics::new().context("cannot make the metrics")?);
    let reloader = Reloader::new(paths(args), Arc::clone(&metrics))?;
    let mut signals = Signals::new()?;
    let bind = bind_of(&args.host, args.port)?;
    let listener = listen(bind, "--host or --port")?;
    let (to_phase, phase) = watch::channel(Phase::Serving);
    if let Some(bind) = args.listen.0 {
        let probes = listen(bind, "--listen")?;
        info!("probes and metrics on http://{}", probes.local_addr()?);
        tokio::spawn(probes::run(probes, Arc::clone(&metrics), phase.clone()));
    }
    info!(
        "reviews on https://{}{} tell pods the name {}",
        listener.local_addr()?,
        PATHS[0],
        args.apiserver_fqdn
    );
    let shared = Arc::new(Shared {
        current: reloader.current(),
        service: Service::new(
            EnvEntry::new(args.apiserver_fqdn.as_str()),
            args.max_requests as usize,
            Arc::clone(&metrics),
        ),
        metrics,
        phase,
    });
    reloader.watch()?;
    let server = tokio::spawn(server::run(listener, shared, args.max_connections));

    let name = signals.next().await;
    let delay = Duration::from_secs(args.shutdown_delay_seconds.into());
    info!(
        "{name}: not ready any more; serving for {} s still",
        delay.as_secs()
    );
    to_phase.send_replace(Phase::Leaving);
    // A second signal means it.
    let _ = timeout(delay, signals.next()).await;
    to_phase.send_replace(Phase::Draining);
    server.await.context("the server has failed")
}

fn paths(args: &Args) -> Paths {
    let file = |name| args.cert_dir.join(name);
    Paths {
        certificate: file(&args.cert_name),
        key: file(&args.key_name),
        client_ca: (!args.client_ca_name.is_empty()).then(|| file(&args.client_ca_name)),
    }
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let of = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one; gives its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
