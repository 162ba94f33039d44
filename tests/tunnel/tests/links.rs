// SPDX-License-Identifier: Apache-2.0

//! One TCP connection between an agent and a server carries all tunnels of the agent. It does not limit them: many
//! concurrent tunnels are not faster over several connections, which in this test belong to several agents.
//! `PROXY_AGENT_TEST_LOAD=full` transfers enough bytes to compare the two; each run checks that the bytes of all
//! tunnels arrive in both cases.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::http;
use tests::slow_machine::is_load_full;
use tokio::task::JoinSet;
use tunnel_tests::load::rig::{Rig, Transport};
use tunnel_tests::load::{self, Direction};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT, PATIENCE, SERVER_HEALTH};

/// The number of concurrent tunnels.
const TUNNELS: u64 = 8;

/// The agents beside the first one, with the ports of their health and admin endpoints.
const OTHERS: [(&str, u16, u16); 3] = [
    ("second agent", 18_000, 18_001),
    ("third agent", 18_002, 18_003),
    ("fourth agent", 18_004, 18_005),
];

/// The number of measurements of each, in turn. The fastest one counts, because other processes of the machine have
/// disturbed it least.
const ROUNDS: usize = 5;

/// The minimum fraction of the throughput of several connections that one connection must reach.
const SHARE: f64 = 0.8;

/// Starts a server with an agent and these other agents.
fn rig(others: &[(&'static str, u16, u16)]) -> Result<Rig> {
    let mut rig = Rig::new(Transport::ConnectUds, Make::Ours)?;
    let agent = Part::Agent.of(Make::Ours)?;
    for (name, health, admin) in others {
        let health = format!("--health-server-port={health}");
        let admin = format!("--admin-server-port={admin}");
        let flags = [AGENT.as_slice(), &[&health, &admin]].concat();
        rig.tunnel.spawn(name, &agent, &flags)?;
    }
    let connections = others.len() + 1;
    let want = format!("_ready_backends{{proxy_strategy=\"default\"}} {connections}\n");
    wait_until(PATIENCE, &want, || {
        let metrics = http::ask(rig.tunnel.netns(), SERVER_HEALTH, "/metrics", &[])?.body;
        Ok(metrics.contains(&want).then_some(()))
    })?;
    Ok(rig)
}

/// Returns the bytes per second of all tunnels together.
fn speed(rig: &Rig, direction: Direction, bytes: u64) -> Result<f64> {
    let (dialer, target) = (rig.dialer.clone(), rig.target);
    let begun = Instant::now();
    rig.run(async move {
        let mut tasks = JoinSet::new();
        for _ in 0..TUNNELS {
            tasks.spawn(load::bulk(dialer.clone(), target, direction, bytes));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    })?;
    #[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
    let sum = (TUNNELS * bytes) as f64;
    Ok(sum / begun.elapsed().as_secs_f64())
}

#[test]
fn several_connections_are_not_faster_than_one() -> Result<()> {
    let bytes = if is_load_full() { 64 << 20 } else { 1 << 20 };
    let rigs = [rig(&[])?, rig(&OTHERS)?];
    for direction in Direction::ALL {
        let mut fastest = [0.0_f64; 2];
        for _ in 0..ROUNDS {
            for (rig, fastest) in rigs.iter().zip(&mut fastest) {
                let speed = speed(rig, direction, bytes).with_context(|| rig.tunnel.logs())?;
                *fastest = fastest.max(speed);
            }
        }
        let [one, several] = fastest.map(|speed| speed / 1e6);
        let result = format!(
            "{}: {one:.0} MB/s over one connection, {several:.0} over several",
            direction.name()
        );
        println!("{result}");
        ensure!(!is_load_full() || one >= several * SHARE, "{result}");
    }
    Ok(())
}
