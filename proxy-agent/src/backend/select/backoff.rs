// SPDX-License-Identifier: Apache-2.0

//! Backoff of the attempts to open rejected backends. Pure.

use crate::config::BackendChoice;
use crate::state::Rejected;

/// The backends that `auto` tries, in order of preference.
pub const ORDER: [BackendChoice; 3] = [
    BackendChoice::Ebpf,
    BackendChoice::Nftables,
    BackendChoice::Iptables,
];
/// Maximum number of resyncs between two attempts: about an hour at the default interval.
const MAX_BACKOFF: u32 = 64;
/// Failed passes in a row before a backend is reopened; doubles each time.
const FAILED_PASSES: u32 = 3;

/// The rejected backends.
#[derive(Debug, Default)]
pub struct Backoff {
    rejected: Vec<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    backend: BackendChoice,
    reason: String,
    /// Resyncs between the last attempt and the next one.
    interval: u32,
    /// Resyncs left until the next attempt.
    wait: u32,
}

impl Backoff {
    /// Records that a backend cannot be used. Returns true if the reason is new.
    pub fn reject(&mut self, backend: BackendChoice, reason: String) -> bool {
        if let Some(attempt) = self.find(backend) {
            attempt.interval = (attempt.interval * 2).min(MAX_BACKOFF);
            attempt.wait = attempt.interval;
            let is_news = attempt.reason != reason;
            attempt.reason = reason;
            return is_news;
        }
        self.rejected.push(Attempt {
            backend,
            reason,
            interval: 1,
            wait: 1,
        });
        let position = |attempt: &Attempt| ORDER.iter().position(|name| *name == attempt.backend);
        self.rejected.sort_by_key(position);
        true
    }

    /// Records that a backend can be used.
    pub fn accept(&mut self, backend: BackendChoice) {
        self.rejected.retain(|attempt| attempt.backend != backend);
    }

    /// The backends preferred over `current` that are due for another attempt at this resync, in order of preference.
    pub fn due(&mut self, current: BackendChoice) -> Vec<BackendChoice> {
        let mut due = Vec::new();
        for backend in ORDER.into_iter().take_while(|name| *name != current) {
            if let Some(attempt) = self.find(backend) {
                attempt.wait = attempt.wait.saturating_sub(1);
                if attempt.wait == 0 {
                    due.push(backend);
                }
            }
        }
        due
    }

    /// The backends that were not rejected, in order of preference.
    pub fn candidates(&self) -> Vec<BackendChoice> {
        let known =
            |name: &BackendChoice| self.rejected.iter().any(|attempt| attempt.backend == *name);
        ORDER.into_iter().filter(|name| !known(name)).collect()
    }

    /// The rejected backends with the reasons, in order of preference.
    pub fn rejected(&self) -> Vec<Rejected> {
        let attempts = self.rejected.iter();
        attempts
            .map(|attempt| Rejected {
                backend: attempt.backend.name().to_owned(),
                reason: attempt.reason.clone(),
            })
            .collect()
    }

    fn find(&mut self, backend: BackendChoice) -> Option<&mut Attempt> {
        self.rejected
            .iter_mut()
            .find(|attempt| attempt.backend == backend)
    }
}

/// Counts failed passes of the backend in use.
#[derive(Debug)]
pub struct Streak {
    failed: u32,
    limit: u32,
}

impl Default for Streak {
    fn default() -> Self {
        Self {
            failed: 0,
            limit: FAILED_PASSES,
        }
    }
}

impl Streak {
    /// Records the result of a pass.
    pub fn passed(&mut self, failed: bool) {
        if failed {
            self.failed += 1;
        } else {
            *self = Self::default();
        }
    }

    /// True if the backend should be reopened before the next pass; restarts the count.
    pub fn is_over(&mut self) -> bool {
        if self.failed < self.limit {
            return false;
        }
        self.failed = 0;
        self.limit = self.limit.saturating_mul(2);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EBPF: BackendChoice = BackendChoice::Ebpf;
    const NFTABLES: BackendChoice = BackendChoice::Nftables;

    #[test]
    fn the_interval_doubles_with_each_attempt() {
        let mut backoff = Backoff::default();
        assert!(backoff.reject(EBPF, "no bpffs".to_owned()));
        let mut attempts = Vec::new();
        for resync in 1..=200 {
            if backoff.due(NFTABLES) == [EBPF] {
                attempts.push(resync);
                assert!(!backoff.reject(EBPF, "no bpffs".to_owned()), "no news");
            }
        }
        assert_eq!(attempts, [1, 3, 7, 15, 31, 63, 127, 191]);
        assert!(backoff.reject(EBPF, "another reason".to_owned()));
    }

    #[test]
    fn only_better_ones_are_tried_again() {
        let mut backoff = Backoff::default();
        backoff.reject(NFTABLES, String::new());
        backoff.reject(EBPF, String::new());
        let names: Vec<_> = backoff
            .rejected()
            .into_iter()
            .map(|rejected| rejected.backend)
            .collect();
        assert_eq!(names, ["ebpf", "nftables"]);
        assert_eq!(backoff.candidates(), [BackendChoice::Iptables]);
        assert!(backoff.due(EBPF).is_empty());
        assert_eq!(backoff.due(BackendChoice::None), [EBPF, NFTABLES]);
        backoff.accept(EBPF);
        assert_eq!(backoff.candidates(), [EBPF, BackendChoice::Iptables]);
    }

    #[test]
    fn a_backend_that_keeps_failing_is_reopened_at_growing_intervals() {
        let mut streak = Streak::default();
        let mut opened = Vec::new();
        for pass in 1..=30 {
            streak.passed(true);
            if streak.is_over() {
                opened.push(pass);
            }
        }
        assert_eq!(opened, [3, 9, 21]);
        streak.passed(false);
        for _ in 0..2 {
            streak.passed(true);
        }
        assert!(!streak.is_over());
        streak.passed(true);
        assert!(streak.is_over());
    }
}
