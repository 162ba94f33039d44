// SPDX-License-Identifier: Apache-2.0

//! A bound on the sum that many tasks take: requests, or bytes in memory. No task waits for a
//! share: another task may hold it for as long as its slow client likes.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of requests, bytes or the like that may be taken.
#[derive(Debug)]
pub struct Budget {
    taken: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of which nothing is taken.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            limit,
        }
    }

    /// An empty share, which can grow.
    #[must_use]
    pub const fn share(&self) -> Share<'_> {
        Share {
            budget: self,
            size: 0,
        }
    }
}

/// The part that one task has taken; given back when dropped.
#[derive(Debug)]
pub struct Share<'a> {
    budget: &'a Budget,
    size: usize,
}

impl Share<'_> {
    /// Takes `more`. False if less is left: then nothing has changed.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        // The count alone matters: no other memory is ordered by it.
        let taken = &self.budget.taken;
        if taken.fetch_add(more, Ordering::Relaxed) + more > self.budget.limit {
            taken.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.size += more;
        true
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_and_given_back() {
        let budget = Budget::new(10);
        let mut one = budget.share();
        let mut other = budget.share();
        assert!(one.grow(4) && other.grow(5) && one.grow(1));
        assert!(!other.grow(1));
        drop(one);
        assert!(other.grow(5) && !other.grow(1));
        drop(other);
        assert!(budget.share().grow(10));
    }
}
