// SPDX-License-Identifier: Apache-2.0

//! Keeps a server and an agent busy for a long time, and samples the resources that they hold whenever they are idle:
//! memory, file descriptors, threads. None of these may grow. If one of the two programs is killed in each round, the
//! other one is sampled, because a restarted program begins anew.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use proxy_tunnel::client::Dialer;
use tests::bpf_objects::Counts;
use tests::cmd::wait_until;
use tests::soak::Sample;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::load::rig::{Rig, Transport};
use crate::load::target::{GIVE, TAKE};
use crate::load::{self, Direction};
use crate::program::{Make, Part};
use crate::tunnel::PATIENCE;

/// The number of concurrent clients, and of the tunnels that each of them opens in a round.
const CLIENTS: usize = 16;
const TUNNELS: usize = 12;
/// The number of bytes through one tunnel each way in a round.
const BULK: u64 = 16 << 20;
/// The minimum number of rounds, so that samples remain after the warm-up of a short run.
const AT_LEAST: usize = 16;

/// A kind of load on server and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// The transport by which clients reach the server.
    pub transport: Transport,
    /// The program that is killed in each round, if any.
    pub killed: Option<Part>,
}

impl Case {
    /// All cases.
    pub const ALL: [Self; 4] = [
        Self {
            transport: Transport::GrpcUds,
            killed: None,
        },
        Self {
            transport: Transport::ConnectUds,
            killed: None,
        },
        Self {
            transport: Transport::GrpcUds,
            killed: Some(Part::Agent),
        },
        Self {
            transport: Transport::ConnectUds,
            killed: Some(Part::Server),
        },
    ];
}

/// The resources that one program held over time.
#[derive(Debug)]
pub struct Series {
    /// The name of the program.
    pub name: String,
    /// The samples in chronological order.
    pub samples: Vec<Sample>,
}

/// Runs a case for this time.
///
/// # Errors
/// Returns an error if an operation fails, or if the programs do not become idle.
pub fn soak(case: Case, time: Duration) -> Result<Vec<Series>> {
    let mut rig = Rig::new(case.transport, Make::Ours)?;
    let result = rounds(&mut rig, case, time);
    result.with_context(|| rig.tunnel.logs())
}

fn rounds(rig: &mut Rig, case: Case, time: Duration) -> Result<Vec<Series>> {
    let names = match case.killed {
        None => &["server", "agent"][..],
        Some(Part::Server) => &["agent"],
        Some(_) => &["server"],
    };
    let mut all: Vec<Series> = names
        .iter()
        .map(|name| Series {
            name: format!(
                "{name}, {}, killed: {:?}",
                case.transport.name(),
                case.killed
            ),
            samples: Vec::new(),
        })
        .collect();
    let begun = Instant::now();
    while begun.elapsed() < time || all[0].samples.len() < AT_LEAST {
        let (dialer, target) = (rig.dialer.clone(), rig.target);
        rig.run(round(dialer.clone(), target))?;
        if let Some(part) = case.killed {
            rig.kill_under(part, async move {
                // This round fails because the program is killed.
                let _ = round(dialer, target).await;
            })?;
        }
        rig.until_at_rest()?;
        for (name, series) in names.iter().zip(&mut all) {
            let pid = rig.tunnel.pid(name).with_context(|| format!("no {name}"))?;
            let sample = at_rest(pid, begun, series.samples.first())?;
            series.samples.push(sample);
        }
    }
    Ok(all)
}

/// Returns a sample after the connections of the metrics requests have ended.
fn at_rest(pid: u32, begun: Instant, first: Option<&Sample>) -> Result<Sample> {
    wait_until(PATIENCE, "as many files as at first", || {
        let sample = Sample::of(pid, begun.elapsed(), Counts::default())?;
        let is_rest = first.is_none_or(|first| sample.descriptors <= first.descriptors);
        Ok(is_rest.then_some(sample))
    })
}

/// Opens tunnels that end in different ways, and transfers many bytes.
async fn round(dialer: Dialer, target: SocketAddr) -> Result<()> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let dialer = dialer.clone();
        clients.spawn(async move {
            for number in 0..TUNNELS {
                live(&dialer, target, client + number).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    for direction in Direction::ALL {
        load::bulk(dialer.clone(), target, direction, BULK).await?;
    }
    Ok(())
}

/// Opens one tunnel and ends it in the way that `number` selects.
async fn live(dialer: &Dialer, target: SocketAddr, number: usize) -> Result<()> {
    let address = target.to_string();
    match number % 6 {
        // The client disconnects.
        0 => drop(load::open(dialer, target).await?),
        // The client closes its sending side, and reads to the end.
        1 => {
            let mut tunnel = load::open(dialer, target).await?;
            tunnel.shutdown().await?;
            tunnel.read_to_end(&mut Vec::new()).await?;
        }
        // The client disconnects in the middle of a transfer, in either direction.
        2 => {
            let mut tunnel = dialer.dial(&address).await?;
            tunnel.write_u8(GIVE).await?;
            tunnel.write_u64(BULK).await?;
            tunnel.flush().await?;
            tunnel.read_u8().await?;
        }
        3 => {
            let mut tunnel = dialer.dial(&address).await?;
            tunnel.write_u8(TAKE).await?;
            tunnel.write_u64(BULK).await?;
            tunnel.write_all(&vec![0; 100_000]).await?;
        }
        // The client disconnects during its dial.
        4 => {
            let patience = Duration::from_micros(300);
            drop(timeout(patience, dialer.dial(&address)).await);
        }
        // The target's port is closed.
        _ => {
            let refused = dialer.dial("127.0.0.1:1").await;
            anyhow::ensure!(refused.is_err(), "a connection to nothing");
        }
    }
    Ok(())
}
