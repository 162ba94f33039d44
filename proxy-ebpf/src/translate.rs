// SPDX-License-Identifier: Apache-2.0

//! Replaces an address and port in a packet on a TC hook, checksums included.
//!
//! The helpers know about checksum offload: with a partial checksum only the pseudo header's part
//! is changed, and segments that are still to be cut carry the change into each piece.

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use proxy_common::{Endpoint, Segment};

use crate::packet::Undecided;

/// Where fields stand behind the start of their header.
const IPV4_CHECKSUM: u32 = 10;
const IPV4_ADDRESSES: [u32; 2] = [12, 16];
const IPV6_ADDRESSES: [u32; 2] = [8, 24];
const TCP_PORTS: [u32; 2] = [0, 2];
const TCP_CHECKSUM: u32 = 16;
/// Lengths of the fields.
const IPV4_ADDRESS: u32 = 4;
const IPV6_ADDRESS: u32 = 16;
const PORT: u32 = 2;
/// Length of an Ethernet header. Links have that or none at all.
const ETHERNET: u32 = 14;

/// Which end of a packet is replaced.
#[derive(Clone, Copy)]
pub enum Side {
    /// Source address and port.
    Source = 0,
    /// Destination address and port.
    Destination = 1,
}

/// Puts `to` in the place of one end of the packet.
#[inline(always)]
pub fn rewrite(
    skb: *mut __sk_buff,
    segment: &Segment,
    side: Side,
    to: Endpoint,
) -> Result<(), Undecided> {
    let from = match side {
        Side::Source => segment.source(),
        Side::Destination => segment.destination(),
    };
    match (from.address().as_ipv4(), to.address().as_ipv4()) {
        (Some(old), Some(new)) => {
            let ip = find(skb, IPV4_ADDRESSES[side as usize], &[old], IPV4_ADDRESS)?;
            let tcp_checksum = ip + segment.transport() + TCP_CHECKSUM;
            // SAFETY: all offsets are inside headers that were read; the helpers check them too.
            let refused = unsafe {
                bpf_l4_csum_replace(
                    skb,
                    tcp_checksum,
                    old.into(),
                    new.into(),
                    u64::from(BPF_F_PSEUDO_HDR) | u64::from(IPV4_ADDRESS),
                ) | bpf_l3_csum_replace(
                    skb,
                    ip + IPV4_CHECKSUM,
                    old.into(),
                    new.into(),
                    u64::from(IPV4_ADDRESS),
                )
            };
            if refused != 0 {
                return Err(Undecided::Rewrite);
            }
            store(skb, ip + IPV4_ADDRESSES[side as usize], &new, IPV4_ADDRESS)?;
            rewrite_port(skb, ip + segment.transport(), side, from.port(), to.port())
        }
        (None, None) => {
            let (old, new) = (from.address().words(), to.address().words());
            let ip = find(skb, IPV6_ADDRESSES[side as usize], &old, IPV6_ADDRESS)?;
            let tcp_checksum = ip + segment.transport() + TCP_CHECKSUM;
            // SAFETY: both addresses have sixteen bytes; offsets as above.
            let refused = unsafe {
                let difference = bpf_csum_diff(
                    old.as_ptr().cast_mut(),
                    IPV6_ADDRESS,
                    new.as_ptr().cast_mut(),
                    IPV6_ADDRESS,
                    0,
                );
                let refused = bpf_l4_csum_replace(
                    skb,
                    tcp_checksum,
                    0,
                    difference.cast_unsigned(),
                    BPF_F_PSEUDO_HDR.into(),
                );
                // With a checksum over the whole packet from the hardware, the helper takes the
                // difference off, as if an IP header checksum made up for it. IPv6 has none.
                // It fails where there is no such checksum.
                #[expect(clippy::cast_possible_truncation, reason = "a checksum has 32 bits")]
                bpf_csum_update(skb, difference.cast_unsigned() as u32);
                refused
            };
            if refused != 0 {
                return Err(Undecided::Rewrite);
            }
            store(skb, ip + IPV6_ADDRESSES[side as usize], &new, IPV6_ADDRESS)?;
            rewrite_port(skb, ip + segment.transport(), side, from.port(), to.port())
        }
        _ => Err(Undecided::NotForProxy),
    }
}

#[inline(always)]
fn rewrite_port(
    skb: *mut __sk_buff,
    tcp: u32,
    side: Side,
    old: u16,
    new: u16,
) -> Result<(), Undecided> {
    if old == new {
        return Ok(());
    }
    // SAFETY: the offset is that of the checksum in a header that was read.
    let refused = unsafe {
        bpf_l4_csum_replace(skb, tcp + TCP_CHECKSUM, old.into(), new.into(), PORT.into())
    };
    if refused != 0 {
        return Err(Undecided::Rewrite);
    }
    store(skb, tcp + TCP_PORTS[side as usize], &new, PORT)
}

/// The offset of the IP header from the start of the packet's data: behind an Ethernet header, or
/// at its start on links that have none. Nothing in the context tells, so the address is looked
/// for in both places.
#[inline(always)]
fn find<const N: usize>(
    skb: *mut __sk_buff,
    offset: u32,
    address: &[u32; N],
    length: u32,
) -> Result<u32, Undecided> {
    for start in [ETHERNET, 0] {
        let mut there = [0_u32; N];
        // SAFETY: there is room for `length` bytes.
        let refused = unsafe {
            bpf_skb_load_bytes(
                skb.cast_const().cast(),
                start + offset,
                there.as_mut_ptr().cast(),
                length,
            )
        };
        if refused == 0 && there == *address {
            return Ok(start);
        }
    }
    Err(Undecided::Load)
}

#[inline(always)]
fn store<T>(skb: *mut __sk_buff, offset: u32, value: &T, length: u32) -> Result<(), Undecided> {
    // SAFETY: `value` has `length` bytes.
    let refused =
        unsafe { bpf_skb_store_bytes(skb, offset, core::ptr::from_ref(value).cast(), length, 0) };
    if refused == 0 {
        Ok(())
    } else {
        Err(Undecided::Rewrite)
    }
}
