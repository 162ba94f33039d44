// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-sidecar`: its start and shutdown. On the first SIGTERM or SIGINT it stops accepting connections;
//! existing connections may continue for `GRACE`.

mod args;
mod file;
mod settings;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_serve::flags::Values;
use proxy_serve::http::{self, StatusCode};
use proxy_serve::listen::unix::{Existing, Listener};
use proxy_serve::listen::{self, Bind};
use proxy_serve::pages::{About, Cell, Column, Page, Served, Table};
use proxy_serve::reload::{self, Look, Reloader};
use proxy_serve::shutdown::{Phase, Signals};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::{info, warn};

pub use self::args::Args;
use self::settings::{Listen, Settings, TenantSettings};
use super::health::{Health, Readiness, Show};
use super::listeners::Door;
use super::reach::Place;
use super::{Program, RELOAD, about};
use crate::metrics::certificates::Names;
use crate::metrics::sidecar::SidecarMetrics;
use crate::sidecar::serve;
use crate::sidecar::tenant::{Reach, Tenant};

/// The time for which connections may continue during shutdown.
const GRACE: Duration = Duration::from_secs(5);

impl Program for Args {
    const NAME: &'static str = crate::app::called::SIDECAR;
    const VERBOSITY: i32 = 2;
    const THREADS: usize = 2;

    async fn run(self, flags: Values) -> Result<ExitCode> {
        run(Settings::new(&self)?, about::<Self>(flags)).await
    }
}

/// The sidecar is ready if at least one tenant's server accepts connections.
struct Ready(Vec<Arc<Tenant>>);

impl Readiness for Ready {
    fn readiness(&self, is_verbose: bool) -> (StatusCode, String) {
        let up = self.0.iter().filter(|tenant| tenant.is_up()).count();
        let status = if up == 0 {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        if !is_verbose && up > 0 {
            return (status, "ok".to_owned());
        }
        let line = |tenant: &Arc<Tenant>| {
            let name = &tenant.name;
            if tenant.is_up() {
                format!("[+]server of {name} ok\n")
            } else {
                format!("[-]server of {name} failed: it does not accept connections\n")
            }
        };
        (status, self.0.iter().map(line).collect())
    }
}

const TENANTS: [Column; 3] = [
    Column::words("Tenant"),
    Column::words("Server"),
    Column::words("State"),
];

impl Show for Ready {
    fn page(&self) -> Page {
        let mut page = Page::default();
        let row = |tenant: &Arc<Tenant>| {
            let state = if tenant.is_up() {
                Cell::good("up")
            } else {
                Cell::bad("down: it does not accept connections")
            };
            vec![
                Cell::text(&tenant.name),
                Cell::text(tenant.reach.endpoint()),
                state,
            ]
        };
        page.table("Tenants", Table::of(&TENANTS, &self.0, row));
        page
    }
}

/// The listener of a tenant.
enum Opened {
    Tcp(TcpListener),
    Unix(Listener),
}

impl Opened {
    fn open(at: &Listen) -> Result<Self> {
        const FLAG: &str = "--listen or --tenants-config";
        Ok(match at {
            Listen::Tcp(address) => Self::Tcp(listen::tcp(Bind::One(*address), FLAG)?),
            Listen::Unix(path) => Self::Unix(Listener::bind(path, FLAG, Existing::Remove)?),
        })
    }

