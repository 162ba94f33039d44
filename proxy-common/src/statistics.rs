// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The map of counters: its key, its value, and the reasons for which connections stay undecided.

use crate::addr::Endpoint;
use crate::guard::Cause;

/// The key of counters: the traffic of a VIP with one port that arrived on one link.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKey {
    /// The ifindex; [`CounterKey::THIS_HOST`] for the node's own processes and for replies,
    /// [`CounterKey::GONE_LINKS`] for sums that user space has added.
    link: u32,
    vip: Endpoint,
}

/// The reason why a connection to the proxy stays undecided. The number is the index in
/// [`Counters::undecided`] and does not change between versions, because the map outlives the
/// agent.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The proxy has a connection with the same addresses and ports that was made by another path.
    InUse = 0,
    /// No listener is bound to the VIP: the path without the agent may lead to an endpoint.
    NoListener = 1,
    /// A map was full.
    MapFull = 2,
    /// By the node's routes, the Service address is not local for packets of this link.
    NotLocal = 3,
}

/// The number of reasons that there is room for; more than exist, so that a new one needs no new
/// map.
pub const MAX_REASONS: usize = 8;

/// The number of causes that there is room for.
pub const MAX_CAUSES: usize = 4;

/// Packets and their bytes, counted from the IP header.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The number of packets; segments that the stack handles as one count once.
    pub packets: u64,
    /// The number of bytes.
    pub bytes: u64,
}

/// The counters of one key on one CPU. They only grow.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Untracked packets to the VIP.
    pub requests: Traffic,
    /// Untracked packets from the VIP.
    pub replies: Traffic,
    /// Decided SYNs; a retransmitted SYN counts again, here and below.
    pub decided: u64,
    /// Decided SYNs that were addressed to a Service, and calls of connect(2) to one.
    pub terminated: u64,
    /// Undecided SYNs by [`Reason`].
    pub undecided: [u64; MAX_REASONS],
    /// Dropped packets by [`Cause`].
    pub dropped: [u64; MAX_CAUSES],
}

impl CounterKey {
    /// In place of an ifindex: a process on the node, without a link.
    pub const THIS_HOST: u32 = 0;
    /// In place of an ifindex: all links that no longer exist. No ifindex is this large.
    pub const GONE_LINKS: u32 = u32::MAX;

    /// Creates a key. `link` is an ifindex, [`CounterKey::THIS_HOST`] or
    /// [`CounterKey::GONE_LINKS`].
    #[inline(always)]
    #[must_use]
    pub const fn new(link: u32, vip: Endpoint) -> Self {
        Self { link, vip }
    }

    /// Returns the ifindex, [`CounterKey::THIS_HOST`] or [`CounterKey::GONE_LINKS`].
    #[inline(always)]
    #[must_use]
    pub const fn link(&self) -> u32 {
        self.link
    }

    /// Returns the VIP with its port.
    #[inline(always)]
    #[must_use]
    pub const fn vip(&self) -> Endpoint {
        self.vip
    }
}

impl Reason {
    /// All reasons in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::InUse, Self::NoListener, Self::MapFull, Self::NotLocal];
}

impl Traffic {
    /// The value for no packets.
    pub const NONE: Self = Self {
        packets: 0,
        bytes: 0,
    };

    /// Adds the values of another CPU or link.
    pub fn add(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

impl Counters {
    /// The value for empty counters.
    pub const ZERO: Self = Self {
        requests: Traffic::NONE,
        replies: Traffic::NONE,
        decided: 0,
        terminated: 0,
        undecided: [0; MAX_REASONS],
        dropped: [0; MAX_CAUSES],
    };

    /// Adds the counters of another CPU or link.
    pub fn add(&mut self, other: &Self) {
        self.requests.add(other.requests);
        self.replies.add(other.replies);
        self.decided = self.decided.wrapping_add(other.decided);
        self.terminated = self.terminated.wrapping_add(other.terminated);
        for (sum, part) in self.undecided.iter_mut().zip(other.undecided) {
            *sum = sum.wrapping_add(part);
        }
        for (sum, part) in self.dropped.iter_mut().zip(other.dropped) {
            *sum = sum.wrapping_add(part);
        }
    }

    /// Returns the number of SYNs that stayed undecided for a reason.
    #[must_use]
    pub const fn undecided_for(&self, reason: Reason) -> u64 {
        self.undecided[reason as usize]
    }

    /// Returns the number of packets that were dropped for a cause.
    #[must_use]
    pub const fn dropped_for(&self, cause: Cause) -> u64 {
        self.dropped[cause as usize]
    }
}

// SAFETY: `repr(C)`, integers only, no padding (see the layout test), any bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for CounterKey {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Counters {}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, size_of};

    use super::*;

    #[test]
    fn nothing_has_padding() {
        assert_eq!(size_of::<CounterKey>(), 4 + size_of::<Endpoint>());
        assert_eq!(align_of::<CounterKey>(), 4);
        assert_eq!(
            size_of::<Counters>(),
            8 * (2 + 2 + 2 + MAX_REASONS + MAX_CAUSES)
        );
        assert_eq!(align_of::<Counters>(), 8);
    }

    #[test]
    fn every_reason_has_its_place() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
            let mut counters = Counters::ZERO;
            counters.undecided[place] = 7;
            assert_eq!(counters.undecided_for(reason), 7);
        }
        assert!(Reason::ALL.len() <= MAX_REASONS);
    }

    #[test]
    fn every_cause_has_its_place() {
        for (place, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, place);
        }
        assert!(Cause::ALL.len() <= MAX_CAUSES);
    }

    #[test]
    fn counters_add_up() {
        let one = Counters {
            requests: Traffic {
                packets: 1,
                bytes: 60,
            },
            replies: Traffic {
                packets: 2,
                bytes: 100,
            },
            decided: 3,
            terminated: 4,
            undecided: [5; MAX_REASONS],
            dropped: [6; MAX_CAUSES],
        };
        let mut sum = one;
        sum.add(&one);
        assert_eq!(sum.requests.bytes, 120);
        assert_eq!(sum.replies.packets, 4);
        assert_eq!((sum.decided, sum.terminated), (6, 8));
        assert_eq!(sum.undecided, [10; MAX_REASONS]);
        assert_eq!(sum.dropped, [12; MAX_CAUSES]);
        sum.add(&Counters::ZERO);
        assert_eq!(sum.decided, 6);
    }
}
