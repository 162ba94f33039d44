// SPDX-License-Identifier: Apache-2.0

//! Reads headers from a packet: one load for all of them, then `proxy_common` understands them.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use proxy_common::{Ipv4Tcp, Ipv6Tcp, Segment, Unreadable};

/// EtherTypes as `__sk_buff.protocol` has them.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Why a packet stays undecided.
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
    /// Not the first segment of a connection: what is not decided at its SYN never is.
    NotOpening,
    /// Not addressed to a VIP.
    NotVip,
    /// The proxy already has a connection with these addresses and ports that was not decided.
    InUse,
    /// The entry could not be written.
    MapFull,
    /// No entry, or one of another connection.
    NoDecision,
}

impl From<Unreadable> for Undecided {
    #[inline(always)]
    fn from(_: Unreadable) -> Self {
        Self::Unreadable
    }
}

/// How a hook's packet data relates to the network header.
pub trait Load {
    /// Loads a `T` from the start of the network header.
    fn load<T>(skb: *mut __sk_buff) -> Result<T, Undecided>;
}

/// TC: the data starts at the link header where the link has one, so loads are relative to the
/// network header (Linux 4.18). They see the linear part only.
pub struct FromNetworkHeader;

/// Netfilter: the data starts at the network header.
pub struct FromData;

impl Load for FromNetworkHeader {
    #[inline(always)]
    fn load<T>(skb: *mut __sk_buff) -> Result<T, Undecided> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes size_of::<T>() bytes or fails.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                skb.cast_const().cast(),
                0,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                BPF_HDR_START_NET,
            )
        };
        if result != 0 {
            return Err(Undecided::Load);
        }
        // SAFETY: initialised by the helper; T is made of integers.
        Ok(unsafe { value.assume_init() })
    }
}

impl Load for FromData {
    #[inline(always)]
    fn load<T>(skb: *mut __sk_buff) -> Result<T, Undecided> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes size_of::<T>() bytes or fails.
        let result = unsafe {
            bpf_skb_load_bytes(
                skb.cast_const().cast(),
                0,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        if result != 0 {
            return Err(Undecided::Load);
        }
        // SAFETY: initialised by the helper; T is made of integers.
        Ok(unsafe { value.assume_init() })
    }
}

/// Reads the TCP segment in a packet.
#[inline(always)]
pub fn segment<L: Load>(skb: *mut __sk_buff) -> Result<Segment, Undecided> {
    // SAFETY: the kernel hands a valid context to the program.
    let protocol = unsafe { (*skb).protocol };
    match protocol {
        ETH_P_IP => Ok(L::load::<Ipv4Tcp>(skb)?.segment()?),
        ETH_P_IPV6 => Ok(L::load::<Ipv6Tcp>(skb)?.segment()?),
        _ => Err(Undecided::NotIp),
    }
}
