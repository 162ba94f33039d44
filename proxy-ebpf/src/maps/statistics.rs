// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters of packets and connections, by link and VIP. No decision depends on them: a counter
//! that cannot be written changes no verdict.
//!
//! No CPU writes the counters of another one. Additions are nevertheless not atomic: a packet's
//! program may interrupt a process's hook between its read and its write of a counter, and then one
//! addition is lost.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuHashMap;
use proxy_common::guard::{Cause, Refused};
use proxy_common::limits::MAX_COUNTERS;
use proxy_common::{CounterKey, Counters, Endpoint};

use crate::packet::Undecided;

/// The counters. The map is pinned, so that they outlive the agent. The kernel allocates memory
/// only for used entries.
#[map]
static STATISTICS: PerCpuHashMap<CounterKey, Counters> =
    PerCpuHashMap::pinned(MAX_COUNTERS, BPF_F_NO_PREALLOC);

/// The initial value of an entry; it is a static because it is large for a stack of 512 bytes.
static ZERO: Counters = Counters::ZERO;

/// Counts the outcome of a SYN to a Service that ends on `vip`.
#[inline(always)]
pub fn opened(link: u32, vip: Endpoint, outcome: Result<(), Undecided>) {
    match outcome {
        Ok(()) => {
            if let Some(counters) = counters(link, vip) {
                // SAFETY: `counters` returns a valid pointer.
                unsafe {
                    increment(&raw mut (*counters).decided);
                    increment(&raw mut (*counters).terminated);
                }
            }
        }
        Err(why) => undecided(link, vip, why),
    }
}

/// Counts the outcome of a call of connect(2) on the node. The rules count its SYN.
#[inline(always)]
pub fn connected(vip: Endpoint, outcome: Result<(), Undecided>) {
    match outcome {
        Ok(()) => {
            if let Some(counters) = counters(CounterKey::THIS_HOST, vip) {
                // SAFETY: `counters` returns a valid pointer.
                unsafe { increment(&raw mut (*counters).terminated) };
            }
        }
        Err(why) => undecided(CounterKey::THIS_HOST, vip, why),
    }
}

/// Counts a reply that was kept from a client because it cannot be genuine.
#[inline(always)]
pub fn stray_reply(link: u32, vip: Endpoint) {
    let cause = Cause::StrayReply;
    dropped(link, Refused { cause, vip });
}

/// Counts a connection that stays undecided, if the reason concerns the proxy.
#[inline(always)]
pub fn undecided(link: u32, vip: Endpoint, why: Undecided) {
    let Some(reason) = why.reason() else {
        return;
    };
    if let Some(counters) = counters(link, vip) {
        // SAFETY: `counters` returns a valid pointer; a reason's number is within the array.
        unsafe {
            let first = (&raw mut (*counters).undecided).cast::<u64>();
            increment(first.add(reason as usize));
        }
    }
}

/// Counts a dropped packet.
#[inline(always)]
pub fn dropped(link: u32, refused: Refused) {
    if let Some(counters) = counters(link, refused.vip) {
        // SAFETY: `counters` returns a valid pointer; a cause's number is within the array.
        unsafe {
            let first = (&raw mut (*counters).dropped).cast::<u64>();
            increment(first.add(refused.cause as usize));
        }
    }
}

/// Returns this CPU's counters. The pointer is valid until the program ends.
#[inline(always)]
fn counters(link: u32, vip: Endpoint) -> Option<*mut Counters> {
    let (key, zero) = (&CounterKey::new(link, vip), &ZERO);
    if let Some(counters) = STATISTICS.get_ptr_mut(key) {
        return Some(counters);
    }
    // The flag keeps an entry that was added meanwhile: another CPU already counts there.
    let _ = STATISTICS.insert(key, zero, u64::from(BPF_NOEXIST));
    STATISTICS.get_ptr_mut(key)
}

/// Adds one.
#[inline(always)]
unsafe fn increment(counter: *mut u64) {
    // SAFETY: the caller guarantees that the pointer is valid.
    unsafe { *counter += 1 };
}
