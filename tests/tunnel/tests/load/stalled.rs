// SPDX-License-Identifier: Apache-2.0

//! Stalled connections, in each direction and mode, with others beside them: upstream's oldest complaint (#180, #881).
//! Between two of our programs both directions are tested. If one program is upstream's, only the direction that our
//! program is responsible for is tested: a target that does not read blocks upstream's agent with any server, and a
//! client that does not read blocks upstream's server. `PROXY_AGENT_TEST_LOAD=full` keeps 100 of them for a minute,
//! measures the round trips of the others, and checks memory and sockets.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::slow_machine::is_load_full;
use tokio::task::JoinSet;
use tunnel_tests::load::rig::{Both, Rig, Transport};
use tunnel_tests::load::{self, LOST, Stall, percentile};
use tunnel_tests::program::{Make, lacks_peers};
use tunnel_tests::tunnel::PATIENCE;

/// The number of tunnels that make round trips meanwhile.
const OTHERS: usize = 50;

/// The maximum number of bytes of a stalled tunnel in buffers of streams and sockets, on their way to its reader.
const SENDING: u64 = 512 << 10;

/// The maximum number of bytes that a stalled tunnel may hold at each end between two of our programs: a window, and
/// the data in transit.
const HELD: u64 = (1 << 20) + SENDING;

/// The memory of a program, in bytes, that changes for other reasons than the stalled tunnels.
const SLACK: u64 = 24 << 20;

/// The default of `--buffer-budget`.
const BUDGET: u64 = 256 << 20;

/// The maximum part of the used memory, in bytes, that the allocator may keep.
const KEPT: u64 = 12 << 20;

/// Returns the memory of those of the two programs that are ours.
fn of_ours(makes: Both<Make>, memory: Both<u64>) -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("the server", makes.server, memory.server),
        ("the agent", makes.agent, memory.agent),
    ]
    .into_iter()
    .filter(|(_, make, _)| *make == Make::Ours)
    .map(|(name, _, bytes)| (name, bytes))
}

fn others_go_on(transport: Transport, makes: Both<Make>, ways: &'static [Stall]) -> Result<()> {
    let rig = Rig::of(transport, makes.server, makes.agent)?;
    beside(&rig, makes, ways).with_context(|| rig.tunnel.logs())
}

fn beside(rig: &Rig, makes: Both<Make>, ways: &'static [Stall]) -> Result<()> {
    let (count, slot) = if is_load_full() {
        (100, Duration::from_mins(1))
    } else {
        (20, Duration::from_secs(2))
    };
    let (dialer, target) = (rig.dialer.clone(), rig.target);
    let alone = {
        let dialer = dialer.clone();
        rig.run(async move {
            let tunnels = load::resting(dialer, target, OTHERS).await?;
            percentile(&load::round_trips(tunnels, slot).await)
        })?
    };
    rig.until_at_rest()?;
    let (memory, files) = (rig.memory()?, rig.files()?);
    let (trips, stalled) = rig.run(async move {
        let tunnels = load::resting(dialer.clone(), target, OTHERS).await?;
        let mut stalled = JoinSet::new();
        load::stalled(&mut stalled, dialer, target, count, ways).await?;
        Ok((load::round_trips(tunnels, slot).await, stalled))
    })?;
    let beside = percentile(&trips)?;
    ensure!(trips.last() < Some(&LOST), "a round trip had no answer");
    println!("{OTHERS} others: p99 {alone:?} alone, {beside:?} beside {count} that stand still");
    if !is_load_full() {
        return Ok(());
    }
    let limit = alone * 2;
    ensure!(
        beside <= limit,
        "p99 {beside:?} beside them, {alone:?} alone"
    );
    let count = count as u64;
    let most = if makes.server == makes.agent {
        HELD * count
    } else {
        BUDGET + SENDING * count
    };
    let peak = rig.peak_memory()?;
    for ((name, before), (_, held)) in of_ours(makes, memory).zip(of_ours(makes, peak)) {
        let bound = before + most + SLACK;
        println!("{name} held {held} bytes at most, {before} before");
        ensure!(held <= bound, "{name} held {held} bytes, and may {bound}");
    }
    drop(stalled);
    rig.until_at_rest()?;
    wait_until(PATIENCE, "sockets and memory as before", || {
        let open = rig.files()?;
        let is_closed = open.server <= files.server && open.agent <= files.agent;
        let is_given_back = of_ours(makes, memory)
            .zip(of_ours(makes, rig.memory()?))
            .all(|((_, before), (_, now))| now <= before + KEPT);
        Ok((is_closed && is_given_back).then_some(()))
    })
    .with_context(|| {
        let after = (rig.memory(), rig.files());
        format!("before: {memory:?}, {files:?}; now: {after:?}")
    })
}

const OURS: Both<Make> = Both {
    server: Make::Ours,
    agent: Make::Ours,
};

#[test]
fn two_of_ours_with_grpc() -> Result<()> {
    others_go_on(Transport::GrpcUds, OURS, &Stall::ALL)
}

#[test]
fn two_of_ours_with_http_connect() -> Result<()> {
    others_go_on(Transport::ConnectUds, OURS, &Stall::ALL)
}

/// Tests both modes with these makes.
fn mixed(name: &str, makes: Both<Make>, ways: &'static [Stall]) -> Result<()> {
    if lacks_peers(&format!("tunnel-stalled-{name}"))? {
        return Ok(());
    }
    for transport in [Transport::GrpcUds, Transport::ConnectUds] {
        others_go_on(transport, makes, ways).context(transport.name())?;
    }
    Ok(())
}

#[test]
fn our_server_with_upstreams_agent() -> Result<()> {
    let makes = Both {
        server: Make::Ours,
        agent: Make::Upstream,
    };
    mixed("our-server", makes, &[Stall::Client])
}

#[test]
fn our_agent_with_upstreams_server() -> Result<()> {
    let makes = Both {
        server: Make::Upstream,
        agent: Make::Ours,
    };
    mixed("our-agent", makes, &[Stall::Target])
}
