// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server`: its start and shutdown.
//!
//! On the first SIGTERM or SIGINT the server stops accepting connections. With `--graceful-shutdown-timeout`, existing
//! connections may continue for at most that time; without it, they are cut. The second signal ends the process
//! immediately, with exit code 1.

mod args;
mod doctor;
mod entrances;
mod page;
mod rules_file;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use proxy_serve::flags::Values;
use proxy_serve::http::{self, StatusCode};
use proxy_serve::listen;
use proxy_serve::listen::unix::Listener;
use proxy_serve::pages::{About, Served};
use proxy_serve::reload::{self, Current, Look, Reloader};
use proxy_serve::shutdown::{Phase, Signals};
use proxy_serve::tls::server::{Identity, Server as Tls};
use tokio::sync::watch;
use tokio::time::interval;
use tracing::{info, warn};

pub use self::args::Args;
use self::entrances::Entrances;
use self::page::View;
use self::settings::{Frontend, Settings};
use super::health::{Admin, Health, Metrics, Readiness};
use super::listeners::{AGENTS, Accepting, CLIENTS, Door};
use super::{COUNT, Program, RELOAD, about, watch_memory};
use crate::cluster;
use crate::cluster::publishing::Publisher;
use crate::cluster::tokens::Reviewer;
use crate::flow::Budget;
use crate::metrics::certificates::Names;
use crate::metrics::server::ServerMetrics;
use crate::server::Server;
use crate::server::backend::Shared;
use crate::server::tenants::Tenants;
use crate::server::tenants::tenant::Parts;
use crate::server::transport;

/// The flags of the certificates that are presented to clients and to agents.
const CLIENTS_TLS: Names = Names {
    own: "server-cert",
    authorities: "server-ca-cert",
};
const AGENTS_TLS: Names = Names {
    own: "cluster-cert",
    authorities: "cluster-ca-cert",
};

/// The time for which connections may take to end after they have been cut.
const CUT: Duration = Duration::from_secs(1);

impl Program for Args {
    const NAME: &'static str = crate::app::called::SERVER;

    async fn run(self, flags: Values) -> Result<ExitCode> {
        run(Settings::new(&self)?, about::<Self>(flags)).await
    }
}

/// The server is ready while it serves and has at least one agent.
struct Ready {
    server: Arc<Server>,
    phase: watch::Receiver<Phase>,
}

impl Readiness for Ready {
    fn readiness(&self, _: bool) -> (StatusCode, String) {
        let not = |why: &str| (StatusCode::INTERNAL_SERVER_ERROR, why.to_owned());
        if *self.phase.borrow() != Phase::Serving {
            not("the server is shutting down")
        } else if self.server.is_ready() {
            (StatusCode::OK, "ok".to_owned())
        } else {
            not("no connection to any proxy agent")
        }
    }
}

