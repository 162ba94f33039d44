// SPDX-License-Identifier: Apache-2.0

//! The programs that run in the kernel.
//!
//! This file holds the entry points and nothing else: each turns the outcome of its hook into the
//! verdict the hook understands. What a packet means is told by `proxy_common`, what each hook
//! does with it by the module of its name.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macros of aya generate items without any")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros of aya pass the context by value"
)]
#![expect(
    clippy::inline_always,
    reason = "each program is one function to the verifier, and small: a call costs more than it saves"
)]

mod connections;
mod ingress;
mod packet;
mod verdict;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{classifier, socket_filter};
use aya_ebpf::programs::{SkBuffContext, TcContext};

/// Result of a `socket_filter` program behind the `match bpf` expression: no match, the packet
/// goes on to conntrack.
const TRACK: i64 = 0;
/// A match: the `notrack` expression behind it is carried out.
const UNTRACK: i64 = 1;

/// TC ingress of every link that brings pod or wire traffic: decides at the SYN.
///
/// The packet always goes on to the next program, whatever happened here.
#[classifier]
pub fn vip_ingress(ctx: TcContext) -> i32 {
    match ingress::decide(&ctx) {
        Ok(()) | Err(_) => TC_ACT_UNSPEC,
    }
}

/// Raw PREROUTING, packets to the VIP: obeys the decision.
#[socket_filter]
pub fn vip_prerouting(ctx: SkBuffContext) -> i64 {
    match verdict::obey(&ctx) {
        Ok(()) => UNTRACK,
        Err(_) => TRACK,
    }
}

/// Raw OUTPUT, packets to the VIP: decides at the SYN of a client on the node, then obeys.
#[socket_filter]
pub fn vip_output_request(ctx: SkBuffContext) -> i64 {
    match verdict::decide_or_obey(&ctx) {
        Ok(()) => UNTRACK,
        Err(_) => TRACK,
    }
}

/// Raw OUTPUT, packets from the VIP: verifies the answer to the SYN, then obeys.
#[socket_filter]
pub fn vip_output_reply(ctx: SkBuffContext) -> i64 {
    match verdict::verify(&ctx) {
        Ok(()) => UNTRACK,
        Err(_) => TRACK,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects an object in which this is reachable.
    loop {}
}

/// None of the helpers used here asks for a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
