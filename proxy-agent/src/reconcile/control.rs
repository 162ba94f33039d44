// SPDX-License-Identifier: Apache-2.0

//! Cooperation between a pass and its owner: the owner requests an early end, the pass reports progress.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by a pass and its owner; cloning shares. A default one belongs to no owner: nothing stops the pass.
#[derive(Debug, Clone, Default)]
pub struct Control(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stopped: Cell<bool>,
    steps: Cell<u64>,
    pulse: Pulse,
}

/// Time of the last progress, readable from other threads.
#[derive(Debug, Clone)]
pub struct Pulse {
    since: Instant,
    /// Milliseconds after `since`.
    last: Arc<AtomicU64>,
}

impl Control {
    /// A control that records the end of each operation in `pulse`.
    pub fn watched(pulse: &Pulse) -> Self {
        pulse.beat();
        Self(Rc::new(Shared {
            pulse: pulse.clone(),
            ..Shared::default()
        }))
    }

    /// Requests the end of the pass before its next operation.
    pub fn stop(&self) {
        self.0.stopped.set(true);
    }

    /// True if the end of the pass was requested: no further operation may start.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    /// Records that an operation has ended.
    pub fn step(&self) {
        self.0.steps.set(self.0.steps.get() + 1);
        self.0.pulse.beat();
    }

    /// Number of operations that have ended.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last: Arc::default(),
        }
    }
}

impl Pulse {
    /// Records progress now.
    pub fn beat(&self) {
        let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// Time since the last progress.
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(last)
    }
}
