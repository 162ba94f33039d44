// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Parses any packet as far as the guard needs it: packets with VLAN tags, IP options and extension headers, fragments,
//! and truncated packets. The result for a packet that the kernel would not deliver anyway does not matter.

use super::{Knowledge, Port, Refused, judge, judge_question};
use crate::addr::Address;
use crate::packet::Headers;

/// The Ethernet type of IPv4, in network byte order.
pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_ARP: u16 = 0x0806_u16.to_be();
const ETH_P_8021Q: u16 = 0x8100_u16.to_be();
const ETH_P_8021AD: u16 = 0x88a8_u16.to_be();
/// The Ethernet type of IPv6, in network byte order.
pub const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

const NEIGHBOUR_SOLICITATION: u8 = 135;
const ARP_REQUEST: u16 = 1_u16.to_be();
/// The mask of the VLAN's number in a tag.
const VLAN_ID: u16 = 0x0fff_u16.to_be();
/// The maximum number of tags that are read. The kernel removes any number of them, but delivers nothing here that has
/// more than two.
const MAX_TAGS: usize = 2;
/// The maximum number of extension headers that are read; more of them than there are kinds make no sense.
const MAX_EXTENSIONS: usize = 8;

/// A packet that is read from the end of its link header, which contains no VLAN tag.
pub trait Frame {
    /// Loads headers from `offset`. Returns `None` if the packet ends before.
    fn load<H: Headers>(&self, offset: u32) -> Option<H>;
}

/// A VLAN tag behind its Ethernet type, with the Ethernet type that follows it. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Tag {
    control: u16,
    protocol: u16,
}

/// An IPv4 header without options. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Ipv4 {
    version_and_length: u8,
    traffic_class: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// An IPv6 header. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Ipv6 {
    version: u8,
    flow: [u8; 3],
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// The addresses of an IPv4 packet. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Ipv4Ends([u32; 2]);

/// The addresses of an IPv6 packet. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Ipv6Ends([[u32; 4]; 2]);

/// The first bytes of extension headers. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Extension {
    next_header: u8,
    length: u8,
    /// In a fragment header: the offset in units of eight bytes, and flags in the last three bits.
    fragment: u16,
}

/// The first bytes of a TCP header. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Ports {
    source: u16,
    destination: u16,
}

/// An ARP packet for IPv4 over Ethernet, in half-words, because of its alignment. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arp {
    hardware: u16,
    protocol: u16,
    lengths: u16,
    operation: u16,
    sender_link: [u16; 3],
    sender: [u16; 2],
    target_link: [u16; 3],
    target: [u16; 2],
}

/// The first bytes of a neighbour solicitation. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Solicitation {
    kind: u8,
    code: u8,
    checksum: u16,
    reserved: u32,
    target: [u32; 4],
}

impl Headers for Tag {
    const LENGTH: u32 = 4;
}

impl Headers for Ipv4 {
    const LENGTH: u32 = 20;
}

impl Headers for Ipv6 {
    const LENGTH: u32 = 40;
}

impl Headers for Ipv4Ends {
    const LENGTH: u32 = 8;
}

impl Headers for Ipv6Ends {
    const LENGTH: u32 = 32;
}

impl Ipv4Ends {
    /// The offset of the addresses in the header.
    pub const OFFSET: u32 = 12;

    /// Returns source and destination.
    #[inline(always)]
    #[must_use]
    pub const fn ends(&self) -> [Address; 2] {
        [Address::from_ipv4(self.0[0]), Address::from_ipv4(self.0[1])]
    }
}

impl Ipv6Ends {
    /// The offset of the addresses in the header.
    pub const OFFSET: u32 = 8;

    /// Returns source and destination.
    #[inline(always)]
    #[must_use]
    pub const fn ends(&self) -> [Address; 2] {
        [Address::from_ipv6(self.0[0]), Address::from_ipv6(self.0[1])]
    }
}

impl Headers for Extension {
    const LENGTH: u32 = 4;
}

impl Headers for Ports {
    const LENGTH: u32 = 4;
}

impl Headers for Arp {
    const LENGTH: u32 = 28;
}

impl Headers for Solicitation {
    const LENGTH: u32 = 24;
}

