// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The headers that the programs read, in the format in which one load reads them from the packet,
//! and the TCP segment that is parsed from them.
//!
//! A packet that is not plain unfragmented TCP is [`Unreadable`], and stays undecided.

use crate::addr::{Address, Endpoint};

const PROTOCOL_TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
/// The jumbo payload option (RFC 2675) and its length.
const JUMBO_OPTION: [u8; 2] = [0xc2, 4];
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
const IPV6_VERSION: u8 = 0x60;
/// The length of an IPv6 header, in bytes.
pub const IPV6_HEADER: u32 = 40;
/// The mask of the more-fragments flag and the fragment offset.
const IPV4_FRAGMENT: u16 = 0x3fff;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP header without options. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpHeader {
    source_port: u16,
    destination_port: u16,
    seq: u32,
    ack: u32,
    data_offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// An IPv4 header without options and the TCP header behind it: 40 bytes. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ipv4Tcp {
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
    tcp: TcpHeader,
}

/// An IPv6 header and the TCP header behind it: 60 bytes. Network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ipv6Tcp {
    version: u8,
    flow: [u8; 3],
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
    tcp: TcpHeader,
}

/// The only IPv6 extension header that a node's own stack sends: it precedes the TCP header of
/// segments of more than 64 KiB, which never leave the node. 28 bytes with the TCP header. Network
/// byte order.
///
/// Since Linux 5.19, on `lo` by default, elsewhere with BIG TCP:
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv6/ip6_output.c#L297>
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JumboTcp {
    next_header: u8,
    /// The length in units of eight bytes, without the first eight bytes.
    header_length: u8,
    option: [u8; 2],
    payload_length: u32,
    tcp: TcpHeader,
}

/// Headers that are loaded without conversion: they consist of integers, so that any bytes are
/// valid.
pub trait Headers: Copy {
    /// The length of the headers, in bytes.
    const LENGTH: u32;
}

impl Headers for Ipv4Tcp {
    const LENGTH: u32 = 40;
}

impl Headers for Ipv6Tcp {
    const LENGTH: u32 = 60;
}

impl Headers for JumboTcp {
    const LENGTH: u32 = 28;
}

/// The reason why a packet cannot be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// The packet is not TCP, or is TCP behind IPv6 extension headers.
    NotTcp,
    /// The packet is a fragment, and its ports may be in another one.
    Fragment,
    /// The packet has no IP header of the expected version, or an IPv4 header with options.
    Header,
}

/// The fields of a TCP segment that hooks need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    source: Endpoint,
    destination: Endpoint,
    flags: u8,
}

impl TcpHeader {
    #[inline(always)]
    fn segment(&self, source: Address, destination: Address) -> Segment {
        Segment {
            source: Endpoint::new(source, self.source_port),
            destination: Endpoint::new(destination, self.destination_port),
            flags: self.flags,
        }
    }
}

impl Ipv4Tcp {
    /// Parses the headers.
    ///
    /// # Errors
    ///
    /// Returns an error if the packet is not an unfragmented TCP segment behind an IPv4 header
    /// without options.
    #[inline(always)]
    pub fn segment(&self) -> Result<Segment, Unreadable> {
        if self.version_and_length != IPV4_WITHOUT_OPTIONS {
            return Err(Unreadable::Header);
        }
        if self.protocol != PROTOCOL_TCP {
            return Err(Unreadable::NotTcp);
        }
        if self.fragment & IPV4_FRAGMENT.to_be() != 0 {
            return Err(Unreadable::Fragment);
        }
        Ok(self.tcp.segment(
            Address::from_ipv4(self.source),
            Address::from_ipv4(self.destination),
        ))
    }
}

impl Ipv6Tcp {
    /// Parses the headers.
    ///
    /// # Errors
    ///
    /// Returns an error if the packet is not a TCP segment directly behind an IPv6 header.
    #[inline(always)]
    pub fn segment(&self) -> Result<Segment, Unreadable> {
        if self.version & 0xf0 != IPV6_VERSION {
            return Err(Unreadable::Header);
        }
        // A fragment header is an extension header too.
        if self.next_header != PROTOCOL_TCP {
            return Err(Unreadable::NotTcp);
        }
        Ok(self.tcp.segment(
            Address::from_ipv6(self.source),
            Address::from_ipv6(self.destination),
        ))
    }

    /// Returns whether the next header has to be parsed as a [`JumboTcp`].
    #[inline(always)]
    #[must_use]
    pub const fn may_be_jumbo(&self) -> bool {
        self.version & 0xf0 == IPV6_VERSION
            && self.next_header == HOP_BY_HOP
            && self.payload_length == 0
    }

    /// Parses the headers of a segment of more than 64 KiB.
    ///
    /// # Errors
    ///
    /// Returns an error if `jumbo` is not the jumbo payload option alone with TCP behind it.
    #[inline(always)]
    pub fn jumbo_segment(&self, jumbo: &JumboTcp) -> Result<Segment, Unreadable> {
        if jumbo.next_header != PROTOCOL_TCP
            || jumbo.header_length != 0
            || jumbo.option[0] != JUMBO_OPTION[0]
            || jumbo.option[1] != JUMBO_OPTION[1]
        {
            return Err(Unreadable::NotTcp);
        }
        Ok(jumbo.tcp.segment(
            Address::from_ipv6(self.source),
            Address::from_ipv6(self.destination),
        ))
    }
}

impl Segment {
    /// Returns the source.
    #[inline(always)]
    #[must_use]
    pub const fn source(&self) -> Endpoint {
        self.source
    }

    /// Returns the destination.
    #[inline(always)]
    #[must_use]
    pub const fn destination(&self) -> Endpoint {
        self.destination
    }

    /// Returns whether this is the first segment of a connection. Explicit congestion notification
    /// sets two more flags on it; no stack would combine it with FIN or RST.
    #[inline(always)]
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Returns whether the segment resets the connection.
    #[inline(always)]
    #[must_use]
    pub const fn resets(&self) -> bool {
        self.flags & RST != 0
    }
}

#[cfg(test)]
mod tests;
