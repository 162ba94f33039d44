// SPDX-License-Identifier: Apache-2.0

//! What the daemon tells the thread that answers HTTP requests: handed over at once, so that neither
//! waits for the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::HistogramVec;

use super::metrics;
use crate::config::Config;
use crate::link::Vip;
use crate::reconcile::Pulse;
use crate::reconcile::trigger::Cause;
use crate::state::State;

/// Shared by the daemon, which writes, and the thread, which reads.
#[derive(Debug, Clone)]
pub struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pulse: Pulse,
    durations: HistogramVec,
    told: Mutex<Told>,
}

/// What the daemon has told last.
#[derive(Debug, Clone)]
pub struct Told {
    /// When the agent started.
    pub started: SystemTime,
    /// The time between two resyncs.
    pub interval: Duration,
    /// What it is doing.
    pub phase: Phase,
    /// The state after the last pass; none before the first has ended.
    pub state: Option<Arc<State>>,
    /// The VIPs as the last pass left them; empty if it could not look at the links.
    pub vips: Vec<Vip>,
    /// When the last pass ended.
    pub ended: Option<SystemTime>,
    /// When the last pass without failures ended.
    pub succeeded: Option<SystemTime>,
}

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It starts, or is in a pass.
    Working,
    /// It waits until the next pass is due.
    Idle,
    /// It ends.
    Stopping,
}

impl Board {
    /// An agent that starts now.
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(Inner {
            pulse: Pulse::default(),
            durations: metrics::durations(),
            told: Mutex::new(Told {
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

    /// Where work gives its signs of life.
    pub fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    /// How long passes took.
    pub fn durations(&self) -> &HistogramVec {
        &self.0.durations
    }

    /// What was told last.
    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    /// A pass begins.
    pub fn working(&self) {
        self.0.pulse.beat();
        self.lock().phase = Phase::Working;
    }

    /// A pass has ended that took so long.
    pub fn passed(&self, cause: Cause, took: Duration, state: State, vips: Vec<Vip>) {
        let durations = self.0.durations.with_label_values(&[cause.name()]);
        durations.observe(took.as_secs_f64());
        self.0.pulse.beat();
        let now = SystemTime::now();
        let mut told = self.lock();
        told.phase = Phase::Idle;
        told.ended = Some(now);
        if state.history.ready {
            told.succeeded = Some(now);
        }
        told.state = Some(Arc::new(state));
        told.vips = vips;
    }

    /// The agent ends.
    pub fn stopping(&self) {
        self.lock().phase = Phase::Stopping;
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
