// SPDX-License-Identifier: Apache-2.0

//! The order of things: certificates, sockets, serving, signals, the end.

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
use crate::review::EnvEntry;
use crate::server::{self, Shared};
use crate::service::{PATHS, Service};

/// Serves until a signal says otherwise. `flags` are the values of all flags, for operators.
///
/// # Errors
/// The certificates cannot be used, or an address is not to be had: nothing has been served then.
pub async fn run(args: &Args, flags: Values) -> Result<()> {
    let metrics = Arc::new(Metrics::new().context("cannot make the metrics")?);
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
        "serving reviews on https://{}{}; pods get the API server's name {}",
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
        .context("cannot start the thread that looks for changed certificates")?;
    let server = tokio::spawn(server::run(listener, shared, args.max_connections));

    let name = signals.next().await;
    let delay = Duration::from_secs(args.shutdown_delay_seconds.into());
    info!(
        "{name}: not ready any more; serving for {} s still",
        delay.as_secs()
    );
    to_phase.send_replace(Phase::Leaving);
    // A second signal ends the delay.
    let _ = timeout(delay, signals.next()).await;
    to_phase.send_replace(Phase::Draining);
    server.await.context("the server has failed")
}
