// SPDX-License-Identifier: Apache-2.0

//! TC ingress: decides the connections of pods and of the wire, before any NAT.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use proxy_common::ConnectionKey;

use crate::connections;
use crate::packet::{self, FromNetworkHeader, Undecided};

/// `BPF_F_CURRENT_NETNS`, -1 as the 32 bits that the helper wants.
const CURRENT_NETNS: u64 = 0xffff_ffff;
/// Lengths of `struct bpf_sock_tuple`, by which the helper tells the family.
const IPV4_TUPLE: u32 = 12;
const IPV6_TUPLE: u32 = 36;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// The key of an IPv4 connection as the socket look-up wants it.
#[repr(C)]
struct Ipv4Tuple {
    client: u32,
    vip: u32,
    client_port: u16,
    vip_port: u16,
}

/// Decides the connection if the packet is a SYN for a VIP.
#[inline(always)]
pub fn decide(ctx: &TcContext) -> Result<(), Undecided> {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel hands a valid context to the program.
    if unsafe { (*skb).vlan_present } != 0 {
        return Err(Undecided::VlanTag);
    }
    let segment = packet::segment::<FromNetworkHeader>(skb)?;
    if !segment.opens() {
        return Err(Undecided::NotOpening);
    }
    if !connections::is_vip(&segment.destination()) {
        return Err(Undecided::NotVip);
    }
    let key = ConnectionKey::of_request(&segment);
    // A connection of the proxy with the same addresses and ports that has no entry came by
    // somebody's DNAT and is tracked: a decision would untrack its replies too. Left undecided,
    // this one is told apart from it by conntrack, which gives it another source port.
    if connections::get(&key).is_err() && is_in_use(ctx, &key) {
        debug!(
            ctx,
            "undecided: the proxy has a tracked connection from the same client port"
        );
        return Err(Undecided::InUse);
    }
    connections::decide(&key, &segment).inspect_err(|_| connections::forget(&key))?;
    // SAFETY: as above.
    let link = unsafe { (*skb).ifindex };
    debug!(
        ctx,
        "decided at ingress of link {}, isn {}",
        link,
        segment.seq()
    );
    Ok(())
}

/// Whether the proxy has a socket for this connection: any but a listener, or one that only waits
/// for late packets and gives way to a new connection.
#[inline(always)]
fn is_in_use(ctx: &TcContext, key: &ConnectionKey) -> bool {
    let (client, vip) = (key.client(), key.vip());
    let socket = match (client.address().as_ipv4(), vip.address().as_ipv4()) {
        (Some(client_address), Some(vip_address)) => {
            let tuple = Ipv4Tuple {
                client: client_address,
                vip: vip_address,
                client_port: client.port(),
                vip_port: vip.port(),
            };
            look_up(ctx, (&raw const tuple).cast(), IPV4_TUPLE)
        }
        _ => look_up(ctx, core::ptr::from_ref(key).cast(), IPV6_TUPLE),
    };
    let Some(socket) = socket else {
        return false;
    };
    // SAFETY: `look_up` returned a socket that is not null; it is released on every path.
    unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state != TCP_LISTEN && state != TCP_TIME_WAIT
    }
}

#[inline(always)]
fn look_up(ctx: &TcContext, tuple: *const bpf_sock_tuple, length: u32) -> Option<*mut bpf_sock> {
    // SAFETY: `tuple` points to `length` initialised bytes in the layout of the family that the
    // helper tells by the length.
    let socket = unsafe {
        bpf_skc_lookup_tcp(
            ctx.skb.skb.cast(),
            tuple.cast_mut(),
            length,
            CURRENT_NETNS,
            0,
        )
    };
    (!socket.is_null()).then_some(socket)
}
