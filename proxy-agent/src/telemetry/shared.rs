// SPDX-License-Identifier: Apache-2.0

//! State shared between the daemon, which publishes, and the thread that answers HTTP requests. The lock is held only to
//! copy, so neither waits for the other's work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::HistogramVec;

use crate::config::Config;
use crate::link::Vip;
use crate::reconcile::Pulse;
use crate::reconcile::trigger::Cause;
use crate::state::State;

/// Written by the daemon, read by the HTTP thread; cloning shares.
#[derive(Debug, Clone)]
pub struct SharedState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pulse: Pulse,
    durations: HistogramVec,
    snapshot: Mutex<Snapshot>,
}

/// The state that the daemon published last.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When the agent started.
    pub started: SystemTime,
    /// The time between two full resyncs.
    pub interval: Duration,
    /// The daemon's phase.
    pub phase: Phase,
    /// The state after the last pass; none before the first has ended.
    pub state: Option<Arc<State>>,
    /// The VIPs as the last pass left them; empty if it could not read the list of links.
    pub vips: Vec<Vip>,
    /// When the last pass ended.
    pub ended: Option<SystemTime>,
    /// When the last pass without failures ended.
    pub succeeded: Option<SystemTime>,
}

/// The daemon's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Starting, or in a pass.
    Working,
    /// Waiting for the next pass.
    Idle,
    /// Shutting down.
    Stopping,
}

impl SharedState {
    /// The state of an agent that starts now; durations of passes are observed in `durations`.
    pub fn new(config: &Config, durations: HistogramVec) -> Self {
        Self(Arc::new(Inner {
            pulse: Pulse::default(),
            durations,
            snapshot: Mutex::new(Snapshot {
                started: SystemTime::now(),
                interval: config.sync_interval,
                phase: Phase::Working,
                state: None,
                vips: Vec::new(),
                ended: None,
                succeeded: None,
            }),
        }))
    }

    /// Records progress of the daemon.
    pub fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    /// The histogram of the durations of passes.
    pub fn durations(&self) -> &HistogramVec {
        &self.0.durations
    }

    /// A copy of the published state.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Publishes that a pass begins.
    pub fn working(&self) {
        self.0.pulse.beat();
        self.lock().phase = Phase::Working;
    }

    /// Publishes the result of a pass that took `took`.
    pub fn passed(&self, cause: Cause, took: Duration, state: State, vips: Vec<Vip>) {
        let durations = self.0.durations.with_label_values(&[cause.name()]);
        durations.observe(took.as_secs_f64());
        self.0.pulse.beat();
        let now = SystemTime::now();
        let mut snapshot = self.lock();
        snapshot.phase = Phase::Idle;
        snapshot.ended = Some(now);
        if state.history.ready {
            snapshot.succeeded = Some(now);
        }
        snapshot.state = Some(Arc::new(state));
        snapshot.vips = vips;
    }

    /// Publishes that the agent shuts down.
    pub fn stopping(&self) {
        self.lock().phase = Phase::Stopping;
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0
            .snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
