// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads headers from a packet: one load for all of them, which `proxy_common` then parses.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::cty::c_long;
use aya_ebpf::helpers::bpf_skb_load_bytes_relative;
use proxy_common::packet::{Headers, IPV6_HEADER, JumboTcp};
use proxy_common::{Ipv4Tcp, Ipv6Tcp, Reason, Segment, Unreadable};

/// Ethernet types as in `__sk_buff.protocol`.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// The length of an Ethernet header. Links have such a header or none at all.
pub const ETHERNET: usize = 14;
/// The offset of the type in an Ethernet header.
pub const ETHERNET_TYPE: usize = 12;
/// The mask of the version in the first byte of an IP header.
const VERSION: u8 = 0xf0;

/// The reason why a packet stays undecided, or is not passed on.
#[derive(Clone, Copy)]
pub enum Undecided {
    /// The packet still has a VLAN tag: the VLAN link will receive it again without the tag.
    VlanTag,
    /// The packet is neither IPv4 nor IPv6.
    NotIp,
    /// The headers are not in the packet's linear part, or the packet is too short.
    Load,
    /// The packet is not an unfragmented TCP segment.
    Unreadable,
    /// The packet is not the first segment of a connection: a connection is decided at its SYN or never.
    NotOpening,
    /// The packet is not addressed to a Service that ends on the proxy, or does not come from one.
    NotForProxy,
    /// No listener is bound to the VIP: the path without the agent may lead to an endpoint.
    NoListener,
    /// By the node's routes, the address is not local for packets of this link.
    NotLocal,
    /// The Service is being drained: new connections use the path without the agent.
    Draining,
    /// The process is not in the network namespace of the host.
    NotOnHost,
    /// The socket is bound to a link, and its connection has to leave by this link.
    BoundToLink,
    /// The connection was addressed to the VIP itself.
    NotTranslated,
    /// The entry could not be written.
    MapFull,
    /// No decision was recorded at its SYN.
    NoDecision,
    /// The packet comes from outside of the node, so that kube-proxy handles it.
    Outside,
    /// The guard has to check the packet first.
    Unguarded,
    /// The packet must be dropped.
    Dropped,
}

impl Undecided {
    /// Returns the reason under which the packet is counted. The result is `None` if the packet does not concern the
    /// proxy, or if this cannot be determined: a packet with a VLAN tag is seen again without it, and the ports of a
    /// fragment or of a packet with options are not in their usual place.
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

/// The position of a hook's packet data relative to the network header.
pub trait Load {
    /// Loads `length` bytes from `offset` behind the start of the network header. Returns zero on success.
    ///
    /// # Safety
    ///
    /// `to` must have room for them.
    unsafe fn load_bytes(skb: *mut __sk_buff, offset: u32, to: *mut c_void, length: u32) -> c_long;

    /// Reads headers at the start of the network header without a helper call, if the hook permits direct access and
    /// the position of the headers is certain. `version` is the first half of their first byte.
    #[inline(always)]
    fn read<H: Headers>(_skb: *mut __sk_buff, _version: u8) -> Option<H> {
        None
    }
}

/// TC: the data starts at the link header if the link has one, so loads are relative to the network header
/// (Linux 4.18). They access only the linear part.
///
/// Such a load takes about 25 ns for every packet of every link, so headers behind an Ethernet header are read
/// directly. A packet whose first byte looks like that of an IP header may have no Ethernet header, whatever it
/// contains. The kernel loads such a packet; this includes one of sixteen hardware addresses.
pub struct FromNetworkHeader;

impl Load for FromNetworkHeader {
    #[inline(always)]
    unsafe fn load_bytes(skb: *mut __sk_buff, offset: u32, to: *mut c_void, length: u32) -> c_long {
        // SAFETY: the caller guarantees that `to` is valid.
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
        // SAFETY: the kernel passes a valid context to the program.
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
        // SAFETY: the addresses are within the packet, as the verifier has checked. Packets start at even addresses.
        unsafe {
            let first = *(start as *const u8);
            let kind = *((start + ETHERNET_TYPE) as *const u16);
            if first & VERSION == version || u32::from(kind) != protocol {
                return None;
            }
            let mut read = MaybeUninit::<H>::uninit();
            // The bytes are copied in pairs, because headers behind an Ethernet header are aligned to two bytes only.
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
    // SAFETY: the value has room for the length of H.
    if unsafe { L::load_bytes(skb, offset, headers.as_mut_ptr().cast(), H::LENGTH) } != 0 {
        return Err(Undecided::Load);
    }
    // SAFETY: the helper has initialised all of it, and H consists of integers.
    Ok(unsafe { headers.assume_init() })
}

/// Reads headers at the start of the network header; `version` is the protocol's.
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
    // SAFETY: the kernel passes a valid context to the program.
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
