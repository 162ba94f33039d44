// SPDX-License-Identifier: Apache-2.0

//! Compares many tenants with a single one that has as many agents and tunnels: the server's memory, and round trips.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use benchmark::statistics::Summary;
use proxy_tunnel::client::{Connection, Dialer, Mode, Tunnel};
use tokio::io::{self, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::helpers::Helpers;
use crate::site::{DIAL_LIMIT, Site};
use crate::{Effort, Row, float, mib, quantile};

/// The number of concurrent dials while tunnels are opened.
const AT_ONCE: usize = 50;
/// The number of tunnels that make round trips.
const TRAVELLING: usize = 200;
/// The pause between two round trips of one tunnel.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause in which the server finishes its work and returns memory.
const SETTLE: Duration = Duration::from_secs(2);
/// The target: the maximum ratio of the value for many tenants to the value for one.
const BAR: f64 = 1.2;

/// The measurements of one server.
#[derive(Debug)]
struct Shown {
    /// The number of bytes for agents and tunnels, without those at the start.
    memory: f64,
    median: f64,
    p99: f64,
}

/// The quantity, its unit, the factor from the measured value to that unit, and its field.
type Column = (&'static str, &'static str, f64, fn(&Shown) -> f64);

/// A client that opens tunnels.
#[derive(Clone)]
enum Client {
    /// Opens each tunnel by a connection of its own.
    Connect(Dialer),
    /// Opens all tunnels by one connection.
    Grpc(Connection),
}

impl Client {
    async fn dial(&self, target: SocketAddr) -> Result<Tunnel> {
        let target = target.to_string();
        Ok(match self {
            Self::Connect(dialer) => dialer.dial(&target).await?,
            Self::Grpc(connection) => timeout(DIAL_LIMIT, connection.dial(&target)).await??,
        })
    }
}

/// Measures many tenants and one in turn, first with clients that speak HTTP CONNECT, then with clients that speak
/// gRPC.
///
/// # Errors
/// Returns an error if a program does not start, or fails.
pub fn compare(effort: Effort, progress: impl Fn(&str)) -> Result<Vec<Row>> {
    let mut rows = compare_by(Mode::HttpConnect, effort, &progress)?;
    rows.extend(compare_by(Mode::Grpc, effort, &progress)?);
    Ok(rows)
}

fn compare_by(mode: Mode, effort: Effort, progress: &impl Fn(&str)) -> Result<Vec<Row>> {
    let (tenants, agents) = effort.crowd;
    let agents = tenants * agents;
    let (name, tunnels) = match mode {
        Mode::HttpConnect => ("HTTP CONNECT", effort.connect_tunnels),
        Mode::Grpc => ("gRPC", effort.grpc_tunnels),
    };
    let tunnels = tunnels * agents;
    let mut shown: [Vec<Shown>; 2] = Default::default();
    for round in 1..=effort.rounds {
        for (kind, tenants) in [tenants, 1].into_iter().enumerate() {
            progress(&format!(
                "{name}, round {round}: {tenants} tenants with {agents} agents and {tunnels} tunnels"
            ));
            let one = measure(mode, tenants, (agents, tunnels), effort.trips)
                .with_context(|| format!("{name}, {tenants} tenants"))?;
            shown[kind].push(one);
        }
    }
    let [many, one] = &shown;
    let setting =
        format!("{tenants} tenants ÷ 1 tenant, {agents} agents and {tunnels} tunnels each; {name}");
    let mut rows = Vec::new();
    let columns: [Column; 3] = [
        (
            "server's memory for agents and tunnels",
            "MiB",
            mib(1),
            |shown| shown.memory,
        ),
        ("median of a round trip", "ms", 1000.0, |shown| shown.median),
        ("p99 of a round trip", "ms", 1000.0, |shown| shown.p99),
    ];
    for (what, unit, scale, of) in columns {
        let values = |shown: &[Shown]| shown.iter().map(of).collect::<Vec<f64>>();
        let (many, one) = (values(many), values(one));
        let ratio = Summary::of_ratio(&many, &one).context("no round")?;
        let median = |values: &[f64]| Summary::of(values).map_or(0.0, |s| s.median) * scale;
        let value = format!(
            "{:.2} × ({:.2} {unit} ÷ {:.2} {unit})",
            ratio.median,
            median(&many),
            median(&one)
        );
        rows.push(Row::new(format!("{what}: {setting}"), value).at_most(ratio.median, BAR, "×"));
    }
    Ok(rows)
}

fn measure(
    mode: Mode,
    tenants: usize,
    (agents, tunnels): (usize, usize),
    trips: Duration,
) -> Result<Shown> {
    let site = Site::new(tenants, mode)?;
    thread::sleep(SETTLE);
    let before = site.memory()?;
    let helpers = Helpers::start(&site, agents).with_context(|| site.logs())?;
    let clients = clients(&site, mode, agents)?;
    let open = site
        .run(open(clients, helpers.targets.clone(), tunnels))
        .with_context(|| site.logs())?;
    thread::sleep(SETTLE);
    let memory = site.memory()?.saturating_sub(before);
    let trips = site.run(round_trips(open, trips))?;
    Ok(Shown {
        memory: float(memory),
        median: quantile(&trips, 50)?.as_secs_f64(),
        p99: quantile(&trips, 99)?.as_secs_f64(),
    })
}

/// Returns clients of all tenants in turn; with gRPC, one connection for each agent whatever the number of tenants.
fn clients(site: &Site, mode: Mode, agents: usize) -> Result<Vec<Client>> {
    let tenants = site.tenants();
    if mode == Mode::HttpConnect {
        let dialers = (0..tenants).map(|tenant| Client::Connect(site.dialer(tenant)));
        return Ok(dialers.collect());
    }
    let endpoints: Vec<_> = (0..tenants).map(|tenant| site.endpoint(tenant)).collect();
    site.run(async move {
        let mut clients = Vec::with_capacity(agents);
        for endpoint in endpoints.iter().cycle().take(agents) {
            let connection = Connection::open(endpoint, "tunnel-scale").await?;
            clients.push(Client::Grpc(connection));
        }
        Ok(clients)
    })
}

/// Starts a target that sends back what it receives.
///
/// # Errors
/// Returns an error if it cannot listen.
pub async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                // Clients may disconnect at any time.
                let _ = io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    Ok(address)
}

