// SPDX-License-Identifier: Apache-2.0

//! The work of clients: open tunnels, carry bytes, rest, stall. The benchmark measures it; tests and soak check the
//! resources that are left afterwards.

pub mod rig;
pub mod target;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use proxy_tunnel::client::{Dialer, Tunnel};
use tokio::io::{self, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::target::{ECHO, GIVE, IGNORE, TAKE, give};

/// A round trip that takes longer counts as one of this length, and its tunnel makes no further ones.
pub const LOST: Duration = Duration::from_secs(10);
/// The pause between two round trips of a tunnel.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a round trip.
const MESSAGE: usize = 32;
/// Dials at once while many tunnels are opened.
const AT_ONCE: usize = 50;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the target.
    ToTarget,
    /// From the target to the client.
    FromTarget,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ToTarget, Self::FromTarget];

    /// In results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToTarget => "to the target",
            Self::FromTarget => "from the target",
        }
    }
}

/// Opens a tunnel to a target that sends back what it gets, and makes a round trip of one byte.
///
/// # Errors
/// No tunnel, or no answer.
pub async fn open(dialer: &Dialer, target: SocketAddr) -> Result<Tunnel> {
    let mut tunnel = dialer.dial(&target.to_string()).await?;
    tunnel.write_all(&[ECHO, 0]).await?;
    tunnel.flush().await?;
    tunnel.read_u8().await.context("the first answer")?;
    Ok(tunnel)
}

/// How many tunnels per second `clients` open, use and close, each one after the other, within `slot`.
///
/// # Errors
/// A tunnel cannot be opened.
pub async fn rate(
    dialer: Dialer,
    target: SocketAddr,
    clients: usize,
    slot: Duration,
) -> Result<f64> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let dialer = dialer.clone();
        tasks.spawn(async move {
            let mut opened = 0_u32;
            while begun.elapsed() < slot {
                drop(open(&dialer, target).await?);
                opened += 1;
            }
            anyhow::Ok(opened)
        });
    }
    let mut opened = 0;
    while let Some(done) = tasks.join_next().await {
        opened += done??;
    }
    Ok(f64::from(opened) / begun.elapsed().as_secs_f64())
}

/// How long `bytes` take through one tunnel, from the first byte to the last one's arrival.
///
/// # Errors
/// They do not arrive.
pub async fn bulk(
    dialer: Dialer,
    target: SocketAddr,
    direction: Direction,
    bytes: u64,
) -> Result<Duration> {
    let mut tunnel = dialer.dial(&target.to_string()).await?;
    let begun = Instant::now();
    match direction {
        Direction::ToTarget => {
            tunnel.write_u8(TAKE).await?;
            tunnel.write_u64(bytes).await?;
            give(&mut tunnel, bytes).await?;
            tunnel.read_u8().await.context("the target's answer")?;
        }
        Direction::FromTarget => {
            tunnel.write_u8(GIVE).await?;
            tunnel.write_u64(bytes).await?;
            tunnel.flush().await?;
            let taken = io::copy(&mut (&mut tunnel).take(bytes), &mut io::sink()).await?;
            anyhow::ensure!(taken == bytes, "{taken} of {bytes} bytes arrived");
        }
    }
    Ok(begun.elapsed())
}

/// Opens so many tunnels that do nothing after their first round trip.
///
/// # Errors
/// One cannot be opened.
pub async fn resting(dialer: Dialer, target: SocketAddr, count: usize) -> Result<Vec<Tunnel>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (dialer, turns) = (dialer.clone(), Arc::clone(&turns));
        tasks.spawn(async move {
            let _turn = turns.acquire().await?;
            open(&dialer, target).await
        });
    }
    let mut tunnels = Vec::with_capacity(count);
    while let Some(opened) = tasks.join_next().await {
        tunnels.push(opened??);
    }
    Ok(tunnels)
}

/// The round trips of these tunnels within `slot`, sorted.
pub async fn round_trips(tunnels: Vec<Tunnel>, slot: Duration) -> Vec<Duration> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for mut tunnel in tunnels {
        tasks.spawn(async move {
            let mut trips = Vec::new();
            while begun.elapsed() < slot {
                let sent = Instant::now();
                let trip = timeout(LOST, async {
                    tunnel.write_all(&[0; MESSAGE]).await?;
                    tunnel.flush().await?;
                    tunnel.read_exact(&mut [0; MESSAGE]).await
                });
                if let Ok(Ok(_)) = trip.await {
                    trips.push(sent.elapsed());
                } else {
                    trips.push(LOST);
                    break;
                }
                sleep(PAUSE).await;
            }
            trips
        });
    }
    let mut trips = tasks.join_all().await.concat();
    trips.sort_unstable();
    trips
}

/// The 99th percentile of sorted times.
///
/// # Errors
/// There is none.
pub fn percentile(sorted: &[Duration]) -> Result<Duration> {
    let at = sorted.len() * 99 / 100;
    sorted.get(at).copied().context("no round trip")
}

/// The end that does not read from a stalled tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// The target; the client writes.
    Target,
    /// The client; the target writes.
    Client,
}

impl Stall {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Target, Self::Client];
}

/// Opens tunnels that stand still, in turn in each of these ways. They last until the set is dropped.
///
/// # Errors
/// One cannot be opened. Those before it are in the set.
pub async fn stalled(
    tasks: &mut JoinSet<()>,
    dialer: Dialer,
    target: SocketAddr,
    count: usize,
    ways: &[Stall],
) -> Result<()> {
    for way in ways.iter().cycle().take(count) {
        let mut tunnel = dialer.dial(&target.to_string()).await?;
        match way {
            Stall::Target => {
                tunnel.write_u8(IGNORE).await?;
                tasks.spawn(async move {
                    // Until the server closes it.
                    let _ = give(&mut tunnel, u64::MAX).await;
                });
            }
            Stall::Client => {
                tunnel.write_u8(GIVE).await?;
                tunnel.write_u64(u64::MAX).await?;
                tunnel.flush().await?;
                tasks.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(tunnel);
                });
            }
        }
    }
    Ok(())
}
