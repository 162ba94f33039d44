// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-server`: the order in which it starts and ends.
//!
//! The first SIGTERM or SIGINT ends accepting. With `--graceful-shutdown-timeout` connections go on for at most
//! that long; without, they are cut. The second signal ends the process at once, with exit code 1.

mod args;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use proxy_serve::http::{self, StatusCode};
use proxy_serve::listen;
use proxy_serve::listen::unix::{Existing, Listener};
use proxy_serve::shutdown::{Phase, Signals};
use proxy_serve::tls::reload::{self, Look, Reloader};
use proxy_serve::tls::server::Server as Tls;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tracing::{info, warn};

pub use self::args::Args;
use self::settings::{Frontend, Settings};
use super::health::{Admin, Health, Metrics, Readiness};
use super::listeners::{AGENTS, CLIENTS, Door, Secured, grpc, handshake, http_connect};
use super::{Program, RELOAD, count_buffers};
use crate::client::Mode;
use crate::cluster;
use crate::cluster::publishing::Publisher;
use crate::cluster::tokens::Reviewer;
use crate::flow::Budget;
use crate::metrics::server::ServerMetrics;
use crate::server::Server;
use crate::server::agents::AgentService;
use crate::server::authority::Lenient;
use crate::server::backend::Shared;
use crate::server::clients::ProxyService;
use crate::server::strategies::Agents;
use crate::server::transport;

/// How long connections that were cut may take to end.
const CUT: Duration = Duration::from_secs(1);

impl Program for Args {
    const NAME: &'static str = "konnectivity-server";

    async fn run(self) -> Result<ExitCode> {
        run(Settings::new(&self)?).await
    }
}

/// Ready while it serves and has an agent.
struct Ready {
    server: Arc<Server>,
    phase: watch::Receiver<Phase>,
}

impl Readiness for Ready {
    fn readiness(&self, _: bool) -> (StatusCode, String) {
        let not = |why: &str| (StatusCode::INTERNAL_SERVER_ERROR, why.to_owned());
        if *self.phase.borrow() != Phase::Serving {
            not("the server is shutting down")
        } else if self.server.agents.is_ready() {
            (StatusCode::OK, "ok".to_owned())
        } else {
            not("no connection to any proxy agent")
        }
    }
}