/// Decides about a packet of this Ethernet type. It follows the link header, or the tag `outer`, which the kernel or
/// the hardware has already removed from the packet (zero if there was none).
///
/// # Errors
///
/// Returns an error if the packet must be dropped.
#[inline(always)]
pub fn examine(
    frame: &impl Frame,
    mut protocol: u16,
    outer: u16,
    known: &impl Knowledge,
) -> Result<(), Refused> {
    let mut vlan = outer & VLAN_ID;
    let mut offset = 0;
    for _ in 0..MAX_TAGS {
        if protocol != ETH_P_8021Q && protocol != ETH_P_8021AD {
            break;
        }
        let Some(tag) = frame.load::<Tag>(offset) else {
            return Ok(());
        };
        vlan |= tag.control & VLAN_ID;
        protocol = tag.protocol;
        offset += Tag::LENGTH;
    }
    // A tag whose number is zero is only a priority: such a packet is delivered as if it had no tag. A packet with a
    // number is seen again without the tag on the VLAN link, or there is no such link.
    if vlan != 0 && !known.link().takes_tagged() {
        return Ok(());
    }
    match protocol {
        ETH_P_IP => ipv4(frame, offset, known),
        ETH_P_IPV6 => ipv6(frame, offset, known),
        ETH_P_ARP => arp(frame, offset, known),
        _ => Ok(()),
    }
}

#[inline(always)]
fn ipv4(frame: &impl Frame, offset: u32, known: &impl Knowledge) -> Result<(), Refused> {
    /// The mask of the fragment's offset.
    const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();

    let Some(header) = frame.load::<Ipv4>(offset) else {
        return Ok(());
    };
    let port = || {
        if header.protocol != TCP {
            return Port::Other;
        }
        if header.fragment & FRAGMENT_OFFSET != 0 {
            return Port::Unknown;
        }
        let length = u32::from(header.version_and_length & 0x0f) * 4;
        tcp_port(frame, offset + length)
    };
    let source = Address::from_ipv4(header.source);
    let destination = Address::from_ipv4(header.destination);
    judge(known, &source, &destination, port)
}

#[inline(always)]
fn ipv6(frame: &impl Frame, offset: u32, known: &impl Knowledge) -> Result<(), Refused> {
    let Some(header) = frame.load::<Ipv6>(offset) else {
        return Ok(());
    };
    let source = Address::from_ipv6(header.source);
    let destination = Address::from_ipv6(header.destination);
    let behind = offset + Ipv6::LENGTH;
    // A solicitation is sent to an address whose last byte is that of the requested address.
    if header.next_header == ICMPV6
        && known.may_be_vip(&destination)
        && let Some(solicitation) = frame.load::<Solicitation>(behind)
        && solicitation.kind == NEIGHBOUR_SOLICITATION
    {
        let target = Address::from_ipv6(solicitation.target);
        judge_question(known, &source, &target)?;
    }
    judge(known, &source, &destination, || {
        behind_extensions(frame, behind, header.next_header)
    })
}

/// Returns whether further headers follow a header of this number. There is no branch for each kind, because the
/// verifier would follow them all.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    const LOW: u64 = 1 << HOP_BY_HOP
        | 1 << ROUTING
        | 1 << FRAGMENT
        | 1 << AUTHENTICATION
        | 1 << DESTINATION_OPTIONS;
    const HIGH: u64 = 1 << (MOBILITY - 128) | 1 << (HOST_IDENTITY - 128) | 1 << (SHIM6 - 128);
    let set = if next < 128 { LOW } else { HIGH };
    next & 64 == 0 && set >> (next & 63) & 1 != 0
}

/// Returns the port behind any IPv6 extension headers.
#[inline(always)]
fn behind_extensions(frame: &impl Frame, mut offset: u32, mut next: u8) -> Port {
    /// The mask of the fragment's offset.
    const FRAGMENT_OFFSET: u16 = 0xfff8_u16.to_be();

    for _ in 0..MAX_EXTENSIONS {
        if next == TCP {
            return tcp_port(frame, offset);
        }
        if !is_extension(next) {
            return Port::Other;
        }
        let Some(extension) = frame.load::<Extension>(offset) else {
            return Port::Unknown;
        };
        let length = u32::from(extension.length);
        offset += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        let later = next == FRAGMENT && extension.fragment & FRAGMENT_OFFSET != 0;
        next = extension.next_header;
        if later {
            // The bytes here are not those that follow the header in the first fragment.
            return if next == TCP || is_extension(next) {
                Port::Unknown
            } else {
                Port::Other
            };
        }
    }
    Port::Unknown
}

#[inline(always)]
fn tcp_port(frame: &impl Frame, offset: u32) -> Port {
    match frame.load::<Ports>(offset) {
        Some(ports) => Port::Tcp(ports.destination),
        None => Port::Unknown,
    }
}

#[inline(always)]
fn arp(frame: &impl Frame, offset: u32, known: &impl Knowledge) -> Result<(), Refused> {
    let Some(arp) = frame.load::<Arp>(offset) else {
        return Ok(());
    };
    if arp.protocol != ETH_P_IP || arp.operation != ARP_REQUEST {
        return Ok(());
    }
    let address = |halves: [u16; 2]| {
        let ([a, b], [c, d]) = (halves[0].to_ne_bytes(), halves[1].to_ne_bytes());
        Address::from_ipv4(u32::from_ne_bytes([a, b, c, d]))
    };
    judge_question(known, &address(arp.sender), &address(arp.target))
}
