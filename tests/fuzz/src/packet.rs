// SPDX-License-Identifier: Apache-2.0

//! Headers of packets, read once as the programs do and once byte by byte.

use std::net::{IpAddr, SocketAddr};

use proxy_common::packet::{Headers, IPV6_HEADER, JumboTcp};
use proxy_common::{Endpoint, Ipv4Tcp, Ipv6Tcp, Segment, Unreadable};

/// What a packet says, by the RFCs.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    seq: u32,
    ack: u32,
    /// None where it is not told.
    payload: Option<u32>,
    transport: u32,
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
        Ok(Told {
            payload: None,
            ..told(of_ipv6(bytes), 40 + 8, &behind[8..], 0)
        })
    } else {
        Err(Unreadable::NotTcp)
    };
    compare(headers.jumbo_segment(&jumbo), expected);
    assert_eq!(JumboTcp::LENGTH, 28);
}

fn in_ipv4(bytes: &[u8; 40]) -> Result<Told, Unreadable> {
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
    let length = number(bytes, 2, 2).saturating_sub(20);
    Ok(told((ip(12), ip(16)), 20, &bytes[20..], length))
}

fn in_ipv6(bytes: &[u8; 60]) -> Result<Told, Unreadable> {
    if bytes[0] >> 4 != 6 {
        return Err(Unreadable::Header);
    }
    if bytes[6] != 6 {
        return Err(Unreadable::NotTcp);
    }
    Ok(told(of_ipv6(bytes), 40, &bytes[40..], number(bytes, 4, 2)))
}

fn of_ipv6(bytes: &[u8; 60]) -> (IpAddr, IpAddr) {
    let ip = |at: usize| {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen");
        // IPv4 in the clothes of IPv6 is one address in a map, whichever way it came.
        IpAddr::from(octets).to_canonical()
    };
    (ip(8), ip(24))
}

/// Of a TCP header behind `transport` bytes; `length` is that of all from there on.
fn told((source, destination): (IpAddr, IpAddr), transport: u32, tcp: &[u8], length: u32) -> Told {
    let port = |at| u16::try_from(number(tcp, at, 2)).expect("two bytes");
    Told {
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
        flags: tcp[13],
        seq: number(tcp, 4, 4),
        ack: number(tcp, 8, 4),
        payload: Some(length.saturating_sub(u32::from(tcp[12] >> 4) * 4)),
        transport,
    }
}

/// In network byte order.
fn number(bytes: &[u8], at: usize, length: usize) -> u32 {
    let bytes = &bytes[at..at + length];
    bytes
        .iter()
        .fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

fn compare(read: Result<Segment, Unreadable>, expected: Result<Told, Unreadable>) {
    let (segment, told) = match (read, expected) {
        (Ok(segment), Ok(told)) => (segment, told),
        (read, expected) => return assert_eq!(read.err(), expected.err()),
    };
    assert_eq!(SocketAddr::from(segment.source()), told.source);
    assert_eq!(segment.destination(), Endpoint::from(told.destination));
    assert_eq!((segment.seq(), segment.ack()), (told.seq, told.ack));
    assert_eq!(segment.transport(), told.transport);
    if let Some(payload) = told.payload {
        assert_eq!(segment.payload(), payload);
    }
    let has = |flag: u8| told.flags & flag != 0;
    let (fin, syn, rst, ack) = (has(0x01), has(0x02), has(0x04), has(0x10));
    assert_eq!(segment.opens(), syn && !fin && !rst && !ack);
    let accepts = syn && ack && !rst;
    let refuses = rst && ack && !syn && told.seq == 0;
    assert_eq!(segment.answers_opening(), accepts || refuses);
    assert!(!(segment.opens() && segment.answers_opening()));
}
