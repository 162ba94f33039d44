// SPDX-License-Identifier: Apache-2.0

//! What a pass and those who wait for it tell each other: that it should end, and that it gets on.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by a pass and its owner. Without an owner nobody stops it.
#[derive(Debug, Clone, Default)]
pub struct Control(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stopped: Cell<bool>,
    steps: Cell<u64>,
    pulse: Pulse,
}

/// When the work last got on, for whoever watches from another thread.
#[derive(Debug, Clone)]
pub struct Pulse {
    since: Instant,
    /// Milliseconds after `since`.
    last: Arc<AtomicU64>,
}

impl Control {
    /// Tells `pulse` of each operation.
    pub fn watched(pulse: &Pulse) -> Self {
        pulse.beat();
        Self(Rc::new(Shared {
            pulse: pulse.clone(),
            ..Shared::default()
        }))
    }

    /// Has the pass end before its next operation.
    pub fn stop(&self) {
        self.0.stopped.set(true);
    }

    /// True if nothing more should be begun.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    /// Notes that an operation has ended.
    pub fn step(&self) {
        self.0.steps.set(self.0.steps.get() + 1);
        self.0.pulse.beat();
    }

    /// How many operations have ended.
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
    /// A sign of life.
    pub fn beat(&self) {
        let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// How long ago the last sign of life was.
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(last)
    }
}
