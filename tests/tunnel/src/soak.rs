// SPDX-License-Identifier: Apache-2.0

//! Server and agent that have much to do for a long time, and the resources they hold meanwhile, sampled whenever they
//! are at rest: memory, descriptors, threads. None of it may grow. A killed program begins anew, so it is the other one
//! that is sampled then.

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

/// Clients at once, and tunnels that each of them opens in a round.
const CLIENTS: usize = 16;
const TUNNELS: usize = 12;
/// Bytes through one tunnel each way in a round.
const BULK: u64 = 16 << 20;
/// So that there is something to compare after the warm-up, also in a short time.
const AT_LEAST: usize = 16;

/// The interference with server and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// How clients reach the server.
    pub transport: Transport,
    /// The program that is killed in each round.
    pub killed: Option<Part>,
}

impl Case {
    /// All.
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

/// The resources that one program has held.
#[derive(Debug)]
pub struct Series {
    /// Which one.
    pub name: String,
    /// In order.
    pub samples: Vec<Sample>,
}

/// Does this to a server and an agent for so long.
///
/// # Errors
/// Something does not work, or does not come to rest.
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
                // It fails in the middle.
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

/// A sample, when the connections that asked for metrics have ended.
fn at_rest(pid: u32, begun: Instant, first: Option<&Sample>) -> Result<Sample> {
    wait_until(PATIENCE, "as many files as at first", || {
        let sample = Sample::of(pid, begun.elapsed(), Counts::default())?;
        let is_rest = first.is_none_or(|first| sample.descriptors <= first.descriptors);
        Ok(is_rest.then_some(sample))
    })
}

/// Tunnels that end in many ways, and many bytes.
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

/// The life of one tunnel.
async fn live(dialer: &Dialer, target: SocketAddr, number: usize) -> Result<()> {
    let address = target.to_string();
    match number % 6 {
        // The client leaves.
        0 => drop(load::open(dialer, target).await?),
        // The client has nothing more to send, and reads to the end.
        1 => {
            let mut tunnel = load::open(dialer, target).await?;
            tunnel.shutdown().await?;
            tunnel.read_to_end(&mut Vec::new()).await?;
        }
        // It leaves in the middle of what comes, or of what it sends.
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
        // It leaves while it dials.
        4 => {
            let patience = Duration::from_micros(300);
            drop(timeout(patience, dialer.dial(&address)).await);
        }
        // Nothing listens there.
        _ => {
            let refused = dialer.dial("127.0.0.1:1").await;
            anyhow::ensure!(refused.is_err(), "a connection to nothing");
        }
    }
    Ok(())
}
