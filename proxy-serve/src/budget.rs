// SPDX-License-Identifier: Apache-2.0

//! A limit on a quantity that many tasks use together, such as requests or bytes in memory. No task waits for its
//! share, because another task may hold one for as long as its slow client wants.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A limited quantity of requests, bytes or other units.
#[derive(Debug)]
pub struct Budget {
    taken: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// Creates a budget that is entirely unused.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            limit,
        }
    }

    /// Returns an empty share, which can grow.
    #[must_use]
    pub const fn share(&self) -> Share<'_> {
        Share {
            budget: self,
            size: 0,
        }
    }
}

/// The part of a budget that one task uses. It is returned to the budget when the share is dropped.
#[derive(Debug)]
pub struct Share<'a> {
    budget: &'a Budget,
    size: usize,
}

impl Share<'_> {
    /// Increases the share by `more`. Returns false, without changing anything, if the rest of the budget is too small.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        // The order is relaxed because only the count matters: no other memory access depends on it.
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
