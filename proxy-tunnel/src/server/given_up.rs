// SPDX-License-Identifier: Apache-2.0

//! The IDs of dials that the server gave up while the agent may still answer them. The agent's answer identifies the
//! dial by this ID only, so no other dial may reuse it: its client would be connected to the first dial's target.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// How long an ID is kept, which is how long the agent's answer may take. Upstream's agent ignores the cancellation of
/// a dial and dials for 5 s; the rest of the minute allows for a congested stream.
const KEPT: Duration = Duration::from_mins(1);

/// The maximum number of IDs that are kept; the oldest is dropped first.
const MOST: usize = 65_536;

/// The IDs of dials that were given up.
#[derive(Debug, Default)]
pub struct GivenUp {
    order: VecDeque<(Instant, i64)>,
    numbers: HashSet<i64>,
}

impl GivenUp {
    /// Records that the dial with this ID was given up at `now`.
    pub fn note(&mut self, number: i64, now: Instant) {
        self.forget_old(now);
        if self.order.len() >= MOST {
            self.forget_first();
        }
        if self.numbers.insert(number) {
            self.order.push_back((now, number));
        }
    }

    /// Returns whether the agent may still answer a dial with this ID.
    pub fn contains(&mut self, number: i64, now: Instant) -> bool {
        self.forget_old(now);
        self.numbers.contains(&number)
    }

    /// Returns whether a dial was given up less than `within` before `now`.
    pub fn is_recent(&self, within: Duration, now: Instant) -> bool {
        let last = self.order.back();
        last.is_some_and(|(at, _)| now.saturating_duration_since(*at) < within)
    }

    fn forget_old(&mut self, now: Instant) {
        let is_old = |(at, _): &(Instant, i64)| now.saturating_duration_since(*at) >= KEPT;
        while self.order.front().is_some_and(is_old) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, number)) = self.order.pop_front() {
            self.numbers.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_for_a_time_and_bounded() {
        let start = Instant::now();
        let mut given_up = GivenUp::default();
        given_up.note(7, start);
        given_up.note(7, start);
        assert!(given_up.contains(7, start + KEPT / 2));
        assert!(!given_up.contains(8, start));
        given_up.note(8, start + KEPT / 2);
        assert!(!given_up.contains(7, start + KEPT));
        assert!(given_up.contains(8, start + KEPT));
        assert!(given_up.is_recent(KEPT, start + KEPT));
        assert!(!given_up.is_recent(KEPT / 2, start + KEPT));
        for number in 100..=100 + i64::try_from(MOST).unwrap() {
            given_up.note(number, start + KEPT);
        }
        assert!(!given_up.contains(100, start + KEPT));
        assert!(given_up.contains(102, start + KEPT));
        assert_eq!(given_up.order.len(), given_up.numbers.len());
        assert!(given_up.order.len() <= MOST);
    }
}
