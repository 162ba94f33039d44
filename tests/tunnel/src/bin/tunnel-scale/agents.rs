// SPDX-License-Identifier: Apache-2.0

//! Thousands of agents: measures the cost of each idle agent for its server, and how all of them reconnect to a server
//! that was restarted, while the first ones already carry tunnels.

use std::net::SocketAddr;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proxy_tunnel::client::{Dialer, Mode};
use tests::usage;
use tokio::time::{sleep, timeout};

use crate::crowd::{echo, trip};
use crate::fleet::Fleet;
use crate::site::Site;
use crate::{Effort, Row, float, mib, quantile};

/// The pause in which the server finishes its work and returns memory.
const SETTLE: Duration = Duration::from_secs(5);
/// The target for the server's memory per idle agent, in KiB.
const MEMORY: f64 = 60.0;
/// The target for the time until all agents have reconnected, in seconds.
const BACK: f64 = 90.0;
/// The interval at which agents are counted while they reconnect, and the time limit.
const WATCH: Duration = Duration::from_millis(20);
const GIVEN_UP: Duration = Duration::from_mins(10);
/// The pause between two tunnels while agents reconnect.
const PAUSE: Duration = Duration::from_millis(100);
/// The time after which a tunnel counts as failed.
const LATE: Duration = Duration::from_secs(10);

/// The progress of reconnecting agents, in time since the server was started.
#[derive(Debug, Default)]
struct Return {
    half: Option<Duration>,
    most: Option<Duration>,
    all: Duration,
    /// The time of the first tunnel, and the number of agents that had reconnected by then.
    first: Option<(Duration, usize)>,
    /// The duration of each successful dial.
    dials: Vec<Duration>,
    failed: usize,
}

/// Measures the cost of idle agents and their return after a restart.
///
/// # Errors
/// Returns an error if a program does not start, or if agents do not connect.
pub fn come_and_come_back(effort: Effort, progress: impl Fn(&str)) -> Result<Vec<Row>> {
    let (tenants, count) = effort.agents;
    progress(&format!("{count} agents of {tenants} tenants come"));
    let mut site = Site::new(tenants, Mode::HttpConnect)?;
    thread::sleep(SETTLE);
    let (server, own) = (site.memory()?, usage::resident_memory(process::id())?);
    let begun = Instant::now();
    let fleet = Fleet::start(&site.runtime, &site.certificates(), tenants, 0..count)?;
    let fleet = Arc::new(fleet);
    fleet.wait_for(count).with_context(|| site.logs())?;
    let came = begun.elapsed();
    thread::sleep(SETTLE);
    let each = |now: u64, before: u64| {
        let agents = u64::try_from(count).unwrap_or(u64::MAX);
        float(now.saturating_sub(before)) / 1024.0 / float(agents)
    };
    let loaded = site.memory()?;
    let on_server = each(loaded, server);
    let here = each(usage::resident_memory(process::id())?, own);

    progress("the server is restarted");
    site.stop_server()?;
    fleet.wait_for(0)?;
    let started = Instant::now();
    site.start_server()?;
    let back = observe(&site, &fleet, started)?;
    let cpu = site.cpu_time()?;
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let with = format!("{count} agents of {tenants} tenants");
    let mut rows = vec![
        Row::new(
            format!("server's memory with {tenants} tenants, without agents"),
            format!("{:.1} MiB", mib(server)),
        ),
        Row::new(
            format!("server's memory of an idle agent, {with}"),
            format!("{on_server:.1} KiB"),
        )
        .at_most(on_server, MEMORY, "KiB"),
        Row::new(
            "the agent's own memory for its connection, beside it",
            format!("{here:.1} KiB"),
        ),
        Row::new(format!("{with}: all connected after"), seconds(came)),
        Row::new(
            "server restarted: all agents are back after",
            seconds(back.all),
        )
        .at_most(back.all.as_secs_f64(), BACK, "s"),
    ];
    for (what, time) in [("half", back.half), ("99 in 100", back.most)] {
        if let Some(time) = time {
            rows.push(Row::new(format!("… {what} of them"), seconds(time)));
        }
    }
    let (first, agents) = back
        .first
        .context("no tunnel worked while agents came back")?;
    rows.push(Row::new(
        "… the first tunnel works",
        format!("{}, {agents} agents being back", seconds(first)),
    ));
    rows.push(Row::new(
        "… tunnels meanwhile, of agents that are back",
        format!(
            "{} work, median {} and p99 {}; {} fail",
            back.dials.len(),
            seconds(quantile(&back.dials, 50)?),
            seconds(quantile(&back.dials, 99)?),
            back.failed
        ),
    ));
    rows.push(Row::new("… the server's processor time", seconds(cpu)));
    Ok(rows)
}

/// Watches the agents, and opens tunnels through those that have reconnected, one after the other.
fn observe(site: &Site, fleet: &Arc<Fleet>, started: Instant) -> Result<Return> {
    let target = site.run(echo())?;
    let dialers = (0..site.tenants())
        .map(|tenant| site.dialer(tenant))
        .collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let dialing = dial(
        Arc::clone(fleet),
        dialers,
        target,
        started,
        Arc::clone(&is_over),
    );
    let dialing = site.runtime.spawn(dialing);
    let (mut half, mut most) = (None, None);
    let all = loop {
        let (connected, now) = (fleet.connected(), started.elapsed());
        if 2 * connected >= fleet.size() {
            half.get_or_insert(now);
        }
        if 100 * connected >= 99 * fleet.size() {
            most.get_or_insert(now);
        }
        if connected == fleet.size() {
            break now;
        }
        ensure!(
            now < GIVEN_UP,
            "{connected} of {} agents are back after {} s\n{}",
            fleet.size(),
            GIVEN_UP.as_secs(),
            site.logs()
        );
        thread::sleep(WATCH);
    };
    is_over.store(true, Ordering::Release);
    let mut back = site
        .runtime
        .block_on(dialing)
        .context("a client has panicked")?;
    (back.half, back.most, back.all) = (half, most, all);
    back.dials.sort_unstable();
    Ok(back)
}

async fn dial(
    fleet: Arc<Fleet>,
    dialers: Vec<Dialer>,
    target: SocketAddr,
    started: Instant,
    is_over: Arc<AtomicBool>,
) -> Return {
    let mut back = Return::default();
    while !is_over.load(Ordering::Acquire) {
        let connected = fleet.connected();
        if let Some(tenant) = fleet.first_connected() {
            let begun = Instant::now();
            let dial = async {
                let mut tunnel = dialers[tenant].dial(&target.to_string()).await?;
                trip(&mut tunnel).await?;
                anyhow::Ok(())
            };
            if matches!(timeout(LATE, dial).await, Ok(Ok(()))) {
                back.first.get_or_insert((started.elapsed(), connected));
                back.dials.push(begun.elapsed());
            } else {
                back.failed += 1;
            }
        }
        sleep(PAUSE).await;
    }
    back
}
