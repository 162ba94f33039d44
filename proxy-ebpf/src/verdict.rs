// SPDX-License-Identifier: Apache-2.0

//! The verdicts of the raw chains: `Ok` untracks the packet.
//!
//! Native expressions in front of the program have matched the VIP and its port, so nothing here
//! looks them up again.

use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use proxy_common::{ConnectionKey, Segment};

use crate::connections;
use crate::packet::{self, FromData, Undecided};

/// PREROUTING, client to VIP.
#[inline(always)]
pub fn obey(ctx: &SkBuffContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    covered(&ConnectionKey::of_request(&segment), &segment)
}

/// OUTPUT, client on the node to VIP. This hook comes before any NAT and before any TC hook.
#[inline(always)]
pub fn decide_or_obey(ctx: &SkBuffContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    let key = ConnectionKey::of_request(&segment);
    if !segment.opens() {
        return covered(&key, &segment);
    }
    connections::decide(&key, &segment).inspect_err(|_| connections::forget(&key))?;
    debug!(ctx, "decided at output, isn {}", segment.seq());
    Ok(())
}

/// OUTPUT, VIP to client.
#[inline(always)]
pub fn verify(ctx: &SkBuffContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromData>(ctx.skb.skb)?;
    let key = ConnectionKey::of_reply(&segment);
    if connections::get(&key)?.covers_reply(&segment) {
        return Ok(());
    }
    connections::forget(&key);
    debug!(
        ctx,
        "forgot an older connection of the same client port, ack {}",
        segment.ack()
    );
    Err(Undecided::NoDecision)
}

#[inline(always)]
fn covered(key: &ConnectionKey, segment: &Segment) -> Result<(), Undecided> {
    if connections::get(key)?.covers_request(segment) {
        Ok(())
    } else {
        Err(Undecided::NoDecision)
    }
}
