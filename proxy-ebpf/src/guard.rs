// SPDX-License-Identifier: Apache-2.0

//! The guard at both places where it stands: TC ingress of every link, and XDP on guarded links, where
//! that is asked for. What is dropped is decided by `proxy_common::guard`.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_pull_data;
use aya_ebpf::programs::XdpContext;
use proxy_common::Segment;
use proxy_common::guard::{self, Frame, Refused};
use proxy_common::packet::Headers;

use crate::maps::guard::Here;
use crate::maps::statistics;
use crate::packet::{self, FromNetworkHeader, Undecided};

/// Length of an Ethernet header, and where its type stands in it.
const ETHERNET: usize = 14;
const ETHERNET_TYPE: usize = 12;
/// Farther behind the link header no header is looked for.
const FARTHEST: u32 = 0x3fff;
/// How much of a packet is brought into its linear part when headers are not.
const PULL: u32 = 256;

/// Drops a TCP segment, or not.
#[inline(always)]
pub fn segment(skb: *mut __sk_buff, segment: &Segment) -> Result<(), Undecided> {
    // SAFETY: the kernel hands a valid context to the program.
    let here = Here(unsafe { (*skb).ifindex });
    let (source, destination) = (segment.source().address(), segment.destination().address());
    if guard::concerns(&here, &source, &destination) {
        self::skb(skb)
    } else {
        Ok(())
    }
}

/// Drops any packet, or not.
#[inline(always)]
pub fn skb(skb: *mut __sk_buff) -> Result<(), Undecided> {
    if is_refused(skb) {
        Err(Undecided::Dropped)
    } else {
        Ok(())
    }
}

/// Not inlined: most packets take another way, which has the registers for itself.
#[inline(never)]
fn is_refused(skb: *mut __sk_buff) -> bool {
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
    #[expect(clippy::cast_possible_truncation, reason = "the upper halves are zero")]
    let (protocol, tag) = (protocol as u16, (tag as u16).to_be());
    counted(&here, guard::examine(&Skb(skb), protocol, tag, &here)).is_err()
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
struct Skb(*mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn load<H: Headers>(&self, offset: u32) -> Option<H> {
        if let Ok(headers) = packet::load::<FromNetworkHeader, H>(self.0, offset) {
            return Some(headers);
        }
        // The packet ends before, or some of it is not in its linear part.
        // SAFETY: the kernel hands a valid context to the program.
        unsafe {
            let length = (*self.0).len;
            let wanted = if length < PULL { length } else { PULL };
            bpf_skb_pull_data(self.0, wanted);
        }
        packet::load::<FromNetworkHeader, H>(self.0, offset).ok()
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
