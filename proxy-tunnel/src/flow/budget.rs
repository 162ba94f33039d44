// SPDX-License-Identifier: Apache-2.0

//! The memory that all inboxes of a process may hold together. It has two parts: one for inboxes within their limit,
//! and one for the bytes that single inboxes hold beyond it. A tunnel that stalls can therefore exhaust only the second
//! part, and no other tunnel is closed because of it.
//!
//! Tenants share the memory of their server. Each of them may hold as much as is currently free, up to its own limit. A
//! tenant that takes all it can get leaves half of the memory to the others; two such tenants leave a third (the
//! dynamic thresholds of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntCounter;

/// A number of bytes that may be reserved, and the number that is.
#[derive(Debug)]
pub struct Pool {
    limit: AtomicUsize,
    used: AtomicUsize,
    whole: Option<Whole>,
}

/// The pool of which this one is a part.
#[derive(Debug)]
struct Whole {
    pool: Arc<Pool>,
    /// Counts the requests that were refused to the part.
    refused: IntCounter,
}

impl Pool {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            used: AtomicUsize::new(0),
            whole: None,
        })
    }

    fn part_of(whole: &Arc<Self>, limit: usize, refused: &IntCounter) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            used: AtomicUsize::new(0),
            whole: Some(Whole {
                pool: Arc::clone(whole),
                refused: refused.clone(),
            }),
        })
    }

    /// Reserves `bytes` if there is room for them. Returns false otherwise.
    pub fn take(&self, bytes: usize) -> bool {
        let Some(whole) = &self.whole else {
            return self.take_within(bytes, usize::MAX);
        };
        let is_taken = self.take_within(bytes, whole.pool.free());
        let is_whole = is_taken && whole.pool.take(bytes);
        if is_taken && !is_whole {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        if !is_whole {
            whole.refused.inc();
        }
        is_whole
    }

    fn take_within(&self, bytes: usize, most: usize) -> bool {
        let most = most.min(self.limit.load(Ordering::Relaxed));
        self.used
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= most)
            })
            .is_ok()
    }

    /// Releases `bytes`.
    pub fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.pool.give(bytes);
        }
    }

    /// Returns the number of reserved bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn free(&self) -> usize {
        self.limit
            .load(Ordering::Relaxed)
            .saturating_sub(self.used())
    }
}

/// The two parts of the memory.
#[derive(Debug)]
pub struct Budget {
    /// The part for inboxes within their limit.
    pub regular: Arc<Pool>,
    /// The part for bytes beyond that limit.
    pub excess: Arc<Pool>,
}

impl Budget {
    /// Creates a budget of `bytes` bytes, half of them for excess.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            regular: Pool::new(bytes - bytes / 2),
            excess: Pool::new(bytes / 2),
        }
    }

    /// Creates a tenant's part of a budget, with its own limit of `bytes` if given. `refused` counts its refused
    /// requests.
    #[must_use]
    pub fn part_of(whole: &Self, bytes: Option<usize>, refused: &IntCounter) -> Self {
        let bytes = bytes.unwrap_or(usize::MAX);
        Self {
            regular: Pool::part_of(&whole.regular, bytes - bytes / 2, refused),
            excess: Pool::part_of(&whole.excess, bytes / 2, refused),
        }
    }

    /// Replaces the budget's own limit.
    pub fn limit(&self, bytes: Option<usize>) {
        let bytes = bytes.unwrap_or(usize::MAX);
        self.regular
            .limit
            .store(bytes - bytes / 2, Ordering::Relaxed);
        self.excess.limit.store(bytes / 2, Ordering::Relaxed);
    }

    /// Returns the number of reserved bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.regular.used() + self.excess.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_no_more_than_there_is() {
        let budget = Budget::new(400);
        assert!(budget.regular.take(200));
        assert!(!budget.regular.take(1));
        assert!(budget.excess.take(200));
        assert!(!budget.excess.take(usize::MAX));
        assert_eq!(budget.used(), 400);
        budget.regular.give(200);
        assert!(budget.regular.take(1));
    }

    #[test]
    fn parts_leave_each_other_room() {
        let refused = IntCounter::new("refused", "refused").unwrap();
        let whole = Budget::new(2000);
        let part = |limit| Budget::part_of(&whole, limit, &refused);
        let (one, two, small) = (part(None), part(None), part(Some(20)));
        let fill = |part: &Budget| (0..1000).take_while(|_| part.regular.take(1)).count();
        // The first tenant alone gets half, and the next one half of the rest.
        assert_eq!(fill(&one), 500);
        assert_eq!(fill(&two), 250);
        assert_eq!(fill(&small), 10);
        assert_eq!(whole.used(), 760);
        assert_eq!(refused.get(), 3);
        one.regular.give(500);
        small.limit(None);
        assert!(fill(&two) > 50 && fill(&small) > 100);
        assert_eq!(whole.used(), one.used() + two.used() + small.used());
    }
}
