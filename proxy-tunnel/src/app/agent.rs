// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-agent`: its start and shutdown. The health port is opened before any step that can fail for a reason
//! outside of this process.
//!
//! On the first SIGTERM or SIGINT the agent notifies all servers that it is about to shut down. It continues to serve
//! and opens no new connections to servers. The second signal ends the process.

mod args;
mod doctor;
mod page;
mod settings;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_serve::flags::Values;
use proxy_serve::http::{self, StatusCode};
use proxy_serve::pages::{About, Served};
use proxy_serve::reload::{self, Current, Reloader};
use proxy_serve::shutdown::Signals;
use proxy_serve::tls::client::Identity;
use tokio::time::sleep;
use tracing::{error, info};

pub use self::args::Args;
use self::page::View;
use self::settings::{Counting, Settings};
use super::health::{Admin, Health, Metrics, Readiness};
use super::{Program, RELOAD, about, watch_memory};
use crate::agent::connector::Connector;
use crate::agent::link::Shared;
use crate::agent::sync::{self, Sync};
use crate::cluster;
use crate::cluster::counting::{Counter, Leases};
use crate::flow::Budget;
use crate::metrics::agent::AgentMetrics;
use crate::metrics::certificates::Names;

/// The flags of the certificate that the agent presents to servers, and of the CAs that verify the servers.
const CERTIFICATES: Names = Names {
    own: "agent-cert",
    authorities: "ca-cert",
};

/// The pause before the settings of the API server are read again.
const RETRY: Duration = Duration::from_secs(10);

impl Program for Args {
    const NAME: &'static str = crate::app::called::AGENT;

    async fn run(self, flags: Values) -> Result<ExitCode> {
        run(Settings::new(&self)?, about::<Self>(flags)).await
    }
}

/// The streams to servers, which are set after the start.
#[derive(Clone, Default)]
struct Ready(Arc<OnceLock<Arc<Sync>>>);

impl Readiness for Ready {
    fn readiness(&self, is_verbose: bool) -> (StatusCode, String) {
        let (there, wanted) = self.0.get().map_or((0, 1), |sync| sync.connected());
        if there == 0 {
            let text = "[+]ping ok\n[-]server-connected failed: no servers connected\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
        }
        let text = if !is_verbose {
            "ok".to_owned()
        } else if there < wanted {
            format!(
                "[+]ping ok\n[+]server-connected ok: {there} of {wanted} servers\ncheck passed\n"
            )
        } else {
            "[+]ping ok\n[+]server-connected ok\ncheck passed\n".to_owned()
        };
        (StatusCode::OK, text)
    }
}

async fn run(settings: Settings, about: About) -> Result<ExitCode> {
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let metrics = AgentMetrics::new();
    let ready = Ready::default();
    let budget = Arc::new(Budget::new(settings.budget));
    let view = View {
        agent_id: settings.agent_id.clone(),
        streams: ready.clone(),
        metrics: Arc::clone(&metrics),
        budget: Arc::clone(&budget),
    };
    serve_ports(&settings, about, view)?;
    let observer = metrics.certificates.observer(CERTIFICATES, None);
    let reloader = Reloader::new(settings.tls.clone(), observer)?;
    let connector = connector(&settings, reloader.current(), &metrics, &budget);
    reload::watch(vec![Box::new(reloader)], RELOAD)
        .context("cannot start the thread that looks for changed certificates")?;
    let leases = settings.counting.map(|counting| {
        let leases = Arc::new(Leases::default());
        tokio::spawn(count(counting, Arc::clone(&metrics), Arc::clone(&leases)));
        leases
    });
    let sync = Sync::new(
        sync::Settings {
            hosts: settings.hosts,
            interval: settings.interval,
            cap: settings.cap,
            forever: settings.forever,
            source: settings.source,
            leases,
        },
        connector,
    );
    tokio::spawn(async move {
        let connections = || {
            let open = metrics.endpoint_connections.get();
            usize::try_from(open).unwrap_or_default()
        };
        watch_memory(&metrics.buffered, &budget, connections).await;
    });
    // This cannot fail, because the value is set only here.
    let _ = ready.0.set(Arc::clone(&sync));
    let keeping = Arc::clone(&sync);
    tokio::spawn(async move { keeping.run().await });
    let signal = signals.next().await;
    info!(
        signal,
        "Draining: servers choose other agents from now on; a second signal ends this one."
    );
    sync.drain();
    let signal = signals.next().await;
    info!(signal, "Shutting down agent.");
    Ok(ExitCode::SUCCESS)
}

/// Builds the settings for connections to servers.
fn connector(
    settings: &Settings,
    tls: Current<Identity>,
    metrics: &Arc<AgentMetrics>,
    budget: &Arc<Budget>,
) -> Connector {
    Connector {
        port: settings.server_port,
        tls,
        server_name: settings.server_name.clone(),
        keepalive: settings.keepalive,
        token: settings.token.clone(),
        identifiers: settings.identifiers.clone(),
        shared: Arc::new(Shared {
            agent_id: settings.agent_id.clone(),
            metrics: Arc::clone(metrics),
            budget: Arc::clone(budget),
            limits: settings.limits,
            allowed: settings.allowed.clone(),
        }),
    }
}

fn serve_ports(settings: &Settings, about: About, view: View) -> Result<()> {
    let health = settings
        .health
        .listen("--health-server-host or --health-server-port")?;
    let admin = settings
        .admin
        .listen("--admin-bind-address or --admin-server-port")?;
    let handler = Health {
        readiness: view.streams.clone(),
        registry: view.metrics.registry().clone(),
    };
    http::spawn("health", health, handler, std::future::pending())
        .context("cannot start the thread that answers probes")?;
    let handler = Admin {
        metrics: Metrics::On(settings.health_port),
        profiling: settings.profiling,
        show: view,
    };
    let handler = Served::new(about, handler);
    http::spawn("admin", admin, handler, std::future::pending())
        .context("cannot start the thread for administration")
}

/// Counts leases, as soon as the settings of the API server are usable.
async fn count(counting: Counting, metrics: Arc<AgentMetrics>, leases: Arc<Leases>) {
    let client = loop {
        match cluster::connect(counting.kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(why) => {
                let why = anyhow::Error::new(why);
                error!(
                    err = format!("{why:#}").as_str(),
                    "leases cannot be counted"
                );
            }
        }
        sleep(RETRY).await;
    };
    Counter::new(
        client,
        &counting.namespace,
        counting.selector,
        metrics,
        leases,
    )
    .run()
    .await;
}

/// Parses and checks a command line.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_line(words: &[&std::ffi::OsStr]) {
    // A host name would cause a lookup.
    let is_address = |text: &str| text.is_empty() || text.parse::<std::net::IpAddr>().is_ok();
    if let Some(args) = super::accepted::<Args>(words)
        && is_address(&args.health_server_host)
        && is_address(&args.admin_bind_address)
        && let Ok(settings) = Settings::new(&args)
    {
        assert!(!settings.hosts.is_empty() && settings.interval <= settings.cap);
    }
}
