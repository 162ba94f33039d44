// SPDX-License-Identifier: Apache-2.0

//! What others tell the agent while it works, and what it tells them: signals, and systemd. What is
//! done about it is `daemon.rs`'s business.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use crate::reconcile::Control;
use crate::telemetry::systemd::Systemd;

/// How long an operation in the middle of a pass may go on after a signal. The agent ends within two
/// seconds.
const GRACE: Duration = Duration::from_millis(1500);

/// Signals and systemd.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    heartbeat: Option<Interval>,
    /// What systemd is told.
    pub systemd: Systemd,
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
        let listen = |kind| signal(kind).context("cannot listen to signals");
        let systemd = Systemd::from_env();
        let heartbeat = systemd.heartbeat().map(|apart| {
            let mut heartbeat = interval(apart);
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heartbeat
        });
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            heartbeat,
            systemd,
        })
    }

    /// Waits for a signal while the agent is idle, which is a sign of life as well. May be dropped.
    pub async fn call(&mut self) -> Call {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Call::Stop("SIGTERM"),
                _ = self.interrupt.recv() => return Call::Stop("SIGINT"),
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
                _ = self.terminate.recv(), if told.is_none() => "SIGTERM",
                _ = self.interrupt.recv(), if told.is_none() => "SIGINT",
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
                _ = self.terminate.recv() => return Err("SIGTERM"),
                _ = self.interrupt.recv() => return Err("SIGINT"),
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