    async fn accept(self, door: Door, tenant: Arc<Tenant>) {
        let phase = door.phase.clone();
        match self {
            Self::Tcp(listener) => {
                let serve = |stream: TcpStream| {
                    // Messages are written in one piece, so delaying them serves no purpose. An error means that the
                    // client has disconnected.
                    let _ = stream.set_nodelay(true);
                    serve(stream, Arc::clone(&tenant), phase.clone())
                };
                door.accept(listener, serve).await;
            }
            Self::Unix(listener) => {
                let serve = |stream| serve(stream, Arc::clone(&tenant), phase.clone());
                door.accept(listener, serve).await;
            }
        }
    }
}

async fn run(settings: Settings, about: About) -> Result<ExitCode> {
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let metrics = SidecarMetrics::new();
    let (to_phase, phase) = watch::channel(Phase::Serving);
    let health = settings
        .health
        .listen("--health-bind-address or --health-port")?;
    let mut files: Vec<Box<dyn Look>> = Vec::new();
    let mut tenants = Vec::new();
    for one in settings.tenants {
        let opened = Opened::open(&one.listen)?;
        tenants.push((opened, Arc::new(tenant(one, &metrics, &mut files)?)));
    }
    let handler = Health {
        readiness: Ready(
            tenants
                .iter()
                .map(|(_, tenant)| Arc::clone(tenant))
                .collect(),
        ),
        registry: metrics.registry().clone(),
    };
    let handler = Served::new(about, handler);
    http::spawn("health", health, handler, std::future::pending())
        .context("cannot start the thread that answers probes")?;
    reload::watch(files, RELOAD)
        .context("cannot start the thread that looks for changed certificates")?;
    let mut doors = Vec::new();
    for (opened, tenant) in tenants {
        let door = Door::new(settings.max_connections, phase.clone());
        doors.push(door.clone());
        let (probed, tidied) = (Arc::clone(&tenant), Arc::clone(&tenant));
        tokio::spawn(async move { probed.probe().await });
        tokio::spawn(async move { tidied.tidy().await });
        tokio::spawn(opened.accept(door, tenant));
    }
    let signal = signals.next().await;
    info!(signal, "Shutting down sidecar.");
    to_phase.send_replace(Phase::Draining);
    let start = tokio::time::Instant::now();
    for door in doors {
        let left = GRACE.saturating_sub(start.elapsed());
        if let Err(left) = door.slots.drained(left).await {
            warn!(
                "{left} connections are cut: they did not end within {} s",
                GRACE.as_secs()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tenant(
    settings: TenantSettings,
    metrics: &SidecarMetrics,
    files: &mut Vec<Box<dyn Look>>,
) -> Result<Tenant> {
    let TenantSettings {
        name,
        listen,
        place,
        mode,
        allowed,
    } = settings;
    let reach = match place {
        Place::Unix(path) => Reach::Unix(path),
        Place::Tls {
            host,
            port,
            name: server_name,
            tls,
        } => {
            let names = Names {
                own: "client-cert",
                authorities: "ca-cert",
            };
            let count = metrics.certificates.observer(names, Some(&name));
            let reloader = Reloader::new(tls, count).with_context(|| format!("tenant {name}"))?;
            let tls = reloader.current();
            files.push(Box::new(reloader));
            Reach::Tls {
                host,
                port,
                name: server_name,
                tls,
            }
        }
    };
    info!(
        tenant = name.as_str(),
        server = %reach.endpoint(),
        "Serving on {listen}"
    );
    let lines = metrics.of(&name);
    Ok(Tenant::new(name, reach, mode, allowed, lines))
}

/// Parses and checks a command line.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_line(words: &[&std::ffi::OsStr]) {
    let is_address = |text: &str| text.is_empty() || text.parse::<std::net::IpAddr>().is_ok();
    if let Some(args) = super::accepted::<Args>(words)
        // A host name would cause a lookup.
        && is_address(&args.health_bind_address)
        && let Err(refused) = Settings::with(&args, None)
    {
        assert!(!refused.to_string().is_empty());
    }
}

/// Parses a text as the file of `--tenants-config`, together with otherwise complete flags.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_tenants(text: &str) {
    let Ok(entries) = file::parse(text) else {
        return;
    };
    let args = super::read_flags::<Args>(["--ca-cert=ca"]).expect("the flags are good");
    let count = entries.len();
    match Settings::with(&args, Some(entries)) {
        Ok(settings) => assert_eq!(settings.tenants.len(), count),
        Err(refused) => {
            let refused = format!("{refused:#}");
            assert!(
                refused.starts_with("--tenants-config: tenants["),
                "{refused}"
            );
        }
    }
}