/// Opens `count` tunnels by the clients and to the targets in turn; each tunnel makes one round trip.
async fn open(clients: Vec<Client>, targets: Vec<SocketAddr>, count: usize) -> Result<Vec<Tunnel>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let (client, turns) = (clients[number % clients.len()].clone(), Arc::clone(&turns));
        let target = targets[number % targets.len()];
        tasks.spawn(async move {
            let _turn = turns.acquire().await?;
            let mut tunnel = client.dial(target).await?;
            trip(&mut tunnel).await?;
            anyhow::Ok(tunnel)
        });
    }
    let mut tunnels = Vec::with_capacity(count);
    while let Some(opened) = tasks.join_next().await {
        tunnels.push(opened??);
    }
    Ok(tunnels)
}

/// Makes a round trip of a few bytes.
///
/// # Errors
/// Returns an error if the tunnel fails.
pub async fn trip(tunnel: &mut Tunnel) -> io::Result<()> {
    tunnel.write_all(&[0; 32]).await?;
    tunnel.flush().await?;
    tunnel.read_exact(&mut [0; 32]).await.map(drop)
}

/// Returns the durations of the round trips that some of these tunnels make within `slot`, sorted. The other tunnels
/// are idle.
async fn round_trips(mut tunnels: Vec<Tunnel>, slot: Duration) -> Result<Vec<Duration>> {
    let step = (tunnels.len() / TRAVELLING).max(1);
    let mut travelling = Vec::new();
    let mut resting = Vec::new();
    for (number, tunnel) in tunnels.drain(..).enumerate() {
        if number % step == 0 {
            travelling.push(tunnel);
        } else {
            resting.push(tunnel);
        }
    }
    let begun = Instant::now();
    let count = u32::try_from(travelling.len()).unwrap_or(u32::MAX);
    let mut tasks = JoinSet::new();
    for (number, mut tunnel) in (0..count).zip(travelling) {
        // The tunnels start at different times, so that their round trips are spread over the pause.
        let offset = PAUSE * number / count;
        tasks.spawn(async move {
            sleep(offset).await;
            let mut trips = Vec::new();
            while begun.elapsed() < slot {
                let sent = Instant::now();
                trip(&mut tunnel).await?;
                trips.push(sent.elapsed());
                sleep(PAUSE).await;
            }
            anyhow::Ok(trips)
        });
    }
    let mut trips = Vec::new();
    while let Some(done) = tasks.join_next().await {
        trips.extend(done??);
    }
    drop(resting);
    trips.sort_unstable();
    Ok(trips)
}
