// SPDX-License-Identifier: Apache-2.0

//! Very many concurrent connections through one agent: each carries its own bytes, and after their clients have
//! disconnected, neither a connection nor a file remains open. `PROXY_AGENT_TEST_LOAD=full` opens 10,000 of them, or as
//! many as the hard limit of open files permits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::slow_machine::is_load_full;
use tests::usage;
use tunnel_tests::load::rig::{Rig, Transport};
use tunnel_tests::load::{self, LOST};
use tunnel_tests::program::Make;
use tunnel_tests::tunnel::PATIENCE;

/// The number of open files of this process besides those of the connections.
const FURTHER: u32 = 500;

/// The time in which all connections make round trips.
const SLOT: Duration = Duration::from_secs(2);

fn through_one_agent(transport: Transport) -> Result<()> {
    let wanted = if is_load_full() { 10_000 } else { 1_000 };
    // This process has both ends of each connection, and its children inherit the limit.
    let files = usage::allow_open_files(2 * wanted + FURTHER);
    let permitted = files.saturating_sub(FURTHER.into()) / 2;
    let count = usize::try_from(permitted.min(wanted.into()))?;
    ensure!(
        count >= 1_000,
        "{files} open files are permitted (ulimit -Hn)"
    );
    println!("{count} connections");
    let rig = Rig::new(transport, Make::Ours)?;
    all_at_once(&rig, count).with_context(|| rig.tunnel.logs())
}

fn all_at_once(rig: &Rig, count: usize) -> Result<()> {
    let (dialer, target) = (rig.dialer.clone(), rig.target);
    rig.run(async move { load::open(&dialer, target).await.map(drop) })?;
    rig.until_at_rest()?;
    let before = rig.files()?;
    let dialer = rig.dialer.clone();
    let trips = rig.run(async move {
        let tunnels = load::resting(dialer, target, count).await?;
        Ok(load::round_trips(tunnels, SLOT).await)
    })?;
    ensure!(trips.len() >= count, "{} round trips", trips.len());
    ensure!(trips.last() < Some(&LOST), "a round trip had no answer");
    rig.until_at_rest()?;
    wait_until(PATIENCE, "files as before", || {
        let open = rig.files()?;
        let is_closed = open.server <= before.server && open.agent <= before.agent;
        Ok(is_closed.then_some(()))
    })
}

#[test]
fn through_one_agent_with_grpc() -> Result<()> {
    through_one_agent(Transport::GrpcUds)
}

#[test]
fn through_one_agent_with_http_connect() -> Result<()> {
    through_one_agent(Transport::ConnectUds)
}
