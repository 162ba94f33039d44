// SPDX-License-Identifier: Apache-2.0

//! The limits of one tenant. They can change while the tenant exists; connections above a lowered limit continue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// The limits of a tenant; `None` means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of agent streams.
    pub agents: Option<usize>,
    /// The maximum number of client connections.
    pub connections: Option<usize>,
    /// The maximum number of tunnels, dialed or established.
    pub tunnels: Option<usize>,
    /// The maximum number of dials per second; also the maximum burst.
    pub dials_per_second: Option<u32>,
    /// The maximum number of bytes that the tenant's tunnels together hold for slow readers.
    pub buffered: Option<usize>,
}

/// A limit that is reached, with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reached {
    /// The limit of agents.
    #[error("it has as many agents as it may (limits.agents: {0})")]
    Agents(usize),
    /// The limit of client connections.
    #[error("its clients have as many connections as they may (limits.connections: {0})")]
    Connections(usize),
    /// The limit of tunnels.
    #[error("it has as many tunnels as it may (limits.tunnels: {0})")]
    Tunnels(usize),
    /// The limit of dials per second.
    #[error("it dials more often than it may (limits.dialsPerSecond: {0})")]
    Dials(u32),
}

impl Reached {
    /// Returns the label in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Agents(_) => "agents",
            Self::Connections(_) => "connections",
            Self::Tunnels(_) => "tunnels",
            Self::Dials(_) => "dials",
        }
    }
}

/// The limits of one tenant, and how much of them is in use.
#[derive(Debug, Default)]
pub struct Allowance {
    limits: Mutex<Limits>,
    connections: Arc<AtomicUsize>,
    tunnels: Arc<AtomicUsize>,
    dials: Mutex<Dials>,
}

/// A permit for one connection or tunnel. Dropping it returns it to the tenant.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Takes one of `most` permits; returns `None` if all are in use.
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |count: usize| (count < most).then_some(count + 1);
        let taken = count.try_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(Arc::clone(count)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Allowance {
    /// Returns the current limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the limits.
    pub fn set(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Returns the number of tunnels.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Returns a permit for a client connection.
    ///
    /// # Errors
    /// Returns an error if the limit is reached.
    pub fn connect(&self) -> Result<Permit, Reached> {
        let most = self.limits().connections.unwrap_or(usize::MAX);
        Permit::take(&self.connections, most).ok_or(Reached::Connections(most))
    }

    /// Returns a permit for a tunnel that is dialed at `now`.
    ///
    /// # Errors
    /// Returns an error if a limit is reached.
    pub fn dial(&self, now: Instant) -> Result<Permit, Reached> {
        let limits = self.limits();
        if let Some(rate) = limits.dials_per_second {
            let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
            if !dials.take(rate, now) {
                return Err(Reached::Dials(rate));
            }
        }
        let most = limits.tunnels.unwrap_or(usize::MAX);
        Permit::take(&self.tunnels, most).ok_or(Reached::Tunnels(most))
    }
}

/// The past dials, stored as the time by which all of them would have been made at the permitted rate (the generic cell
/// rate algorithm of ITU-T I.371).
#[derive(Debug, Default)]
struct Dials {
    paid_until: Option<Instant>,
}

impl Dials {
    /// The permitted burst, as a duration.
    const BURST: Duration = Duration::from_secs(1);

    fn take(&mut self, per_second: u32, now: Instant) -> bool {
        let Some(each) = Self::BURST.checked_div(per_second) else {
            return false;
        };
        let start = self.paid_until.map_or(now, |until| until.max(now));
        let end = start + each;
        let is_allowed = end.saturating_duration_since(now) <= Self::BURST;
        if is_allowed {
            self.paid_until = Some(end);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_come_at_their_rate_after_a_burst() {
        let start = Instant::now();
        for rate in [1, 7, 100] {
            let mut dials = Dials::default();
            let burst = (0..1000).filter(|_| dials.take(rate, start)).count();
            assert_eq!(burst, rate as usize);
            // Ten seconds, with a dial every millisecond.
            let later = (1..=10_000).map(|millis| start + Duration::from_millis(millis));
            let more = later.filter(|now| dials.take(rate, *now)).count();
            let want = 10 * rate as usize;
            assert!(more.abs_diff(want) <= want / 100 + 1, "{rate}: {more}");
        }
        assert!(!Dials::default().take(0, start));
    }

    #[test]
    fn tunnels_are_counted_until_they_end() {
        let allowance = Allowance::default();
        let now = Instant::now();
        let unlimited = allowance.dial(now).unwrap();
        allowance.set(Limits {
            tunnels: Some(2),
            ..Limits::default()
        });
        let second = allowance.dial(now).unwrap();
        assert_eq!(allowance.dial(now).unwrap_err(), Reached::Tunnels(2));
        drop(unlimited);
        let _third = allowance.dial(now).unwrap();
        // A lower limit does not end existing tunnels.
        allowance.set(Limits {
            tunnels: Some(1),
            ..Limits::default()
        });
        drop(second);
        assert_eq!(allowance.dial(now).unwrap_err(), Reached::Tunnels(1));
        assert_eq!(allowance.tunnels(), 1);
    }

    #[test]
    fn connections_have_a_limit_of_their_own() {
        let allowance = Allowance::default();
        allowance.set(Limits {
            connections: Some(1),
            ..Limits::default()
        });
        let one = allowance.connect().unwrap();
        assert_eq!(allowance.connect().unwrap_err(), Reached::Connections(1));
        let _tunnel = allowance.dial(Instant::now()).unwrap();
        drop(one);
        allowance.connect().unwrap();
    }
}
