// SPDX-License-Identifier: Apache-2.0

//! The verdicts of the raw chains: `Ok` is a match. What is done with a packet that matches, to
//! untrack it or to translate it as well, is written in the rule.
//!
//! Native expressions in front of the program have matched address and port, so nothing here
//! looks them up again.

use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use proxy_common::{Connection, ConnectionKey, CounterKey, Endpoint, Segment};

use crate::maps::{connections, destinations, statistics};
use crate::packet::{self, FromData, Undecided};

/// PREROUTING, client to VIP.
#[inline(always)]
pub fn obey(ctx: &SkBuffContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    let key = ConnectionKey::of_request(&segment);
    covered(&key, &segment)?;
    statistics::request(link(ctx), key.vip(), ctx.skb.skb);
    Ok(())
}

/// PREROUTING, client to service: a packet that TC ingress should have translated and has not,
/// because it was detached.
#[inline(always)]
pub fn untranslated(ctx: &SkBuffContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    let vip = destinations::vip_of(&segment.destination())?;
    let entry = connections::get(&ConnectionKey::new(segment.source(), vip))?;
    if entry.original() == segment.destination() && entry.covers_request(&segment) {
        statistics::request(link(ctx), vip, ctx.skb.skb);
        Ok(())
    } else {
        Err(Undecided::NoDecision)
    }
}

/// OUTPUT, client on the node to VIP. This hook comes before any NAT and before any TC hook.
#[inline(always)]
pub fn decide_or_obey(ctx: &SkBuffContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    let key = ConnectionKey::of_request(&segment);
    if segment.opens() {
        let outcome = connections::decide(&key, &segment, Endpoint::NONE)
            .inspect_err(|_| connections::forget(&key));
        statistics::opened(CounterKey::THIS_HOST, key.vip(), false, outcome);
        outcome?;
        debug!(ctx, "decided at output, isn {}", segment.seq());
    } else {
        covered(&key, &segment)?;
    }
    statistics::request(CounterKey::THIS_HOST, key.vip(), ctx.skb.skb);
    Ok(())
}

/// OUTPUT, VIP to client.
#[inline(always)]
pub fn verify(ctx: &SkBuffContext) -> Result<(), Undecided> {
    verified(ctx, |_| true)
}

/// OUTPUT, VIP to client, where that client addressed a service.
#[inline(always)]
pub fn verify_translated(ctx: &SkBuffContext) -> Result<(), Undecided> {
    verified(ctx, Connection::is_translated)
}

/// Matches if the packet is under a decision that is `wanted`.
#[inline(always)]
fn verified(
    ctx: &SkBuffContext,
    wanted: impl FnOnce(&Connection) -> bool,
) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    let key = ConnectionKey::of_reply(&segment);
    let entry = connections::get(&key)?;
    if entry.covers_reply(&segment) {
        if !wanted(&entry) {
            return Err(Undecided::NotTranslated);
        }
        statistics::reply(segment.source(), ctx.skb.skb);
        return Ok(());
    }
    connections::forget(&key);
    debug!(
        ctx,
        "forgot an older connection of the same client port, ack {}",
        segment.ack()
    );
    let why = Undecided::OlderDecision;
    statistics::undecided(CounterKey::THIS_HOST, segment.source(), why);
    Err(why)
}

#[inline(always)]
fn covered(key: &ConnectionKey, segment: &Segment) -> Result<(), Undecided> {
    if connections::get(key)?.covers_request(segment) {
        Ok(())
    } else {
        Err(Undecided::NoDecision)
    }
}

/// The ifindex of the link that the packet came by.
#[inline(always)]
fn link(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.skb.skb).ifindex }
}
