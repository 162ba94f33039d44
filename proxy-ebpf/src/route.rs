// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Looks up in the node's routes, including policy rules, whether a packet is for this node.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED};
use aya_ebpf::cty::c_long;
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::TcContext;
use proxy_common::Segment;

use crate::maps::guard::Here;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const PROTOCOL_TCP: u8 = 6;

/// `struct bpf_fib_lookup`; its unions are not used here.
#[repr(C)]
struct Question {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    length: u16,
    ifindex: u32,
    tos: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    hardware_addresses: [u16; 6],
}

/// The length of `Question`, in bytes.
const LENGTH: i32 = 64;
const _: () = assert!(size_of::<Question>() == LENGTH.unsigned_abs() as usize);

/// Returns whether the kernel will deliver the packet on this node.
///
/// The helper returns "not forwarded" for local destinations. It returns the same if there is no route; such a packet
/// is dropped, decided or not. If forwarding is off, the helper does not look up a route: a packet that is not for this
/// node is dropped then, decided or not.
#[inline(always)]
pub fn leads_here(ctx: &TcContext, segment: &Segment) -> bool {
    let (source, destination) = (segment.source().address(), segment.destination().address());
    let (family, source, destination) = match (source.as_ipv4(), destination.as_ipv4()) {
        (Some(source), Some(destination)) => (AF_INET, [source, 0, 0, 0], [destination, 0, 0, 0]),
        _ => (AF_INET6, source.words(), destination.words()),
    };
    // SAFETY: the kernel passes a valid context to the program.
    let arrived = unsafe { (*ctx.skb.skb).ifindex };
    let mut question = Question {
        family,
        protocol: PROTOCOL_TCP,
        source_port: segment.source().port(),
        destination_port: segment.destination().port(),
        length: 0,
        ifindex: Here(arrived).routed_by(),
        tos: 0,
        source,
        destination,
        vlan: 0,
        hardware_addresses: [0; 6],
    };
    // SAFETY: the value is as long as the kernel's structure, and all of it is initialised.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut question).cast(), LENGTH, 0) };
    answer == c_long::from(BPF_FIB_LKUP_RET_NOT_FWDED)
        || answer == c_long::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
}
