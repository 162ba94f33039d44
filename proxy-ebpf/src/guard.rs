// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guard at both places where it stands: TC ingress of every link, and XDP on guarded links, where
//! that is asked for. What is dropped is decided by `proxy_common::guard`.

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

/// The guard's result for a packet: it may go on, it must be dropped, or part of it cannot be read
/// where it is.
const PASSED: u32 = 0;
const REFUSED: u32 = 1;
const SHORT: u32 = 2;
/// Farther behind the link header no header is looked for.
const FARTHEST: u32 = 0x3fff;
/// How much of a packet is brought into its linear part when headers are not.
const PULL: u32 = 256;

/// Whether the guard has to look at a TCP segment, as it has to at few of them.
#[inline(always)]
pub fn concerns(skb: *mut __sk_buff, segment: &Segment) -> bool {
    // SAFETY: the kernel hands a valid context to the program.
    let here = Here(unsafe { (*skb).ifindex });
    let (source, destination) = (segment.source(), segment.destination());
    is_on() && guard::concerns(&here, &source.address(), &destination.address())
}

/// The same of a packet that is no plain TCP segment, or not seen to be one: by its addresses alone.
#[inline(always)]
pub fn concerns_packet(skb: *mut __sk_buff) -> bool {
    if !is_on() {
        return false;
    }
    // SAFETY: the kernel hands a valid context to the program.
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

/// Drops any packet, or not.
#[inline(always)]
pub fn skb(skb: *mut __sk_buff) -> Result<(), Undecided> {
    let mut seen = look(skb, false);
    if seen == SHORT {
        // The packet ends before, or some of it is not in its linear part.
        // SAFETY: the kernel hands a valid context to the program.
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

/// Decides about a packet. `whole`: bytes that cannot be loaded do not exist.
#[inline(never)]
fn look(skb: *mut __sk_buff, whole: bool) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
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

/// Whether a packet came by a guarded link.
#[inline(always)]
pub fn is_guarded(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel hands a valid context to the program.
    let here = Here(unsafe { (*skb).ifindex });
    is_on() && here.link().is_guarded()
}

/// Drops a frame, or not.
#[inline(always)]
pub fn frame(ctx: &XdpContext) -> Result<(), Undecided> {
    let frame = Ethernet {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    if frame.start + ETHERNET > frame.end {
        return Err(Undecided::NotIp);
    }
    // SAFETY: within the frame; the verifier has seen that. An even address.
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
    /// Something could not be loaded.
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
        // SAFETY: there is room for the length of H, which is made of integers; within the frame, the
        // verifier has seen that. Headers start at even addresses.
        unsafe {
            let (from, to) = (start as *const u16, headers.as_mut_ptr().cast::<u16>());
            for half in 0..H::LENGTH as usize / 2 {
                *to.add(half) = *from.add(half);
            }
            Some(headers.assume_init())
        }
    }
}
