// SPDX-License-Identifier: Apache-2.0

//! TC egress: translates the source of replies that nf_tables has not translated, because our
//! table was removed.

use aya_ebpf::programs::TcContext;
use proxy_common::ConnectionKey;

use crate::maps::{connections, destinations};
use crate::packet::{self, FromNetworkHeader, Undecided};
use crate::translate::{self, Side};

/// Translates the packet if it is a reply of a translated connection and still shows the VIP.
#[inline(always)]
pub fn translate(ctx: &TcContext) -> Result<(), Undecided> {
    let skb = ctx.skb.skb;
    let segment = packet::segment::<FromNetworkHeader>(skb)?;
    if !destinations::may_be(segment.source().port()) {
        return Err(Undecided::NotForProxy);
    }
    let entry = connections::get(&ConnectionKey::of_reply(&segment))?;
    if !entry.is_translated() {
        return Err(Undecided::NotTranslated);
    }
    translate::rewrite(skb, &segment, Side::Source, entry.original())
}
