// SPDX-License-Identifier: Apache-2.0

//! Which backends were tried and cannot be used, and when each is tried again. Pure.

use crate::config::BackendChoice;
use crate::state::Rejected;

/// The backends that `auto` tries, the best first.
pub const ORDER: [BackendChoice; 3] = [
    BackendChoice::Ebpf,
    BackendChoice::Nftables,
    BackendChoice::Iptables,
];
/// The longest wait between two attempts, in resyncs: an hour at the default interval.
const PATIENCE: u32 = 64;
/// So many failed passes in a row, and a backend is opened anew; twice as many each further time.
const FAILED_PASSES: u32 = 3;

/// The backends that cannot be used.
#[derive(Debug, Default)]
pub struct Trials {
    rejected: Vec<Trial>,
}

#[derive(Debug)]
struct Trial {
    backend: BackendChoice,
    reason: String,
    /// Resyncs between the last attempt and the next one.
    patience: u32,
    /// Those that are left.
    wait: u32,
}

impl Trials {
    /// Notes that a backend cannot be used. True if that is news.
    pub fn reject(&mut self, backend: BackendChoice, reason: String) -> bool {
        if let Some(trial) = self.find(backend) {
            trial.patience = (trial.patience * 2).min(PATIENCE);
            trial.wait = trial.patience;
            let is_news = trial.reason != reason;
            trial.reason = reason;
            return is_news;
        }
        self.rejected.push(Trial {
            backend,
            reason,
            patience: 1,
            wait: 1,
        });
        let position = |trial: &Trial| ORDER.iter().position(|name| *name == trial.backend);
        self.rejected.sort_by_key(position);
        true
    }

    /// Notes that a backend can be used.
    pub fn accept(&mut self, backend: BackendChoice) {
        self.rejected.retain(|trial| trial.backend != backend);
    }

    /// The backends better than `current` that are to be tried again at this resync, the best
    /// first.
    pub fn due(&mut self, current: BackendChoice) -> Vec<BackendChoice> {
        let mut due = Vec::new();
        for backend in ORDER.into_iter().take_while(|name| *name != current) {
            if let Some(trial) = self.find(backend) {
                trial.wait = trial.wait.saturating_sub(1);
                if trial.wait == 0 {
                    due.push(backend);
                }
            }
        }
        due
    }

    /// The backends that are not known to be of no use, the best first.
    pub fn candidates(&self) -> Vec<BackendChoice> {
        let known = |name: &BackendChoice| self.rejected.iter().any(|trial| trial.backend == *name);
        ORDER.into_iter().filter(|name| !known(name)).collect()
    }

    /// What was rejected and why, the best first.
    pub fn rejected(&self) -> Vec<Rejected> {
        let trials = self.rejected.iter();
        trials
            .map(|trial| Rejected {
                backend: trial.backend.name().to_owned(),
                reason: trial.reason.clone(),
            })
            .collect()
    }

    fn find(&mut self, backend: BackendChoice) -> Option<&mut Trial> {
        self.rejected
            .iter_mut()
            .find(|trial| trial.backend == backend)
    }
}

/// Counts the failed passes of the backend in use.
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
    /// Notes how a pass went.
    pub fn passed(&mut self, failed: bool) {
        if failed {
            self.failed += 1;
        } else {
            *self = Self::default();
        }
    }

    /// True if the backend is to be opened anew before the next pass; then the count begins again.
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
    fn patience_grows_with_each_attempt() {
        let mut trials = Trials::default();
        assert!(trials.reject(EBPF, "no bpffs".to_owned()));
        let mut attempts = Vec::new();
        for resync in 1..=200 {
            if trials.due(NFTABLES) == [EBPF] {
                attempts.push(resync);
                assert!(!trials.reject(EBPF, "no bpffs".to_owned()), "no news");
            }
        }
        assert_eq!(attempts, [1, 3, 7, 15, 31, 63, 127, 191]);
        assert!(trials.reject(EBPF, "another reason".to_owned()));
    }

    #[test]
    fn only_better_ones_are_tried_again() {
        let mut trials = Trials::default();
        trials.reject(NFTABLES, String::new());
        trials.reject(EBPF, String::new());
        let names: Vec<_> = trials
            .rejected()
            .into_iter()
            .map(|rejected| rejected.backend)
            .collect();
        assert_eq!(names, ["ebpf", "nftables"]);
        assert_eq!(trials.candidates(), [BackendChoice::Iptables]);
        assert!(trials.due(EBPF).is_empty());
        assert_eq!(trials.due(BackendChoice::None), [EBPF, NFTABLES]);
        trials.accept(EBPF);
        assert_eq!(trials.candidates(), [EBPF, BackendChoice::Iptables]);
    }

    #[test]
    fn a_backend_that_fails_for_good_is_opened_anew_less_and_less_often() {
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
