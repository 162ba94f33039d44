// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads headers from a packet: one load for all of them, then `proxy_common` understands them.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::cty::c_long;
use aya_ebpf::helpers::bpf_skb_load_bytes_relative;
use proxy_common::packet::{Headers, IPV6_HEADER, JumboTcp};
use proxy_common::{Ipv4Tcp, Ipv6Tcp, Reason, Segment, Unreadable};

/// Ethernet types as `__sk_buff.protocol` has them.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Length of an Ethernet header. Links have that or none at all.
pub const ETHERNET: usize = 14;
/// Where its type stands in it.
pub const ETHERNET_TYPE: usize = 12;
/// Of the first byte of an IP header: the version.
const VERSION: u8 = 0xf0;

/// Why a packet stays undecided, or goes no further.
#[derive(Clone, Copy)]
pub enum Undecided {
    /// A VLAN tag is still on it: it will be seen again, without, on the VLAN link.
    VlanTag,
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// The headers are not in the packet's linear part, or the packet is too short.
    Load,
    /// Not a TCP segment in one piece.
    Unreadable,
    /// Not the first segment of a connection: a connection is decided at its SYN or never.
    NotOpening,
    /// Not addressed to a Service that ends on the proxy, or not from one.
    NotForProxy,
    /// No listener is bound to the VIP: the way without the agent may lead somewhere.
    NoListener,
    /// By the node's routes the address is not local to packets of this link.
    NotLocal,
    /// The Service is given up: new connections take the way without the agent.
    Draining,
    /// The process is not in the network namespace of the host.
    NotOnHost,
    /// The socket is bound to a link, and its connection has to leave by that.
    BoundToLink,
    /// The connection was addressed to the VIP itself.
    NotTranslated,
    /// The entry could not be written.
    MapFull,
    /// No decision was recorded at its SYN.
    NoDecision,
    /// It comes from outside of the node: kube-proxy's business.
    Outside,
    /// The guard has to look at it first.
    Unguarded,
    /// It must go no further.
    Dropped,
}

impl Undecided {
    /// Under which reason it is counted. None where the packet has nothing to do with the proxy, or
    /// where that cannot be determined: with a VLAN tag it is seen again without, and a fragment or
    /// a header with options does not show its ports in their usual place.
    #[inline(always)]
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::NoListener => Some(Reason::NoListener),
            Self::MapFull => Some(Reason::MapFull),
            Self::NotLocal => Some(Reason::NotLocal),
            Self::VlanTag
            | Self::NotIp
            | Self::Load
            | Self::Unreadable
            | Self::NotOpening
            | Self::NotForProxy
            | Self::Draining
            | Self::NotOnHost
            | Self::BoundToLink
            | Self::NotTranslated
            | Self::NoDecision
            | Self::Outside
            | Self::Unguarded
            | Self::Dropped => None,
        }
    }
}

impl From<Unreadable> for Undecided {
    #[inline(always)]
    fn from(_: Unreadable) -> Self {
        Self::Unreadable
    }
}

/// How a hook's packet data relates to the network header.
pub trait Load {
    /// Loads `length` bytes from `offset` behind the start of the network header; zero if it could.
    ///
    /// # Safety
    ///
    /// `to` has room for them.
    unsafe fn load_bytes(skb: *mut __sk_buff, offset: u32, to: *mut c_void, length: u32) -> c_long;

    /// Reads headers at the start of the network header without the help of the kernel, if the hook
    /// lets programs do so and it is certain where they are. `version` is the first half of their
    /// first byte.
    #[inline(always)]
    fn read<H: Headers>(_skb: *mut __sk_buff, _version: u8) -> Option<H> {
        None
    }
}

/// TC: the data starts at the link header where the link has one, so loads are relative to the
/// network header (Linux 4.18). They see the linear part only.
///
/// Such a load takes some 25 ns of every packet of every link, so headers behind an Ethernet header are
/// read as they are. A packet that begins like an IP header may have no other in front, whatever else
/// stands in it: that one is left to the kernel, and with it one of sixteen hardware addresses.
pub struct FromNetworkHeader;

impl Load for FromNetworkHeader {
    #[inline(always)]
    unsafe fn load_bytes(skb: *mut __sk_buff, offset: u32, to: *mut c_void, length: u32) -> c_long {
        // SAFETY: the caller vouches for `to`.
        unsafe {
            bpf_skb_load_bytes_relative(
                skb.cast_const().cast(),
                offset,
                to,
                length,
                BPF_HDR_START_NET,
            )
        }
    }

    #[inline(always)]
    fn read<H: Headers>(skb: *mut __sk_buff, version: u8) -> Option<H> {
        // SAFETY: the kernel hands a valid context to the program.
        let (start, end, protocol) = unsafe {
            (
                (*skb).data as usize,
                (*skb).data_end as usize,
                (*skb).protocol,
            )
        };
        let headers = start + ETHERNET;
        if headers + H::LENGTH as usize > end {
            return None;
        }
        // SAFETY: within the packet; the verifier has seen that. Packets start at even addresses.
        unsafe {
            let first = *(start as *const u8);
            let kind = *((start + ETHERNET_TYPE) as *const u16);
            if first & VERSION == version || u32::from(kind) != protocol {
                return None;
            }
            let mut read = MaybeUninit::<H>::uninit();
            // Two bytes at a time: behind an Ethernet header nothing is aligned better.
            core::ptr::copy_nonoverlapping(
                headers as *const u16,
                read.as_mut_ptr().cast(),
                H::LENGTH as usize / size_of::<u16>(),
            );
            Some(read.assume_init())
        }
    }
}

/// Loads headers with one call of the helper.
#[inline(always)]
pub fn load<L: Load, H: Headers>(skb: *mut __sk_buff, offset: u32) -> Result<H, Undecided> {
    let mut headers = MaybeUninit::<H>::uninit();
    // SAFETY: there is room for the length of H.
    if unsafe { L::load_bytes(skb, offset, headers.as_mut_ptr().cast(), H::LENGTH) } != 0 {
        return Err(Undecided::Load);
    }
    // SAFETY: the helper has initialised all of it, and H is made of integers.
    Ok(unsafe { headers.assume_init() })
}

/// Reads headers at the start of the network header, `version` being that of the protocol.
#[inline(always)]
fn first<L: Load, H: Headers>(skb: *mut __sk_buff, version: u8) -> Result<H, Undecided> {
    match L::read(skb, version) {
        Some(headers) => Ok(headers),
        None => load::<L, H>(skb, 0),
    }
}

/// Reads the TCP segment in a packet.
#[inline(always)]
pub fn segment<L: Load>(skb: *mut __sk_buff) -> Result<Segment, Undecided> {
    // SAFETY: the kernel hands a valid context to the program.
    let protocol = unsafe { (*skb).protocol };
    match protocol {
        ETH_P_IP => Ok(first::<L, Ipv4Tcp>(skb, 0x40)?.segment()?),
        ETH_P_IPV6 => {
            let headers = first::<L, Ipv6Tcp>(skb, 0x60)?;
            if headers.may_be_jumbo() {
                return Ok(headers.jumbo_segment(&load::<L, JumboTcp>(skb, IPV6_HEADER)?)?);
            }
            Ok(headers.segment()?)
        }
        _ => Err(Undecided::NotIp),
    }
}
