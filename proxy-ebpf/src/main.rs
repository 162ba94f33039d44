// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The programs that run in the kernel.
//!
//! This file contains only the entry points: each of them translates the result of its hook into the hook's verdict.
//! `proxy_common` parses packets; the module with each hook's name implements the hook.

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

mod connect;
mod egress;
mod guard;
mod ingress;
mod listeners;
mod maps;
mod packet;
mod route;
mod sockets;
mod steer;

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, sk_lookup, xdp};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, TcContext, XdpContext};

use crate::connect::{Ipv4, Ipv6};
use crate::packet::Undecided;

/// The result of a `cgroup_sock_addr` program that lets the call continue, changed or not.
const ALLOW: i32 = 1;

/// TC ingress of every link with traffic of pods or from outside: guards the VIP, and decides connections to Services
/// at their SYN.
///
/// A packet that is not dropped continues to the next program, whatever happened here.
#[classifier]
pub fn vip_ingress(ctx: TcContext) -> i32 {
    match ingress::guard_and_decide(ctx.skb.skb) {
        Err(Undecided::Dropped) => TC_ACT_SHOT,
        Ok(()) | Err(_) => TC_ACT_UNSPEC,
    }
}

/// XDP on guarded links, where the configuration requests it: guards the VIP.
#[xdp]
pub fn vip_guard(ctx: XdpContext) -> u32 {
    match guard::frame(&ctx) {
        Err(Undecided::Dropped) => XDP_DROP,
        Ok(()) | Err(_) => XDP_PASS,
    }
}

/// TC egress of the same links: keeps replies of Services that cannot be genuine from clients.
#[classifier]
pub fn vip_egress(ctx: TcContext) -> i32 {
    match egress::catch(&ctx) {
        Err(Undecided::Dropped) => TC_ACT_SHOT,
        Ok(()) | Err(_) => TC_ACT_UNSPEC,
    }
}

/// An iterator over TCP sockets: stores the listeners that the agent requests. The agent runs it where `vip_ingress`
/// may not store listeners. aya has no macro for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn vip_listeners(ctx: *const listeners::Iteration) -> i32 {
    listeners::keep(ctx);
    // Zero continues the iteration; with any other number the kernel would call the program again for the same socket.
    0
}

/// The socket look-up of the network namespace: decided connections to Services reach the proxy's listener, undecided
/// ones reach no listener at all.
#[sk_lookup]
pub fn vip_steer(ctx: SkLookupContext) -> u32 {
    match steer::steer(&ctx) {
        Ok(()) | Err(Undecided::NotForProxy) => SK_PASS,
        Err(_) => SK_DROP,
    }
}

/// Called when a process connects with IPv4.
#[cgroup_sock_addr(connect4)]
pub fn vip_connect4(ctx: SockAddrContext) -> i32 {
    match connect::connect::<Ipv4>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

/// Called when a process connects with IPv6.
#[cgroup_sock_addr(connect6)]
pub fn vip_connect6(ctx: SockAddrContext) -> i32 {
    match connect::connect::<Ipv6>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

/// Called when a process requests its peer's address with IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn vip_getpeername4(ctx: SockAddrContext) -> i32 {
    match connect::peer::<Ipv4>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

/// Called when a process requests its peer's address with IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn vip_getpeername6(ctx: SockAddrContext) -> i32 {
    match connect::peer::<Ipv6>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects an object in which this is reachable.
    loop {}
}

/// Only programs with a GPL-compatible licence may call `bpf_fib_lookup`; this crate and `proxy-common` are also
/// available under the MIT licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
