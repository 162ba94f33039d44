// SPDX-License-Identifier: Apache-2.0

//! When passes are due: after kernel events (debounced), after failures (with exponential backoff), and at every sync
//! interval.

use std::mem;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::events::PendingEvents;
use crate::monitor::Monitor;

/// Debounce time: events that follow within it are handled by the same pass.
const SETTLE: Duration = Duration::from_millis(2);
/// Upper bound of the debounce: a storm of events does not delay a pass for longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// Delay after the first failed pass; it doubles with each further one.
const RETRY: Duration = Duration::from_secs(1);
/// `STORM` passes in a row that each begin within `CLOSE` after the end of the one before are throttled. A repair and the
/// pass that its own events trigger stay below that.
const CLOSE: Duration = Duration::from_millis(100);
const STORM: u32 = 4;
/// Upper bound of the throttling delay.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Why a pass is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Kernel events, or the request of the pass before.
    Event,
    /// The start, the sync interval, or the retry after a failure.
    Resync,
}

impl Cause {
    /// Both causes.
    pub const ALL: [Self; 2] = [Self::Event, Self::Resync];

    /// The name in metrics and in the state file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Resync => "resync",
        }
    }
}

/// Determines when the next pass is due.
pub struct Trigger {
    monitor: Monitor,
    /// Events since the last pass began.
    events: PendingEvents,
    /// An event was received that has not led to a pass yet.
    woken: bool,
    interval: Duration,
    due: Instant,
    /// No pass begins before.
    rest_until: Instant,
    /// End of the last pass, and the number of passes that followed each other within `CLOSE`.
    ended: Instant,
    streak: u32,
    failures: u32,
    /// The last pass requested the next one: it is no resync.
    asked: bool,
}

impl Trigger {
    /// A trigger for events of `monitor` and for each `interval`.
    pub fn new(monitor: Monitor, interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            monitor,
            events: PendingEvents::default(),
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

    /// Waits until a pass is due and returns its cause. Cancel safe.
    pub async fn wait(&mut self) -> Cause {
        let mut cause = Cause::Event;
        if !self.woken {
            tokio::select! {
                notice = self.monitor.next() => {
                    debug!("pass triggered by event: {}", notice.event);
                    self.events.add(notice);
                    // Kept until a pass follows, even if this future is dropped.
                    self.woken = true;
                }
                () = sleep_until(self.due) => {
                    if self.asked {
                        debug!("pass requested by the previous one");
                        return Cause::Event;
                    }
                    debug!("pass triggered by the sync interval or a retry");
                    cause = Cause::Resync;
                }
            }
        }
        if cause == Cause::Event {
            self.take_in(SETTLE).await;
        }
        sleep_until(self.rest_until).await;
        // Events received during the throttling delay are handled by this pass too.
        self.take_in(Duration::ZERO).await;
        self.woken = false;
        cause
    }

    /// Collects events until none arrives for `quiet`.
    async fn take_in(&mut self, quiet: Duration) {
        let end = Instant::now() + PATIENCE;
        loop {
            let quiet = (Instant::now() + quiet).min(end);
            let Ok(notice) = timeout_at(quiet, self.monitor.next()).await else {
                return;
            };
            self.events.add(notice);
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// Takes the events collected since the last call.
    pub fn take_events(&mut self) -> PendingEvents {
        mem::take(&mut self.events)
    }

    /// Records the end of the pass that began at `begun`; `again` is the delay after which it requests another one.
    pub fn passed(&mut self, begun: Instant, failed: bool, again: Option<Duration>) {
        let now = Instant::now();
        self.streak = if begun - self.ended < CLOSE {
            self.streak + 1
        } else {
            0
        };
        self.ended = now;
        // In a storm, as much time as the pass took is left to other processes.
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

/// The time until the next pass that no event triggers.
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
    fn the_delay_grows_up_to_the_interval() {
        let minute = Duration::from_mins(1);
        let delays: Vec<_> = [0, 1, 2, 3, 6, 7, 100]
            .map(|failures| delay(minute, failures).as_secs())
            .to_vec();
        assert_eq!(delays, [60, 1, 2, 4, 32, 60, 60]);
        let short = Duration::from_millis(100);
        assert_eq!(delay(short, 1), short);
    }
}
