// SPDX-License-Identifier: Apache-2.0

//! Signals and the connection to systemd. How the agent reacts is in `daemon.rs`.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use crate::reconcile::Control;
use crate::telemetry::systemd::Systemd;

/// How long the current operation may go on after a signal to end. The agent ends within two seconds.
const GRACE: Duration = Duration::from_millis(1500);

/// Signals and systemd.
pub struct Signals {
    end: Inbox,
    hangup: Inbox,
    heartbeat: Option<Interval>,
    /// The connection to the service manager.
    pub systemd: Systemd,
}

/// A queue of pending signals (`signalfd(2)`).
///
/// A signal handler would have to write to a socket to wake the runtime; without kernel memory for that write, a signal to
/// end would be lost. Pending signals need no memory.
struct Inbox(AsyncFd<SignalFd>);

impl Inbox {
    /// Queues these signals from now on, in threads created later too. Child processes do not inherit the signal mask:
    /// the standard library resets it.
    fn open(signals: &[Signal]) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block().context("cannot keep signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let inbox = SignalFd::with_flags(&set, flags).context("cannot listen to signals")?;
        // SAFETY: the inbox owns the descriptor, which stays open until the inbox is dropped.
        let inbox = unsafe { AsyncFd::register_with_interest(inbox, Interest::READABLE) };
        Ok(Self(inbox.context("cannot wait for signals")?))
    }

    /// Waits for the next signal and returns its name. Cancel safe.
    async fn recv(&self) -> &'static str {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                // The runtime ends.
                return pending().await;
            };
            let read = ready.try_io(|inbox| {
                let signal = inbox.get_ref().read_signal()?;
                signal.ok_or_else(|| io::ErrorKind::WouldBlock.into())
            });
            match read {
                Ok(Ok(signal)) => return name(signal.ssi_signo),
                // A failed read leaves the signal pending.
                Ok(Err(_)) => yield_now().await,
                Err(_would_block) => {}
            }
        }
    }
}

fn name(number: u32) -> &'static str {
    i32::try_from(number)
        .ok()
        .and_then(|number| Signal::try_from(number).ok())
        .map_or("a signal", Signal::as_str)
}

/// A request that arrived while the agent was idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// End the agent: the name of the signal.
    Stop(&'static str),
    /// Start a full resync.
    Resync,
}

impl Signals {
    /// Takes over the delivery of SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn listen() -> Result<Self> {
        let systemd = Systemd::from_env();
        let heartbeat = systemd.heartbeat().map(|apart| {
            let mut heartbeat = interval(apart);
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heartbeat
        });
        Ok(Self {
            end: Inbox::open(&[Signal::SIGTERM, Signal::SIGINT])?,
            hangup: Inbox::open(&[Signal::SIGHUP])?,
            heartbeat,
            systemd,
        })
    }

    /// Waits for a signal while the agent is idle, and sends heartbeats to systemd. Cancel safe.
    pub async fn call(&mut self) -> Call {
        loop {
            tokio::select! {
                by = self.end.recv() => return Call::Stop(by),
                _ = self.hangup.recv() => return Call::Resync,
                () = beat(self.heartbeat.as_mut()) => self.systemd.alive(),
            }
        }
    }

    /// Runs `work`, to which `control` belongs. A signal to end ends it before its next operation, or after `GRACE` wherever
    /// it is; the name of the signal is returned then. systemd gets heartbeats as long as operations end.
    pub async fn attend<T>(
        &mut self,
        control: &Control,
        work: impl Future<Output = T>,
    ) -> Result<T, &'static str> {
        let mut work = pin!(work);
        let mut steps = None;
        let mut stop: Option<(&'static str, Instant)> = None;
        loop {
            let until = stop.map(|(_, until)| until);
            let by = tokio::select! {
                biased;
                by = self.end.recv(), if stop.is_none() => by,
                () = beat(self.heartbeat.as_mut()) => {
                    // No heartbeat without progress.
                    if steps.replace(control.steps()) != Some(control.steps()) {
                        self.systemd.alive();
                    }
                    continue;
                }
                done = &mut work => return stop.map_or(Ok(done), |(by, _)| Err(by)),
                () = reached(until) => return Err(stop.map_or("", |(by, _)| by)),
            };
            control.stop();
            stop = Some((by, Instant::now() + GRACE));
        }
    }

    /// Runs the last `work` and logs its progress each time `every` has passed. A further signal to end ends it at once; the
    /// name of the signal is returned then.
    pub async fn attend_last<T>(
        &mut self,
        control: &Control,
        every: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, &'static str> {
        let mut work = pin!(work);
        let mut steps = 0;
        loop {
            tokio::select! {
                biased;
                by = self.end.recv() => return Err(by),
                done = &mut work => return Ok(done),
                () = sleep_until(Instant::now() + every) => {}
            }
            tracing::info!("still cleaning up: {} operations done", control.steps());
            if control.steps() > steps {
                steps = control.steps();
                self.systemd.alive();
                self.systemd.more_time(4 * every);
            }
        }
    }
}

async fn beat(heartbeat: Option<&mut Interval>) {
    match heartbeat {
        Some(heartbeat) => {
            heartbeat.tick().await;
        }
        None => pending().await,
    }
}

async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
