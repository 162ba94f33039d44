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

mod connect;
mod egress;
mod guard;
mod ingress;
mod maps;
mod packet;
mod sockets;
mod translate;
mod verdict;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, socket_filter, xdp};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, TcContext, XdpContext};

use crate::connect::{Ipv4, Ipv6};
use crate::packet::Undecided;

/// Result of a `socket_filter` program behind the `match bpf` expression: the packet goes on as if
/// the rule were not there.
const NO_MATCH: i64 = 0;
/// The rest of the rule is carried out.
const MATCH: i64 = 1;
/// Result of a `cgroup_sock_addr` program: the call goes on, changed or not.
const ALLOW: i32 = 1;

/// TC ingress of every link that brings pod or wire traffic: guards the VIP, decides at the SYN,
/// translates services to the VIP.
///
/// A packet that is not dropped goes on to the next program, whatever happened here.
#[classifier]
pub fn vip_ingress(ctx: TcContext) -> i32 {
    match ingress::guard_decide_and_translate(ctx.skb.skb) {
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

/// TC egress of the same links: translates replies back to the service.
#[classifier]
pub fn vip_egress(ctx: TcContext) -> i32 {
    match egress::translate(&ctx) {
        Ok(()) | Err(_) => TC_ACT_UNSPEC,
    }
}

/// Raw PREROUTING, packets to the VIP: obeys the decision.
#[socket_filter]
pub fn vip_prerouting(ctx: SkBuffContext) -> i64 {
    verdict(verdict::obey(&ctx))
}

/// Raw PREROUTING, packets to a service: those of translated connections that TC did not see.
#[socket_filter]
pub fn vip_service(ctx: SkBuffContext) -> i64 {
    verdict(verdict::untranslated(&ctx))
}

/// Raw OUTPUT, packets to the VIP: decides at the SYN of a client on the node, then obeys.
#[socket_filter]
pub fn vip_output_request(ctx: SkBuffContext) -> i64 {
    verdict(verdict::decide_or_obey(&ctx))
}

/// Raw OUTPUT, packets from the VIP: verifies the answer to the SYN, then obeys.
#[socket_filter]
pub fn vip_output_reply(ctx: SkBuffContext) -> i64 {
    verdict(verdict::verify(&ctx))
}

/// Raw OUTPUT, packets from the VIP that have to be translated back to the service.
#[socket_filter]
pub fn vip_output_translated(ctx: SkBuffContext) -> i64 {
    verdict(verdict::verify_translated(&ctx))
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

#[inline(always)]
fn verdict(outcome: Result<(), Undecided>) -> i64 {
    match outcome {
        Ok(()) => MATCH,
        Err(_) => NO_MATCH,
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
