// SPDX-License-Identifier: Apache-2.0 OR MIT

//! TC ingress: drops packets that must not reach the VIP, and decides connections of pods and from outside to Services
//! at their SYN, before any NAT. From then on the proxy's socket is the state, and this program ignores later packets.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use proxy_common::{ConnectionKey, Segment, Service};

use crate::guard;
use crate::maps::{services, statistics};
use crate::packet::{self, FromNetworkHeader, Undecided};
use crate::{route, sockets};

/// Drops the packet if it must not reach the VIP; decides the connection if the packet is a SYN to a Service.
#[inline(always)]
pub fn guard_and_decide(skb: *mut __sk_buff) -> Result<(), Undecided> {
    match look(skb, false) {
        Err(Undecided::Unguarded) => {
            guard::skb(skb)?;
            look(skb, true)
        }
        outcome => outcome,
    }
}

/// Handles a packet that the guard has checked, or returns that the guard must check it first, which few packets need.
/// The function is not inlined, and neither is the guard: together they would exceed the limit of the stack.
#[inline(never)]
fn look(skb: *mut __sk_buff, guarded: bool) -> Result<(), Undecided> {
    // SAFETY: the kernel passes a valid context to the program.
    let segment = if unsafe { (*skb).vlan_present } == 0 {
        packet::segment::<FromNetworkHeader>(skb)
    } else {
        Err(Undecided::VlanTag)
    };
    // This match stands before the other checks, so that nothing is read from a segment that does not exist.
    let segment = match segment {
        Ok(segment) => segment,
        Err(_) if !guarded && guard::concerns_packet(skb) => return Err(Undecided::Unguarded),
        Err(why) => return Err(why),
    };
    if !guarded && guard::concerns(skb, &segment) {
        return Err(Undecided::Unguarded);
    }
    if !segment.opens() {
        return Err(Undecided::NotOpening);
    }
    let addressed = segment.destination();
    if !services::may_be_address(&addressed.address()) || !services::may_be_port(addressed.port()) {
        return Err(Undecided::NotForProxy);
    }
    let service = services::get(&addressed)?;
    if service.is_draining() {
        return Err(Undecided::Draining);
    }
    let key = ConnectionKey::of_request(&segment);
    let outcome = decide(skb, &segment, &key, &service);
    if outcome.is_err() {
        // An entry that remains from an older connection with the same client port must not decide this one.
        services::forget(&key);
    }
    // SAFETY: the kernel passes a valid context to the program.
    let link = unsafe { (*skb).ifindex };
    statistics::opened(link, service.vip(), outcome);
    outcome
}

/// Decides a connection if the proxy listens and the node's routes deliver the packet locally.
#[inline(always)]
fn decide(
    skb: *mut __sk_buff,
    syn: &Segment,
    key: &ConnectionKey,
    service: &Service,
) -> Result<(), Undecided> {
    let ctx = &TcContext::new(skb);
    if guard::is_guarded(skb) {
        return Err(Undecided::Outside);
    }
    if !route::leads_here(ctx, syn) {
        return Err(Undecided::NotLocal);
    }
    let vip = service.vip();
    sockets::with_listener(ctx, vip, |listener| services::keep_listener(&vip, listener))?;
    services::decide(key)?;
    debug!(ctx, "decided a connection to a service");
    Ok(())
}
