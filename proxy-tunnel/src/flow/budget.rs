// SPDX-License-Identifier: Apache-2.0

//! The memory that all inboxes of a process may hold together, in two parts: one for inboxes within their
//! limit, one for what single inboxes hold beyond it. A tunnel that stalls can thus use up only the second
//! part, and no other tunnel is closed for its sake.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be held, and those that are.
#[derive(Debug)]
pub struct Pool {
    limit: usize,
    used: AtomicUsize,
}

impl Pool {
    const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Takes `bytes` if there is room for them.
    pub fn take(&self, bytes: usize) -> bool {
        self.used
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }

    /// Gives `bytes` back.
    pub fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The two parts.
#[derive(Debug)]
pub struct Budget {
    /// For inboxes within their limit.
    pub regular: Pool,
    /// For what is beyond it.
    pub excess: Pool,
}

impl Budget {
    /// A budget of so many bytes; half of it is for excess.
    #[must_use]
    pub const fn new(bytes: usize) -> Self {
        Self {
            regular: Pool::new(bytes - bytes / 2),
            excess: Pool::new(bytes / 2),
        }
    }

    /// Bytes that are held.
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
}
