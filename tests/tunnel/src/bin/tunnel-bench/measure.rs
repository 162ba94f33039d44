// SPDX-License-Identifier: Apache-2.0

//! The measurements. Each round measures every make in turn, so that other load on the machine affects all alike.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tunnel_tests::load::rig::{Rig, Transport};
use tunnel_tests::load::{self, Direction, Stall, percentile};
use tunnel_tests::program::Make;

use crate::Effort;
use crate::report::{self, Bar, Row};

/// The number of bytes of a mebibyte.
const MIB: f64 = 1024.0 * 1024.0;
/// The pause after a measurement, in which programs finish their work and return memory.
const SETTLE: Duration = Duration::from_millis(300);
/// The number of tunnels that make round trips, and of those that are stalled meanwhile.
const TRAVELLING: usize = 50;
const STALLED: usize = 100;

/// The samples of a row, for each make.
#[derive(Default)]
struct Samples {
    ours: Vec<f64>,
    upstream: Vec<f64>,
}

impl Samples {
    fn push(&mut self, make: Make, sample: f64) {
        match make {
            Make::Ours => self.ours.push(sample),
            Make::Upstream => self.upstream.push(sample),
        }
    }

    fn row(self, what: impl Into<String>, unit: &'static str, bar: Option<Bar>) -> Row {
        Row {
            what: what.into(),
            unit,
            ours: self.ours,
            upstream: self.upstream,
            bar,
        }
    }
}

/// Measures these makes.
///
/// # Errors
/// Returns an error if a program is missing or fails.
pub fn everything(makes: &[Make], effort: Effort, progress: impl Fn(&str)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    // Each row is also printed at once: a long run may fail late.
    let so_far = |rows: &[Row], shown: usize| progress(&report::table(&rows[shown..]));
    let transports: &[Transport] = if effort.short {
        &[Transport::GrpcUds, Transport::ConnectTls]
    } else {
        &Transport::ALL
    };
    for &transport in transports {
        progress(&format!("{}: new tunnels and throughput", transport.name()));
        let shown = rows.len();
        traffic(transport, makes, effort, &mut rows).with_context(|| transport.name())?;
        so_far(&rows, shown);
    }
    progress("memory");
    memory(makes, effort, &mut rows).context("memory")?;
    for transport in [Transport::GrpcUds, Transport::ConnectUds] {
        progress(&format!(
            "{}: round trips beside stalled tunnels",
            transport.name()
        ));
        let shown = rows.len();
        isolation(transport, makes, effort, &mut rows).with_context(|| transport.name())?;
        so_far(&rows, shown);
    }
    Ok(rows)
}

/// Measures new tunnels per second, bytes per second, and the processor time per byte.
fn traffic(
    transport: Transport,
    makes: &[Make],
    effort: Effort,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let rigs = start(transport, makes)?;
    let (mut single, mut many) = (Samples::default(), Samples::default());
    let mut speeds: [Samples; 2] = Default::default();
    let mut costs: [Samples; 2] = Default::default();
    // The first round is a warm-up.
    for round in 0..=effort.rounds {
        for (make, rig) in &rigs {
            let push = |samples: &mut Samples, sample| {
                if round > 0 {
                    samples.push(*make, sample);
                }
            };
            let rate = |clients| {
                let rate = load::rate(rig.dialer.clone(), rig.target, clients, effort.slot);
                let rate = rig.run(rate);
                thread::sleep(SETTLE);
                rate.with_context(|| format!("{}: {clients} clients", make.name()))
            };
            push(&mut single, rate(1)?);
            push(&mut many, rate(50)?);
            for (at, direction) in Direction::ALL.into_iter().enumerate() {
                let before = rig.cpu_time()?;
                let took = rig
                    .run(load::bulk(
                        rig.dialer.clone(),
                        rig.target,
                        direction,
                        effort.bulk,
                    ))
                    .with_context(|| format!("{}: bytes {}", make.name(), direction.name()))?;
                let after = rig.cpu_time()?;
                let cpu = (after.server + after.agent)
                    .saturating_sub(before.server + before.agent)
                    .as_secs_f64();
                let mebibytes = bytes(effort.bulk) / MIB;
                push(&mut speeds[at], mebibytes / took.as_secs_f64());
                push(&mut costs[at], cpu * 1000.0 / mebibytes);
                thread::sleep(SETTLE);
            }
        }
    }
    let new = if transport.has_tls() { 1.5 } else { 2.0 };
    let name = transport.name();
    let bar = Some(Bar::RatioAtLeast(new));
    rows.push(single.row(
        format!("new tunnels, one after the other; {name}"),
        "1/s",
        bar,
    ));
    rows.push(many.row(format!("new tunnels, 50 at once; {name}"), "1/s", bar));
    for (direction, (speed, cost)) in Direction::ALL
        .into_iter()
        .zip(speeds.into_iter().zip(costs))
    {
        let way = direction.name();
        rows.push(speed.row(
            format!("bytes {way}; {name}"),
            "MiB/s",
            Some(Bar::RatioAtLeast(2.5)),
        ));
        rows.push(cost.row(
            format!("processor time of both ends, {way}; {name}"),
            "ms/MiB",
            Some(Bar::RatioAtMost(0.4)),
        ));
    }
    Ok(())
}

