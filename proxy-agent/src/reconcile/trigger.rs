// SPDX-License-Identifier: Apache-2.0

//! When the node is looked at: after kernel events that have come to rest, after failures with
//! growing patience, and at every sync interval.

use std::mem;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::told::Told;
use crate::kernel::monitor::Monitor;

/// Events that follow within this time belong to the one before.
const SETTLE: Duration = Duration::from_millis(2);
/// A storm of events does not delay a pass for longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// First delay after a pass that failed; it doubles with each further one.
const RETRY: Duration = Duration::from_secs(1);
/// Passes that begin within this time after one another, and so many in a row, are a storm: a
/// repair and the look after it are none.
const CLOSE: Duration = Duration::from_millis(100);
const STORM: u32 = 4;
/// A pass that takes long does not keep the next one off for longer than this.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Why a pass is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The kernel told of something.
    Event,
    /// It is time: at the start, after each interval, or again after a failure.
    Resync,
}

impl Cause {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Event, Self::Resync];

    /// As others are told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Resync => "resync",
        }
    }
}

/// Tells when the next pass is due.
pub struct Trigger {
    monitor: Monitor,
    /// Since the last pass began.
    told: Told,
    /// An event has come that has not led to a pass yet.
    woken: bool,
    interval: Duration,
    due: Instant,
    /// No pass before this moment.
    rest_until: Instant,
    /// When the last pass ended, and how many followed closely on each other.
    ended: Instant,
    streak: u32,
    failures: u32,
    /// The next pass without an event was asked for by the last one: it is no resync.
    asked: bool,
}

impl Trigger {
    /// Passes are due on events of `monitor` and after each `interval`.
    pub fn new(monitor: Monitor, interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            monitor,
            told: Told::default(),
            woken: false,
            interval,
            due: now + interval,
            rest_until: now,
            ended: now,
            streak: 0,
            failures: 0,
            asked: false,
        }
    }

    /// Waits until a pass is due and returns why. May be dropped while it waits.
    pub async fn wait(&mut self) -> Cause {
        let mut cause = Cause::Event;
        if !self.woken {
            tokio::select! {
                notice = self.monitor.next() => {
                    debug!("looking at the node: {}", notice.event);
                    self.told.add(notice);
                    // Until this has led to a pass, however often the wait begins anew.
                    self.woken = true;
                }
                () = sleep_until(self.due) => {
                    if self.asked {
                        debug!("looking at the node: the last pass asked for it");
                        return Cause::Event;
                    }
                    debug!("looking at the node: it is time for a resync");
                    cause = Cause::Resync;
                }
            }
        }
        if cause == Cause::Event {
            self.take_in(SETTLE).await;
        }
        sleep_until(self.rest_until).await;
        // What came during the rest is looked after by this pass too.
        self.take_in(Duration::ZERO).await;
        self.woken = false;
        cause
    }

    /// Takes in events until none comes for a time.
    async fn take_in(&mut self, quiet: Duration) {
        let end = Instant::now() + PATIENCE;
        loop {
            let quiet = (Instant::now() + quiet).min(end);
            let Ok(notice) = timeout_at(quiet, self.monitor.next()).await else {
                return;
            };
            self.told.add(notice);
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// What the kernel told since this was last asked.
    pub fn told(&mut self) -> Told {
        mem::take(&mut self.told)
    }

    /// Notes how the pass went that began at `begun`; `again`: when it asked to be followed by another.
    pub fn passed(&mut self, begun: Instant, failed: bool, again: Option<Duration>) {
        let now = Instant::now();
        self.streak = if begun - self.ended < CLOSE {
            self.streak + 1
        } else {
            0
        };
        self.ended = now;
        // In a storm of events half of the time is left to others.
        self.rest_until = if self.streak < STORM {
            now
        } else {
            now + (now - begun).min(LONGEST_REST)
        };
        self.failures = if failed { self.failures + 1 } else { 0 };
        let delay = delay(self.interval, self.failures);
        self.due = now + again.map_or(delay, |again| again.min(delay));
        self.asked = again.is_some_and(|again| again < delay);
    }
}

/// The time until the next pass that no event asks for.
fn delay(interval: Duration, failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => interval,
        Some(further) => RETRY
            .saturating_mul(2_u32.saturating_pow(further))
            .min(interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_up_to_the_interval() {
        let minute = Duration::from_mins(1);
        let delays: Vec<_> = [0, 1, 2, 3, 6, 7, 100]
            .map(|failures| delay(minute, failures).as_secs())
            .to_vec();
        assert_eq!(delays, [60, 1, 2, 4, 32, 60, 60]);
        let short = Duration::from_millis(100);
        assert_eq!(delay(short, 1), short);
    }
}
