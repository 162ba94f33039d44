// SPDX-License-Identifier: Apache-2.0

//! Limits log records about events that peers can cause as often as they want, so that none of them fills a disk.

use std::time::{Duration, Instant};

/// The minimum interval between two records.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// One kind of event.
#[derive(Debug, Default)]
pub struct Reminder {
    /// The time of the last record.
    recorded: Option<Instant>,
    /// The number of events without a record since then.
    omitted: u64,
}

impl Reminder {
    /// Counts an event. `Some` if a record is due, with the number of events that were omitted before it.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        let since = self.recorded.map(|at| now.duration_since(at));
        if since.is_some_and(|since| since < INTERVAL) {
            self.omitted += 1;
            return None;
        }
        self.recorded = Some(now);
        Some(std::mem::take(&mut self.omitted))
    }

    /// Returns true if there was a record.
    #[must_use]
    pub const fn is_used(&self) -> bool {
        self.recorded.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_recorded_at_intervals() {
        let start = Instant::now();
        let mut reminder = Reminder::default();
        assert!(!reminder.is_used());
        assert_eq!(reminder.count(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(reminder.count(start + INTERVAL / 2), None);
        }
        assert_eq!(reminder.count(start + INTERVAL), Some(1000));
        assert_eq!(reminder.count(start + INTERVAL * 2), Some(0));
        assert!(reminder.is_used());
    }
}