async fn run(settings: Settings) -> Result<ExitCode> {
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let metrics = ServerMetrics::new();
    let client = if settings.account.is_some() || settings.leases.is_some() {
        Some(cluster::connect(settings.kubeconfig.as_deref()).await?)
    } else {
        None
    };
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
    let reviewer = settings
        .account
        .clone()
        .zip(client)
        .map(|(account, client)| Reviewer::new(client, account));
    let budget = Arc::new(Budget::new(settings.budget));
    let server = Arc::new(Server::new(
        settings.id.clone(),
        settings.count,
        Agents::new(settings.strategies.clone(), Arc::clone(&metrics)),
        Arc::new(Shared {
            metrics: Arc::clone(&metrics),
            budget: Arc::clone(&budget),
            limits: settings.limits,
        }),
        settings.dial_timeout,
        reviewer,
    ));
    let (to_phase, phase) = watch::channel(Phase::Serving);
    let health = settings
        .health
        .listen("--health-bind-address or --health-port")?;
    let admin = settings
        .admin
        .listen("--admin-bind-address or --admin-port")?;
    let mut files: Vec<Box<dyn Look>> = Vec::new();
    let agents = Secured {
        tls: load(settings.agents.1.clone(), &mut files)?,
        listener: listen::tcp(settings.agents.0, "--agent-bind-address or --agent-port")?,
    };
    let doors = Doors {
        clients: Door::new(CLIENTS, phase.clone()),
        agents: Door::new(AGENTS, phase.clone()),
    };
    let accepting = accept_clients(&settings, &server, &doors.clients, &mut files)?;
    serve_ports(&server, &settings, health, admin, phase)?;
    reload::watch(files, RELOAD)
        .context("cannot start the thread that looks for changed certificates")?;
    let accepting_agents =
        accept_agents(agents, settings.keepalive.0, &server, doors.agents.clone());
    info!(serverID = settings.id.as_str(), "Starting proxy server");
    let publishing = publisher
        .clone()
        .map(|publisher| tokio::spawn(async move { publisher.run().await }));
    let serve = async {
        tokio::join!(
            accepting,
            accepting_agents,
            count_buffers(&metrics.buffered, &budget)
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

/// What accepts.
struct Doors {
    clients: Door,
    agents: Door,
}

/// The end: connections go on for as long as they may, then they are cut.
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
    // Clients are asked to go elsewhere; the agents' streams carry what they still have.
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

/// Health and administration, each on a thread of its own.
fn serve_ports(
    server: &Arc<Server>,
    settings: &Settings,
    health: std::net::TcpListener,
    admin: std::net::TcpListener,
    phase: watch::Receiver<Phase>,
) -> Result<()> {
    let registry = server.shared.metrics.registry().clone();
    // They end first where connections are cut at once, else with the process.
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
            server: Arc::clone(server),
            phase: phase.clone(),
        },
        registry: registry.clone(),
    };
    http::spawn("health", health, handler, stop(phase.clone(), is_early))
        .context("cannot start the thread that answers probes")?;
    let handler = Admin {
        metrics: Metrics::Here(registry),
        profiling: settings.profiling,
    };
    http::spawn("admin", admin, handler, stop(phase, is_early))
        .context("cannot start the thread for administration")
}

fn load(
    tls: Tls,
    files: &mut Vec<Box<dyn Look>>,
) -> Result<reload::Current<proxy_serve::tls::server::Identity>> {
    let reloader = Reloader::new(tls, |_| {})?;
    let current = reloader.current();
    files.push(Box::new(reloader));
    Ok(current)
}

async fn accept_agents(agents: Secured, keepalive: Duration, server: &Arc<Server>, door: Door) {
    let service = Arc::new(AgentService(Arc::clone(server)));
    let settings = transport::Settings::link(keepalive);
    let Secured { listener, tls } = agents;
    let serving = door.clone();
    door.accept(listener, move |stream| {
        let (tls, service, door) = (tls.clone(), Arc::clone(&service), serving.clone());
        async move {
            if let Some(session) = handshake(stream, &tls).await {
                grpc(session, settings, service, door).await;
            }
        }
    })
    .await;
}

/// Opens the clients' socket, and returns what accepts on it.
fn accept_clients(
    settings: &Settings,
    server: &Arc<Server>,
    door: &Door,
    files: &mut Vec<Box<dyn Look>>,
) -> Result<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> {
    let transport = transport::Settings::tunnels(settings.keepalive.1);
    let service = Arc::new(ProxyService(Arc::clone(server)));
    let (server, door, mode) = (Arc::clone(server), door.clone(), settings.mode);
    let serving = door.clone();
    match &settings.frontend {
        Frontend::Unix(path, is_removed) => {
            let existing = if *is_removed {
                Existing::Remove
            } else {
                Existing::Keep
            };
            let listener = Listener::bind(path, "--uds-name", existing)?;
            Ok(Box::pin(async move {
                door.accept(listener, move |stream: UnixStream| {
                    let (server, service, door) =
                        (Arc::clone(&server), Arc::clone(&service), serving.clone());
                    async move {
                        match mode {
                            Mode::Grpc => {
                                grpc(Lenient::new(stream), transport, service, door).await;
                            }
                            Mode::HttpConnect => http_connect(stream, server).await,
                        }
                    }
                })
                .await;
            }))
        }
        Frontend::Tls(bind, tls) => {
            let tls = load(tls.clone(), files)?;
            let listener = listen::tcp(*bind, "--server-bind-address or --server-port")?;
            Ok(Box::pin(async move {
                door.accept(listener, move |stream| {
                    let (server, service, door) =
                        (Arc::clone(&server), Arc::clone(&service), serving.clone());
                    let tls = tls.clone();
                    async move {
                        let Some(session) = handshake(stream, &tls).await else {
                            return;
                        };
                        match mode {
                            Mode::Grpc => grpc(session, transport, service, door).await,
                            Mode::HttpConnect => http_connect(session, server).await,
                        }
                    }
                })
                .await;
            }))
        }
    }
}

/// Reads a command line, and checks what was read.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_line(words: &[&std::ffi::OsStr]) {
    // Names would be looked up.
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
