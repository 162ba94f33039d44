// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guard at its two hooks: TC ingress of every link, and XDP on guarded links where the configuration requests it.
//! `proxy_common::guard` decides which packets are dropped.

use core::cell::Cell;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_pull_data;
use aya_ebpf::programs::XdpContext;
use proxy_common::Segment;
use proxy_common::guard::{self, Frame, Ipv4Ends, Ipv6Ends, Knowledge as _, Refused};
use proxy_common::packet::Headers;

use crate::maps::guard::Here;
pub use crate::maps::guard::is_on;
use crate::maps::statistics;
use crate::packet::{self, ETHERNET, ETHERNET_TYPE, FromNetworkHeader, Undecided};

/// The guard's results for a packet: it passes, it must be dropped, or a part of it is not in the linear part and
/// cannot be read.
const PASSED: u32 = 0;
const REFUSED: u32 = 1;
const SHORT: u32 = 2;
/// The maximum offset of a header behind the link header, in bytes.
const FARTHEST: u32 = 0x3fff;
/// The number of bytes of a packet that are pulled into its linear part if its headers are not there.
const PULL: u32 = 256;

/// Returns whether the guard has to check a TCP segment, which is true for few segments.
#[inline(always)]
pub fn concerns(skb: *mut __sk_buff, segment: &Segment) -> bool {
    // SAFETY: the kernel passes a valid context to the program.
    let here = Here(unsafe { (*skb).ifindex });
    let (source, destination) = (segment.source(), segment.destination());
    is_on() && guard::concerns(&here, &source.address(), &destination.address())
}

/// Returns the same for a packet that is not a plain TCP segment, or cannot be parsed as one: by its addresses alone.
#[inline(always)]
pub fn concerns_packet(skb: *mut __sk_buff) -> bool {
    if !is_on() {
        return false;
    }
    // SAFETY: the kernel passes a valid context to the program.
    let (ifindex, protocol, tagged) =
        unsafe { ((*skb).ifindex, (*skb).protocol, (*skb).vlan_present != 0) };
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is zero")]
    let ends = match protocol as u16 {
        _ if tagged => return true,
        guard::ETH_P_IP => packet::load::<FromNetworkHeader, Ipv4Ends>(skb, Ipv4Ends::OFFSET)
            .map(|ends| ends.ends()),
        guard::ETH_P_IPV6 => packet::load::<FromNetworkHeader, Ipv6Ends>(skb, Ipv6Ends::OFFSET)
            .map(|ends| ends.ends()),
        // ARP, or VLAN tags that are still in the frame.
        _ => return true,
    };
    match ends {
        Ok([source, destination]) => guard::concerns(&Here(ifindex), &source, &destination),
        Err(_) => true,
    }
}

/// Returns [`Undecided::Dropped`] if the guard drops the packet.
#[inline(always)]
pub fn skb(skb: *mut __sk_buff) -> Result<(), Undecided> {
    let mut seen = look(skb, false);
    if seen == SHORT {
        // Either the packet ends here, or a part of it is not in its linear part.
        // SAFETY: the kernel passes a valid context to the program.
        unsafe {
            let length = (*skb).len;
            bpf_skb_pull_data(skb, if length < PULL { length } else { PULL });
        }
        seen = look(skb, true);
    }
    if seen == REFUSED {
        Err(Undecided::Dropped)
    } else {
        Ok(())
    }
}

/// Checks a packet. If `whole` is true, bytes that cannot be loaded do not exist.
#[inline(never)]
fn look(skb: *mut __sk_buff, whole: bool) -> u32 {
    // SAFETY: the kernel passes a valid context to the program.
    let (ifindex, protocol, tag) = unsafe {
        let tag = if (*skb).vlan_present == 0 {
            0
        } else {
            (*skb).vlan_tci
        };
        ((*skb).ifindex, (*skb).protocol, tag)
    };
    let here = Here(ifindex);
    let frame = Skb {
        skb,
        is_short: Cell::new(false),
    };
    #[expect(clippy::cast_possible_truncation, reason = "the upper halves are zero")]
    let (protocol, tag) = (protocol as u16, (tag as u16).to_be());
    let outcome = guard::examine(&frame, protocol, tag, &here);
    if frame.is_short.get() && !whole {
        return SHORT;
    }
    match counted(&here, outcome) {
        Ok(()) => PASSED,
        Err(_) => REFUSED,
    }
}

/// Returns whether a packet arrived on a guarded link.
#[inline(always)]
pub fn is_guarded(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel passes a valid context to the program.
    let here = Here(unsafe { (*skb).ifindex });
    is_on() && here.link().is_guarded()
}

/// Returns [`Undecided::Dropped`] if the guard drops the frame.
#[inline(always)]
pub fn frame(ctx: &XdpContext) -> Result<(), Undecided> {
    let frame = Ethernet {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    if frame.start + ETHERNET > frame.end {
        return Err(Undecided::NotIp);
    }
    // SAFETY: the address is within the frame, as the verifier has checked, and it is even.
    let protocol = unsafe { *((frame.start + ETHERNET_TYPE) as *const u16) };
    #[expect(clippy::cast_possible_truncation, reason = "the kernel has 32 bits")]
    let here = Here(ctx.ingress_ifindex() as u32);
    counted(&here, guard::examine(&frame, protocol, 0, &here))
}

#[inline(always)]
fn counted(here: &Here, outcome: Result<(), Refused>) -> Result<(), Undecided> {
    outcome.map_err(|refused| {
        statistics::dropped(here.0, refused);
        Undecided::Dropped
    })
}

/// A packet at TC ingress.
struct Skb {
    skb: *mut __sk_buff,
    /// Whether a part could not be loaded.
    is_short: Cell<bool>,
}

impl Frame for Skb {
    #[inline(always)]
    fn load<H: Headers>(&self, offset: u32) -> Option<H> {
        let headers = packet::load::<FromNetworkHeader, H>(self.skb, offset);
        if headers.is_err() {
            self.is_short.set(true);
        }
        headers.ok()
    }
}

/// A frame of a link with Ethernet headers.
struct Ethernet {
    start: usize,
    end: usize,
}

impl Frame for Ethernet {
    #[inline(always)]
    fn load<H: Headers>(&self, offset: u32) -> Option<H> {
        if offset > FARTHEST {
            return None;
        }
        let start = self.start + ETHERNET + offset as usize;
        if start + H::LENGTH as usize > self.end {
            return None;
        }
        let mut headers = MaybeUninit::<H>::uninit();
        // SAFETY: the value has room for the length of H, which consists of integers. The bytes are within the frame,
        // as the verifier has checked. Headers start at even addresses.
        unsafe {
            let (from, to) = (start as *const u16, headers.as_mut_ptr().cast::<u16>());
            for half in 0..H::LENGTH as usize / 2 {
                *to.add(half) = *from.add(half);
            }
            Some(headers.assume_init())
        }
    }
}
