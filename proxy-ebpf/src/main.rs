// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The programs that run in the kernel.
//!
//! This file holds the entry points and nothing else: each turns the outcome of its hook into the
//! verdict the hook understands. `proxy_common` interprets packets; the module of each hook's name
//! decides what the hook does with them.

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

/// Result of a `cgroup_sock_addr` program: the call goes on, changed or not.
const ALLOW: i32 = 1;

/// TC ingress of every link that brings pod or wire traffic: guards the VIP, decides connections to
/// Services at their SYN.
///
/// A packet that is not dropped goes on to the next program, whatever happened here.
#[classifier]
pub fn vip_ingress(ctx: TcContext) -> i32 {
    match ingress::guard_and_decide(ctx.skb.skb) {
        Err(Undecided::Dropped) => TC_ACT_SHOT,
        Ok(()) | Err(_) => TC_ACT_UNSPEC,
    }
}

/// XDP on guarded links, where it is asked for: guards the VIP.
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

/// An iterator over TCP sockets, run by the agent where `vip_ingress` may not keep listeners: keeps those that
/// the agent wants. Without a macro of aya, which has none for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn vip_listeners(ctx: *const listeners::Iteration) -> i32 {
    listeners::keep(ctx);
    // Zero goes on, and any other number would be asked again.
    0
}

/// The socket look-up of the network namespace: decided connections to Services reach the proxy's
/// listener, undecided ones no listener at all.
#[sk_lookup]
pub fn vip_steer(ctx: SkLookupContext) -> u32 {
    match steer::steer(&ctx) {
        Ok(()) | Err(Undecided::NotForProxy) => SK_PASS,
        Err(_) => SK_DROP,
    }
}

/// A process connects, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn vip_connect4(ctx: SockAddrContext) -> i32 {
    match connect::connect::<Ipv4>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

/// A process connects, IPv6.
#[cgroup_sock_addr(connect6)]
pub fn vip_connect6(ctx: SockAddrContext) -> i32 {
    match connect::connect::<Ipv6>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

/// A process asks for its peer, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn vip_getpeername4(ctx: SockAddrContext) -> i32 {
    match connect::peer::<Ipv4>(&ctx) {
        Ok(()) | Err(_) => ALLOW,
    }
}

/// A process asks for its peer, IPv6.
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

/// `bpf_fib_lookup` is for programs with a GPL-compatible licence only; this crate and `proxy-common`
/// may be had under the MIT licence too.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