/// Measures the resident memory without tunnels, and the share of each of many idle tunnels.
fn memory(makes: &[Make], effort: Effort, rows: &mut Vec<Row>) -> Result<()> {
    let (mut server, mut agent, mut each) =
        (Samples::default(), Samples::default(), Samples::default());
    for &make in makes {
        let rig = Rig::new(Transport::ConnectUds, make)?;
        thread::sleep(SETTLE);
        let before = rig.memory()?;
        server.push(make, bytes(before.server) / MIB);
        agent.push(make, bytes(before.agent) / MIB);
        let resting = load::resting(rig.dialer.clone(), rig.target, effort.resting);
        let tunnels = rig
            .run(resting)
            .with_context(|| format!("{}: {} tunnels", make.name(), effort.resting))?;
        thread::sleep(SETTLE);
        let after = rig.memory()?;
        let more = (after.server + after.agent).saturating_sub(before.server + before.agent);
        each.push(make, bytes(more) / 1024.0 / bytes(tunnels.len() as u64));
        drop(tunnels);
    }
    let idle = Some(Bar::AtMost(10.0));
    rows.push(server.row("memory of the server without tunnels", "MiB", idle));
    rows.push(agent.row("memory of the agent without tunnels", "MiB", idle));
    rows.push(each.row(
        format!("memory of a tunnel, both ends, {} of them", effort.resting),
        "KiB",
        Some(Bar::AtMost(8.0)),
    ));
    Ok(())
}

/// Measures the 99th percentile of round trips, without and beside stalled tunnels.
fn isolation(
    transport: Transport,
    makes: &[Make],
    effort: Effort,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (mut alone, mut beside, mut ratio) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut opened = Samples::default();
    for &make in makes {
        let rig = Rig::new(transport, make)?;
        let (dialer, target) = (rig.dialer.clone(), rig.target);
        let slot = effort.trips;
        let (first, second, count) = rig
            .run(async move {
                let tunnels = load::resting(dialer.clone(), target, TRAVELLING).await?;
                let first = load::round_trips(tunnels, slot).await;
                let tunnels = load::resting(dialer.clone(), target, TRAVELLING).await?;
                let mut stalled = JoinSet::new();
                // With upstream's programs the first few stalled tunnels block all others, and further dials as well.
                let all = load::stalled(&mut stalled, dialer, target, STALLED, &Stall::ALL);
                let refused = all.await.err();
                if make == Make::Ours || stalled.is_empty() {
                    refused.map_or(Ok(()), Err)?;
                }
                let second = load::round_trips(tunnels, slot).await;
                Ok((percentile(&first)?, percentile(&second)?, stalled.len()))
            })
            .with_context(|| make.name())?;
        let (first, second) = (first.as_secs_f64(), second.as_secs_f64());
        opened.push(make, f64::from(u32::try_from(count)?));
        alone.push(make, first * 1000.0);
        beside.push(make, second * 1000.0);
        ratio.push(make, second / first);
    }
    let name = transport.name();
    rows.push(alone.row(
        format!("p99 of a round trip through 50 tunnels; {name}"),
        "ms",
        None,
    ));
    rows.push(opened.row(
        format!("tunnels to ends that do not read that can be opened, of {STALLED}; {name}"),
        "tunnels",
        None,
    ));
    rows.push(beside.row(
        format!("the same beside these (10,000: no answer); {name}"),
        "ms",
        None,
    ));
    rows.push(ratio.row(
        format!("the second by the first; {name}"),
        "×",
        Some(Bar::AtMost(2.0)),
    ));
    Ok(())
}

fn start(transport: Transport, makes: &[Make]) -> Result<Vec<(Make, Rig)>> {
    let start = |make: &Make| Ok((*make, Rig::new(transport, *make)?));
    makes.iter().map(start).collect()
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52 bytes")]
const fn bytes(bytes: u64) -> f64 {
    bytes as f64
}
