// SPDX-License-Identifier: Apache-2.0

//! What others tell the agent while it works, and what it tells them: signals, and systemd. What is
//! done about it is `daemon.rs`'s business.

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

/// How long an operation in the middle of a pass may go on after a signal. The agent ends within two
/// seconds.
const GRACE: Duration = Duration::from_millis(1500);

/// Signals and systemd.
pub struct Signals {
    end: Inbox,
    hangup: Inbox,
    heartbeat: Option<Interval>,
    /// What systemd is told.
    pub systemd: Systemd,
}

/// Where signals wait until they are read.
///
/// A signal handler would have to write to a socket to wake the runtime, and for want of memory in the
/// kernel a signal to end would be lost. What waits in the kernel needs no memory.
struct Inbox(AsyncFd<SignalFd>);

impl Inbox {
    /// Has these signals wait from now on, in the threads to come as well. Processes that are started
    /// do not inherit that: the standard library sees to it.
    fn open(signals: &[Signal]) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block().context("cannot keep signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let inbox = SignalFd::with_flags(&set, flags).context("cannot listen to signals")?;
        // SAFETY: the descriptor is the inbox's own, and stays open and the same until it is dropped.
        let inbox = unsafe { AsyncFd::register_with_interest(inbox, Interest::READABLE) };
        Ok(Self(inbox.context("cannot wait for signals")?))
    }

    /// The name of the next one. May be dropped: then it is still there.
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
                // It waits until it can be read.
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

/// Something that came while the agent was waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To end: the name of the signal.
    Stop(&'static str),
    /// To look at everything again.
    Resync,
}

impl Signals {
    /// From now on these signals do not end the process.
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

    /// Waits for a signal while the agent is idle, which is a sign of life as well. May be dropped.
    pub async fn call(&mut self) -> Call {
        loop {
            tokio::select! {
                by = self.end.recv() => return Call::Stop(by),
                _ = self.hangup.recv() => return Call::Resync,
                () = beat(self.heartbeat.as_mut()) => self.systemd.alive(),
            }
        }
    }

    /// Does `work`, which `control` belongs to. A signal to end has it end before its next
    /// operation, or wherever it is if that takes too long; then the name of the signal is returned.
    pub async fn attend<T>(
        &mut self,
        control: &Control,
        work: impl Future<Output = T>,
    ) -> Result<T, &'static str> {
        let mut work = pin!(work);
        let mut steps = None;
        let mut told: Option<(&'static str, Instant)> = None;
        loop {
            let until = told.map(|(_, until)| until);
            let by = tokio::select! {
                biased;
                by = self.end.recv(), if told.is_none() => by,
                () = beat(self.heartbeat.as_mut()) => {
                    // Work that stands still is no sign of life.
                    if steps.replace(control.steps()) != Some(control.steps()) {
                        self.systemd.alive();
                    }
                    continue;
                }
                done = &mut work => return told.map_or(Ok(done), |(by, _)| Err(by)),
                () = reached(until) => return Err(told.map_or("", |(by, _)| by)),
            };
            control.stop();
            told = Some((by, Instant::now() + GRACE));
        }
    }

    /// Does the last `work`, telling every few seconds that it goes on. A signal to end has it end
    /// where it is: then the name of the signal is returned.
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
            tracing::info!("still cleaning up: {} operations so far", control.steps());
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
