// SPDX-License-Identifier: Apache-2.0

//! TC ingress: drops what must not reach the VIP, decides the connections of pods and of the wire,
//! before any NAT, and translates the destination of those that were addressed to a service.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use proxy_common::{ConnectionKey, Endpoint, Segment};

use crate::guard;
use crate::maps::{connections, destinations, statistics};
use crate::packet::{self, FromNetworkHeader, Undecided};
use crate::sockets::{self, Proxy};
use crate::translate::{self, Side};

/// Drops the packet if it must not reach the VIP; decides the connection if it is a SYN for the proxy;
/// translates the packet if its connection is.
#[inline(always)]
pub fn guard_decide_and_translate(skb: *mut __sk_buff) -> Result<(), Undecided> {
    match decide_and_translate(skb, false) {
        Err(Undecided::Unguarded) => {
            guard::skb(skb)?;
            decide_and_translate(skb, true)
        }
        outcome => outcome,
    }
}

/// What follows the guard, or tells that it has to look first, which it has to at few packets. Not
/// inlined, as the guard is not: together they would need more stack than there is.
#[inline(never)]
fn decide_and_translate(skb: *mut __sk_buff, guarded: bool) -> Result<(), Undecided> {
    let ctx = &TcContext::new(skb);
    // SAFETY: the kernel hands a valid context to the program.
    let segment = if unsafe { (*skb).vlan_present } == 0 {
        packet::segment::<FromNetworkHeader>(skb)
    } else {
        Err(Undecided::VlanTag)
    };
    // At once, and not behind what follows: nothing of a segment that there is not may be read.
    let segment = match segment {
        Ok(segment) => segment,
        Err(_) if !guarded && guard::concerns_packet(skb) => return Err(Undecided::Unguarded),
        Err(why) => return Err(why),
    };
    if !guarded && guard::concerns(skb, &segment) {
        return Err(Undecided::Unguarded);
    }
    if !destinations::may_be(segment.destination().port()) {
        return Err(Undecided::NotForProxy);
    }
    let addressed = segment.destination();
    if !segment.opens() && !destinations::are_translated() {
        return Err(Undecided::NotOpening);
    }
    let vip = destinations::vip_of(&addressed)?;
    let original = if vip == addressed {
        Endpoint::NONE
    } else {
        addressed
    };
    if original != Endpoint::NONE && segment.opens() && guard::is_guarded(skb) {
        return Err(Undecided::Outside);
    }
    let key = ConnectionKey::new(segment.source(), vip);
    if !segment.opens() {
        return translate(ctx, &segment, &key, original);
    }
    if original == Endpoint::NONE
        && connections::get(&key).is_ok_and(|entry| entry.has_translated(&segment))
    {
        return Ok(());
    }
    let outcome = decide(ctx, &segment, &key, original)
        .and_then(|()| translate(ctx, &segment, &key, original));
    // SAFETY: the kernel hands a valid context to the program.
    let link = unsafe { (*skb).ifindex };
    statistics::opened(link, vip, original != Endpoint::NONE, outcome);
    outcome
}

/// Translates the packet if that is what was decided about its connection.
#[inline(always)]
fn translate(
    ctx: &TcContext,
    segment: &Segment,
    key: &ConnectionKey,
    original: Endpoint,
) -> Result<(), Undecided> {
    if original == Endpoint::NONE {
        return Ok(());
    }
    if connections::get(key)?.original() != original {
        return Err(Undecided::NoDecision);
    }
    translate::rewrite(ctx.skb.skb, segment, Side::Destination, key.vip())
}

/// Decides a connection unless that could harm another one, or lead to nobody.
#[inline(always)]
fn decide(
    ctx: &TcContext,
    syn: &Segment,
    key: &ConnectionKey,
    original: Endpoint,
) -> Result<(), Undecided> {
    match sockets::proxy(ctx, key) {
        Proxy::Connected => {
            // The proxy has a connection with the same addresses and ports. If it came in the same
            // way, the client has given it up, and the proxy will tell. If not, it is alive: a
            // decision would turn its replies into those of this one. When it came by somebody's
            // DNAT, conntrack tells the two apart by giving this one another source port.
            let same = connections::get(key).is_ok_and(|entry| entry.original() == original);
            if !same {
                debug!(
                    ctx,
                    "undecided: the proxy has another connection of the same client port"
                );
                return Err(Undecided::InUse);
            }
        }
        Proxy::Listening => {}
        Proxy::Absent | Proxy::Waiting => {
            // To the VIP itself there is no other way. To a service there is: the one that the
            // packet takes without the agent.
            if original != Endpoint::NONE && !sockets::is_listening(ctx, key.vip()) {
                connections::forget(key);
                return Err(Undecided::NoListener);
            }
        }
    }
    connections::decide(key, syn, original).inspect_err(|_| connections::forget(key))?;
    // SAFETY: the kernel hands a valid context to the program.
    let link = unsafe { (*ctx.skb.skb).ifindex };
    debug!(
        ctx,
        "decided at ingress of link {}, isn {}",
        link,
        syn.seq()
    );
    Ok(())
}
