// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests with headers as they are on the wire, and with arbitrary bytes.

use core::mem::{size_of, transmute};
use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

/// 10.0.0.7:40000 → 10.96.0.2:443, SYN, sequence number 0x01020304, no payload.
const SYN_V4: [u8; 40] = [
    0x45, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 7, 10, 96, 0, 2, // IPv4
    0x9c, 0x40, 0x01, 0xbb, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0, // TCP
];

fn v4(bytes: [u8; 40]) -> Ipv4Tcp {
    // SAFETY: the type has only integers, no padding, and the same size.
    unsafe { transmute(bytes) }
}

fn v6(bytes: [u8; 60]) -> Ipv6Tcp {
    // SAFETY: the type has only integers, no padding, and the same size.
    unsafe { transmute(bytes) }
}

fn changed(offset: usize, value: u8) -> Ipv4Tcp {
    let mut bytes = SYN_V4;
    bytes[offset] = value;
    v4(bytes)
}

fn with_flags(flags: u8) -> Segment {
    changed(33, flags).segment().unwrap()
}

#[test]
fn headers_have_the_size_of_what_is_loaded() {
    assert_eq!(size_of::<Ipv4Tcp>(), Ipv4Tcp::LENGTH as usize);
    assert_eq!(size_of::<Ipv6Tcp>(), Ipv6Tcp::LENGTH as usize);
    assert_eq!(size_of::<JumboTcp>(), JumboTcp::LENGTH as usize);
}

#[test]
fn a_plain_syn_is_understood() {
    let segment = v4(SYN_V4).segment().unwrap();
    let client: SocketAddr = "10.0.0.7:40000".parse().unwrap();
    let vip: SocketAddr = "10.96.0.2:443".parse().unwrap();
    assert_eq!(segment.source(), Endpoint::from(client));
    assert_eq!(segment.destination(), Endpoint::from(vip));
    assert!(segment.opens());
}

#[test]
fn what_is_not_plain_tcp_is_unreadable() {
    assert_eq!(changed(0, 0x46).segment(), Err(Unreadable::Header));
    assert_eq!(changed(0, 0x65).segment(), Err(Unreadable::Header));
    assert_eq!(changed(9, 17).segment(), Err(Unreadable::NotTcp));
    // A fragment with more to follow, and a fragment that is not the first.
    assert_eq!(changed(6, 0x20).segment(), Err(Unreadable::Fragment));
    assert_eq!(changed(7, 0x01).segment(), Err(Unreadable::Fragment));
    // A packet with only the don't-fragment flag is not a fragment.
    assert!(changed(6, 0x40).segment().is_ok());
}

#[test]
fn ipv6_extension_headers_are_unreadable() {
    let mut bytes = [0; 60];
    bytes[0] = 0x60;
    bytes[6] = 6;
    assert!(v6(bytes).segment().is_ok());
    // Hop-by-hop, routing, fragment, destination options.
    for next_header in [0, 43, 44, 60] {
        bytes[6] = next_header;
        assert_eq!(v6(bytes).segment(), Err(Unreadable::NotTcp));
    }
    bytes[0] = 0x45;
    assert_eq!(v6(bytes).segment(), Err(Unreadable::Header));
}

/// These are the headers that the stack writes before a segment of 100,000 bytes.
#[test]
fn a_jumbo_segment_is_understood() {
    let mut bytes = [0; 60];
    bytes[0] = 0x60;
    bytes[8] = 0xfd;
    bytes[24] = 0xfe;
    let ip = v6(bytes);
    assert!(ip.may_be_jumbo());
    let mut jumbo = [0_u8; 28];
    jumbo[..4].copy_from_slice(&[6, 0, 0xc2, 4]);
    jumbo[8..12].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
    jumbo[21] = ACK;
    let read = |jumbo: [u8; 28]| {
        // SAFETY: the type has only integers, no padding, and the same size.
        let jumbo: JumboTcp = unsafe { transmute(jumbo) };
        ip.jumbo_segment(&jumbo)
    };
    let segment = read(jumbo).unwrap();
    assert_eq!(segment.source().port(), 40_000_u16.to_be());
    assert_eq!(segment.destination().port(), 443_u16.to_be());
    assert_eq!(segment.source().address().octets()[0], 0xfd);
    assert!(!segment.opens());
    // UDP behind the option, a longer header, another option.
    for (offset, value) in [(0, 17), (1, 1), (2, 5), (3, 2)] {
        let mut other = jumbo;
        other[offset] = value;
        assert_eq!(read(other), Err(Unreadable::NotTcp));
    }
    // A hop-by-hop header of a packet whose IPv6 header has a length.
    bytes[5] = 40;
    assert!(!v6(bytes).may_be_jumbo());
}

#[test]
fn only_a_pure_syn_opens() {
    for flags in [SYN, SYN | 0x40, SYN | 0x80, SYN | 0xc0, SYN | 0x08] {
        assert!(with_flags(flags).opens(), "{flags:#x}");
    }
    for flags in [0, ACK, SYN | ACK, SYN | FIN, SYN | RST, RST, FIN | ACK] {
        assert!(!with_flags(flags).opens(), "{flags:#x}");
    }
}

#[test]
fn any_segment_with_rst_resets() {
    for flags in [RST, RST | ACK, RST | FIN] {
        assert!(with_flags(flags).resets(), "{flags:#x}");
    }
    for flags in [0, SYN, ACK, SYN | ACK, FIN | ACK] {
        assert!(!with_flags(flags).resets(), "{flags:#x}");
    }
}

proptest! {
    /// The parser fails for no packet, and no segment both opens and resets a connection.
    #[test]
    fn any_bytes_are_read(four: [u8; 40], low: [u8; 32], high: [u8; 28]) {
        let mut six = [0; 60];
        six[..32].copy_from_slice(&low);
        six[32..].copy_from_slice(&high);
        for segment in [v4(four).segment(), v6(six).segment()].into_iter().flatten() {
            prop_assert!(!(segment.opens() && segment.resets()));
        }
    }
}