async fn run(settings: Settings, about: About) -> Result<ExitCode> {
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let metrics = ServerMetrics::new();
    let client = api_server(&settings).await?;
    let publisher = settings
        .leases
        .as_ref()
        .zip(client.clone())
        .map(|(leases, client)| {
            Publisher::new(
                client,
                &leases.namespace,
                settings.id.clone(),
                leases.labels.clone(),
                Arc::clone(&metrics),
            )
        });
    let budget = Arc::new(Budget::new(settings.budget));
    let server = state(&settings, &metrics, &budget, client);
    let (to_phase, phase) = watch::channel(Phase::Serving);
    let health = settings
        .health
        .listen("--health-bind-address or --health-port")?;
    let admin = settings
        .admin
        .listen("--admin-bind-address or --admin-port")?;
    let mut files: Vec<Box<dyn Look>> = Vec::new();
    let agents_tls = load(settings.agents.1.clone(), &metrics, AGENTS_TLS, &mut files)?;
    let agents = listen::tcp(settings.agents.0, "--agent-bind-address or --agent-port")?;
    let accepting = Accepting {
        server: Arc::clone(&server),
        mode: settings.mode,
        clients: (
            Door::new(CLIENTS, phase.clone()),
            transport::Settings::tunnels(settings.keepalive.1),
        ),
        agents: (
            Door::new(AGENTS, phase.clone()),
            transport::Settings::link(settings.keepalive.0),
        ),
    };
    let doors = Doors {
        clients: accepting.clients.0.clone(),
        agents: accepting.agents.0.clone(),
    };
    let clients = Clients::open(&settings.frontend, &metrics, &mut files)?;
    if let Some(path) = &settings.tenants {
        let tls = (clients.tls(), agents_tls.clone());
        let entrances = Entrances::new(accepting.clone(), &settings, tls);
        let rules = rules_file::load(path, &settings, &server, entrances)?;
        files.push(Box::new(rules));
    }
    let view = View {
        server: Arc::clone(&server),
        budget: Arc::clone(&budget),
        phase: phase.clone(),
    };
    serve_ports((about, view), &settings, health, admin, phase)?;
    reload::watch(files, RELOAD).context("cannot start the thread that looks for changed files")?;
    info!(serverID = settings.id.as_str(), "Starting proxy server");
    let publishing = publisher
        .clone()
        .map(|publisher| tokio::spawn(async move { publisher.run().await }));
    let serve = async {
        tokio::join!(
            clients.accept(&accepting),
            accepting.agents(settings.agents.0.port(), agents, agents_tls),
            watch_memory(&metrics.buffered, &budget, || doors.clients.slots.taken()),
            publish_tenants(&server)
        );
    };
    tokio::select! {
        () = serve => {}
        signal = signals.next() => {
            info!(signal, "Shutting down server.");
            if let Some(publishing) = publishing {
                publishing.abort();
            }
            to_phase.send_replace(Phase::Leaving);
            let end = end(&settings, &server, &doors, &to_phase, publisher.as_ref());
            tokio::select! {
                () = end => {}
                signal = signals.next() => {
                    warn!(signal, "a second signal: ending at once");
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates the server's state, without any peer.
fn state(
    settings: &Settings,
    metrics: &Arc<ServerMetrics>,
    budget: &Arc<Budget>,
    client: Option<kube::Client>,
) -> Arc<Server> {
    let reviewer = client.and_then(|client| match &settings.account {
        Some(account) => Some(Reviewer::new(client, account.clone())),
        None => settings.tenants.is_some().then(|| Reviewer::of_any(client)),
    });
    let parts = Parts {
        strategies: settings.strategies.clone(),
        shared: Arc::new(Shared {
            metrics: Arc::clone(metrics),
            budget: Arc::clone(budget),
            limits: settings.limits,
        }),
    };
    let tenants = match settings.tenants {
        Some(_) => Tenants::several(parts),
        None => Tenants::one(parts),
    };
    Arc::new(Server::new(
        settings.id.clone(),
        settings.count,
        tenants,
        Arc::clone(metrics),
        settings.dial_timeout,
        reviewer,
        settings.absolute_form,
    ))
}

/// Returns a client for the API server if a flag requires it. Rules of tenants work without one.
async fn api_server(settings: &Settings) -> Result<Option<kube::Client>> {
    let has_tenants = settings.tenants.is_some();
    let is_needed = settings.account.is_some()
        || settings.leases.is_some()
        || (has_tenants && settings.kubeconfig.is_some());
    if !is_needed && !has_tenants {
        return Ok(None);
    }
    match cluster::connect(settings.kubeconfig.as_deref()).await {
        Ok(client) => Ok(Some(client)),
        Err(error) if is_needed => Err(error.into()),
        Err(error) => {
            info!("rules of tenants cannot name tokens: {error}");
            Ok(None)
        }
    }
}

/// Updates the metrics of tenants periodically.
async fn publish_tenants(server: &Server) {
    let mut tick = interval(COUNT);
    loop {
        tick.tick().await;
        server.tenants.publish();
    }
}

/// The listeners of the server.
struct Doors {
    clients: Door,
    agents: Door,
}

/// Shuts down: connections may continue for the grace period and are then cut.
async fn end(
    settings: &Settings,
    server: &Server,
    doors: &Doors,
    to_phase: &watch::Sender<Phase>,
    publisher: Option<&Publisher>,
) {
    let withdraw = async {
        if let Some(publisher) = publisher {
            publisher.withdraw().await;
        }
    };
    if settings.graceful.is_zero() {
        to_phase.send_replace(Phase::Draining);
        server.cut_agents();
        tokio::join!(withdraw, drained(doors, CUT));
        return;
    }
    // Clients are asked to connect elsewhere. The streams of agents stay open to carry the clients' remaining data.
    to_phase.send_replace(Phase::Draining);
    if let Err(left) = doors.clients.slots.drained(settings.graceful).await {
        warn!(
            "{left} connections of clients are cut: they did not end within {:?}",
            settings.graceful
        );
    }
    server.cut_agents();
    drained(doors, CUT).await;
    withdraw.await;
}

async fn drained(doors: &Doors, limit: Duration) {
    let start = Instant::now();
    for door in [&doors.clients, &doors.agents] {
        if let Err(left) = door
            .slots
            .drained(limit.saturating_sub(start.elapsed()))
            .await
        {
            info!("{left} connections are cut");
        }
    }
}

/// Serves health and administration, each on its own thread.
fn serve_ports(
    (about, view): (About, View),
    settings: &Settings,
    health: std::net::TcpListener,
    admin: std::net::TcpListener,
    phase: watch::Receiver<Phase>,
) -> Result<()> {
    let server = Arc::clone(&view.server);
    let registry = server.metrics.registry().clone();
    // These ports close first if connections are cut immediately; otherwise they close when the process ends.
    let stop = |mut phase: watch::Receiver<Phase>, is_early: bool| async move {
        let is_leaving = phase
            .wait_for(|phase| *phase >= Phase::Leaving)
            .await
            .is_ok();
        if !is_leaving || !is_early {
            std::future::pending::<()>().await;
        }
    };
    let is_early = settings.graceful.is_zero();
    let handler = Health {
        readiness: Ready {
            server,
            phase: phase.clone(),
        },
        registry: registry.clone(),
    };
    http::spawn("health", health, handler, stop(phase.clone(), is_early))
        .context("cannot start the thread that answers probes")?;
    let handler = Admin {
        metrics: Metrics::Here(registry),
        profiling: settings.profiling,
        show: view,
    };
    let handler = Served::new(about, handler);
    http::spawn("admin", admin, handler, stop(phase, is_early))
        .context("cannot start the thread for administration")
}

fn load(
    tls: Tls,
    metrics: &ServerMetrics,
    names: Names,
    files: &mut Vec<Box<dyn Look>>,
) -> Result<Current<Identity>> {
    let reloader = Reloader::new(tls, metrics.certificates.observer(names, None))?;
    let current = reloader.current();
    files.push(Box::new(reloader));
    Ok(current)
}

/// The clients' listener that the flags configure.
enum Clients {
    Unix(std::path::PathBuf, Listener),
    Tls(u16, tokio::net::TcpListener, Current<Identity>),
}

impl Clients {
    fn open(
        frontend: &Frontend,
        metrics: &ServerMetrics,
        files: &mut Vec<Box<dyn Look>>,
    ) -> Result<Self> {
        match frontend {
            Frontend::Unix(path, existing) => {
                let listener = Listener::bind(path, "--uds-name", *existing)?;
                Ok(Self::Unix(path.clone(), listener))
            }
            Frontend::Tls(bind, tls) => {
                let tls = load(tls.clone(), metrics, CLIENTS_TLS, files)?;
                let listener = listen::tcp(*bind, "--server-bind-address or --server-port")?;
                Ok(Self::Tls(bind.port(), listener, tls))
            }
        }
    }

    fn tls(&self) -> Option<Current<Identity>> {
        match self {
            Self::Unix(..) => None,
            Self::Tls(_, _, tls) => Some(tls.clone()),
        }
    }

    async fn accept(self, accepting: &Accepting) {
        match self {
            Self::Unix(path, listener) => accepting.clients_on_socket(path, listener).await,
            Self::Tls(port, listener, tls) => accepting.clients(port, listener, tls).await,
        }
    }
}

/// Parses and checks a command line.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_line(words: &[&std::ffi::OsStr]) {
    // A host name would cause a lookup.
    let is_address = |text: &str| text.is_empty() || text.parse::<std::net::IpAddr>().is_ok();
    if let Some(args) = super::accepted::<Args>(words)
        && [
            &args.server_bind_address,
            &args.agent_bind_address,
            &args.health_bind_address,
            &args.admin_bind_address,
        ]
        .iter()
        .all(|host| is_address(host))
        && let Err(refused) = Settings::new(&args)
    {
        assert!(!refused.to_string().is_empty());
    }
}
