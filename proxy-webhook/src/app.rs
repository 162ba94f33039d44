// SPDX-License-Identifier: Apache-2.0

//! Loads certificates, opens sockets, serves, and shuts down on a signal.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_serve::flags::Values;
use proxy_serve::http;
use proxy_serve::listen::{self, Bind};
use proxy_serve::pages::{About, Served};
use proxy_serve::reload;
use proxy_serve::shutdown::{Phase, Signals};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::certificates;
use crate::cli::Args;
use crate::limits;
use crate::metrics::Metrics;
use crate::probes::Probes;
use crate::review::{EnvEntry, VARIABLE};
use crate::server::{self, Shared};
use crate::service::{PATHS, Service};

/// Serves until a signal arrives. `flags` are the effective values of all flags, shown on a page.
///
/// # Errors
/// If the certificates cannot be used or an address cannot be bound. No request has been served then.
pub async fn run(args: &Args, flags: Values) -> Result<()> {
    let metrics = Arc::new(Metrics::new().context("cannot create the metrics")?);
    let reloader = certificates::load(args, Arc::clone(&metrics))?;
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let bind = Bind::parse("--host", &args.host, args.port)?;
    let listener = listen::tcp(bind, "--host or --port")?;
    let (to_phase, phase) = watch::channel(Phase::Serving);
    if let Some(bind) = args.listen.0 {
        let listener = bind.listen("--listen")?;
        info!("probes and metrics on http://{}", listener.local_addr()?);
        let probes = Probes {
            metrics: Arc::clone(&metrics),
            phase: phase.clone(),
        };
        let about = About {
            program: "apiserver-proxy-pod-webhook",
            version: env!("CARGO_PKG_VERSION"),
            flags,
        };
        let probes = Served::new(about, probes);
        http::spawn("probes", listener, probes, std::future::pending())
            .context("cannot start the thread that answers probes")?;
    }
    info!(
        "serving reviews on https://{}{}; containers get {VARIABLE}={}",
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
    reload::watch(vec![Box::new(reloader)], limits::RELOAD)
        .context("cannot start the thread that reloads certificates")?;
    let server = tokio::spawn(server::run(listener, shared, args.max_connections));

    let name = signals.next().await;
    let delay = Duration::from_secs(args.shutdown_delay_seconds.into());
    info!(
        "{name} received: /readyz fails from now on, requests are served for another {} s",
        delay.as_secs()
    );
    to_phase.send_replace(Phase::Leaving);
    // A second signal ends the delay.
    let _ = timeout(delay, signals.next()).await;
    to_phase.send_replace(Phase::Draining);
    server.await.context("the server's task failed")
}
