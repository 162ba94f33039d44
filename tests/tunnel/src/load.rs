// SPDX-License-Identifier: Apache-2.0

//! The load of clients: they open tunnels, transfer bytes, stay idle, and stall. The benchmark measures it; the tests
//! and the soak test check the resources that are left afterwards.

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

/// A round trip that takes longer is recorded with this duration, and its tunnel makes no further round trips.
pub const LOST: Duration = Duration::from_secs(10);
/// The pause between two round trips of a tunnel.
const PAUSE: Duration = Duration::from_millis(20);
/// The size of a round trip's message, in bytes.
const MESSAGE: usize = 32;
/// The number of concurrent dials while many tunnels are opened.
const AT_ONCE: usize = 50;

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the target.
    ToTarget,
    /// From the target to the client.
    FromTarget,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::ToTarget, Self::FromTarget];

    /// Returns the name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToTarget => "to the target",
            Self::FromTarget => "from the target",
        }
    }
}

/// Opens a tunnel to a target that sends back what it receives, and makes a round trip of one byte.
///
/// # Errors
/// Returns an error if the tunnel cannot be opened, or if the byte does not return.
pub async fn open(dialer: &Dialer, target: SocketAddr) -> Result<Tunnel> {
    let mut tunnel = dialer.dial(&target.to_string()).await?;
    tunnel.write_all(&[ECHO, 0]).await?;
    tunnel.flush().await?;
    tunnel.read_u8().await.context("the first answer")?;
    Ok(tunnel)
}

/// Returns the number of tunnels per second that `clients` open, use and close, each one after the other, within
/// `slot`.
///
/// # Errors
/// Returns an error if a tunnel cannot be opened.
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

/// Returns the time that `bytes` take through one tunnel, from the first byte to the arrival of the last one.
///
/// # Errors
/// Returns an error if they do not arrive.
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

/// Opens `count` tunnels that stay idle after their first round trip.
///
/// # Errors
/// Returns an error if a tunnel cannot be opened.
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

/// Returns the durations of the round trips of these tunnels within `slot`, sorted.
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

/// Returns the 99th percentile of sorted times.
///
/// # Errors
/// Returns an error if there are no times.
pub fn percentile(sorted: &[Duration]) -> Result<Duration> {
    let at = sorted.len() * 99 / 100;
    sorted.get(at).copied().context("no round trip")
}

/// The end of a stalled tunnel that does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// The target; the client writes.
    Target,
    /// The client; the target writes.
    Client,
}

impl Stall {
    /// Both ends.
    pub const ALL: [Self; 2] = [Self::Target, Self::Client];
}

/// Opens stalled tunnels, in turn in each of these ways. They last until the set is dropped.
///
/// # Errors
/// Returns an error if a tunnel cannot be opened. The tunnels before it are in the set.
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
                    // The client writes until the server closes the tunnel.
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
