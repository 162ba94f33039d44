// SPDX-License-Identifier: Apache-2.0

//! Connections that stand still, in each direction and mode, and others beside them: upstream's oldest complaint (#180,
//! #881). Between two of ours both directions are tried; where one end is upstream's, the direction that ours faces: a
//! target that does not read stops upstream's agent whatever its server does, and a client that does not read upstream's
//! server. `PROXY_AGENT_TEST_LOAD=full` has 100 of them for a minute, the other round trips are timed, and memory and sockets
//! are looked at.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::slow_machine::is_load_full;
use tokio::task::JoinSet;
use tunnel_tests::load::rig::{Both, Rig, Transport};
use tunnel_tests::load::{self, LOST, Stall, percentile};
use tunnel_tests::program::{Make, lacks_peers};
use tunnel_tests::tunnel::PATIENCE;

/// Tunnels that make round trips meanwhile.
const OTHERS: usize = 50;

/// Bytes that a stalled tunnel may have on their way to its reader, in buffers of streams and sockets.
const SENDING: u64 = 512 << 10;

/// Bytes that it may hold at each end between two of ours: a window, and the data on their way.
const HELD: u64 = (1 << 20) + SENDING;

/// Memory of a program in bytes that changes for other reasons than the stalled tunnels.
const SLACK: u64 = 24 << 20;

/// The default of `--buffer-budget`.
const BUDGET: u64 = 256 << 20;

/// Part of the used memory that may stay with the allocator, in bytes.
const KEPT: u64 = 12 << 20;

/// Looks at the memory of those that are ours.
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

/// Both modes with these makes.
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
