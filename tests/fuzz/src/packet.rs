// SPDX-License-Identifier: Apache-2.0

//! Headers of packets, read once as the programs do and once byte by byte.

use std::net::{IpAddr, SocketAddr};

use proxy_common::packet::{Headers, IPV6_HEADER, JumboTcp};
use proxy_common::{Endpoint, Ipv4Tcp, Ipv6Tcp, Segment, Unreadable};

/// The fields of a packet, read as the RFCs define them.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
}

/// A packet from its IP header on; its length is that of the headers at least.
pub fn packet(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<40>() {
        // SAFETY: integers only, no padding, same size.
        let headers: Ipv4Tcp = unsafe { std::mem::transmute(*bytes) };
        compare(headers.segment(), in_ipv4(bytes));
    }
    let Some(bytes) = data.first_chunk::<60>() else {
        return;
    };
    // SAFETY: integers only, no padding, same size.
    let headers: Ipv6Tcp = unsafe { std::mem::transmute(*bytes) };
    compare(headers.segment(), in_ipv6(bytes));
    let behind = data
        .get(IPV6_HEADER as usize..)
        .and_then(|rest| rest.first_chunk::<28>());
    let Some(behind) = behind.filter(|_| headers.may_be_jumbo()) else {
        return;
    };
    assert_eq!((bytes[0] >> 4, bytes[6], &bytes[4..6]), (6, 0, &[0, 0][..]));
    // SAFETY: as above.
    let jumbo: JumboTcp = unsafe { std::mem::transmute(*behind) };
    let is_jumbo = behind[..4] == [6, 0, 0xc2, 4];
    let expected = if is_jumbo {
        Ok(facts(of_ipv6(bytes), &behind[8..]))
    } else {
        Err(Unreadable::NotTcp)
    };
    compare(headers.jumbo_segment(&jumbo), expected);
    assert_eq!(JumboTcp::LENGTH, 28);
}

fn in_ipv4(bytes: &[u8; 40]) -> Result<Facts, Unreadable> {
    if bytes[0] != 0x45 {
        return Err(Unreadable::Header);
    }
    if bytes[9] != 6 {
        return Err(Unreadable::NotTcp);
    }
    // More fragments, or an offset. "Don't fragment" and the reserved bit are neither.
    if bytes[6] & 0x3f != 0 || bytes[7] != 0 {
        return Err(Unreadable::Fragment);
    }
    let ip = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(facts((ip(12), ip(16)), &bytes[20..]))
}

fn in_ipv6(bytes: &[u8; 60]) -> Result<Facts, Unreadable> {
    if bytes[0] >> 4 != 6 {
        return Err(Unreadable::Header);
    }
    if bytes[6] != 6 {
        return Err(Unreadable::NotTcp);
    }
    Ok(facts(of_ipv6(bytes), &bytes[40..]))
}

fn of_ipv6(bytes: &[u8; 60]) -> (IpAddr, IpAddr) {
    let ip = |at: usize| {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen");
        // IPv4 in the clothes of IPv6 is one address in a map, whichever way it came.
        IpAddr::from(octets).to_canonical()
    };
    (ip(8), ip(24))
}

/// Of a TCP header.
fn facts((source, destination): (IpAddr, IpAddr), tcp: &[u8]) -> Facts {
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    Facts {
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
        flags: tcp[13],
    }
}

fn compare(read: Result<Segment, Unreadable>, expected: Result<Facts, Unreadable>) {
    let (segment, facts) = match (read, expected) {
        (Ok(segment), Ok(facts)) => (segment, facts),
        (read, expected) => return assert_eq!(read.err(), expected.err()),
    };
    assert_eq!(SocketAddr::from(segment.source()), facts.source);
    assert_eq!(segment.destination(), Endpoint::from(facts.destination));
    let has = |flag: u8| facts.flags & flag != 0;
    let (fin, syn, rst, ack) = (has(0x01), has(0x02), has(0x04), has(0x10));
    assert_eq!(segment.opens(), syn && !fin && !rst && !ack);
    assert_eq!(segment.resets(), rst);
}
