// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests with packets of every kind, and with arbitrary bytes.

use core::mem::{MaybeUninit, size_of};
use std::net::IpAddr;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::limits::address_bit;
use crate::packet::Headers;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const IPV6: u16 = 0x86dd;

/// A packet from the network header on.
struct Bytes<'a>(&'a [u8]);

impl Frame for Bytes<'_> {
    fn load<H: Headers>(&self, offset: u32) -> Option<H> {
        let length = H::LENGTH as usize;
        assert_eq!(size_of::<H>(), length);
        let bytes = self.0.get(offset as usize..)?.get(..length)?;
        let mut headers = MaybeUninit::<H>::uninit();
        // SAFETY: the value has room for the length of H, which consists of integers.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), headers.as_mut_ptr().cast(), length);
            Some(headers.assume_init())
        }
    }
}

#[derive(Clone, Copy)]
struct Node(Link);

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn vips() -> [Address; 2] {
    [address("10.96.0.2"), address("fd00:96::2")]
}

impl Knowledge for Node {
    fn may_be_vip(&self, address: &Address) -> bool {
        let bits = vips().iter().fold(0, |bits, vip| bits | address_bit(vip));
        bits & address_bit(address) != 0
    }

    fn vip(&self, address: &Address) -> Option<Endpoint> {
        let counted = Endpoint::new(*address, 443_u16.to_be());
        vips().contains(address).then_some(counted)
    }

    fn asked(&self, address: &Address) -> Option<Endpoint> {
        self.vip(address)
    }

    fn is_proxy(&self, endpoint: &Endpoint) -> bool {
        vips().contains(&endpoint.address()) && endpoint.port() == 443_u16.to_be()
    }

    fn is_allowed(&self, source: &Address) -> bool {
        [address("192.0.2.7"), address("2001:db8::7")].contains(source)
    }

    fn link(&self) -> Link {
        self.0
    }
}

const GUARDED: Node = Node(Link::new(true, false, false));
const TRUNK: Node = Node(Link::new(true, false, true));
const OPEN: Node = Node(Link::new(false, false, false));
const INNER: Node = Node(Link::new(false, true, false));

fn verdict(node: Node, protocol: u16, bytes: &[u8]) -> Option<Cause> {
    let outcome = examine(&Bytes(bytes), protocol.to_be(), 0, &node);
    outcome.err().map(|refused| refused.cause)
}

fn v4(source: &str, destination: &str, protocol: u8, fragment: u16, port: u16) -> Vec<u8> {
    let mut bytes = std::vec![0x45, 0, 0, 40, 0, 1];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, protocol, 0, 0]);
    for end in [source, destination] {
        bytes.extend(&address(end).octets()[12..]);
    }
    bytes.extend(tcp(port));
    bytes
}

fn tcp(port: u16) -> [u8; 20] {
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = 2;
    tcp
}

fn v6(source: &str, destination: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = std::vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend([next, 64]);
    for end in [source, destination] {
        bytes.extend(address(end).octets());
    }
    bytes.extend(payload);
    bytes
}

/// Returns an extension header of the minimum length.
fn extension(next: u8, fragment: u16) -> Vec<u8> {
    let mut bytes = std::vec![next, 0];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

const OUT4: &str = "192.0.2.1";
const VIP4: &str = "10.96.0.2";
const OUT6: &str = "2001:db8::1";
const VIP6: &str = "fd00:96::2";

#[test]
fn what_comes_from_outside_for_the_proxy_is_dropped() {
    let four = v4(OUT4, VIP4, 6, 0, 443);
    let six = v6(OUT6, VIP6, 6, &tcp(443));
    for (protocol, bytes) in [(IPV4, &four), (IPV6, &six)] {
        assert_eq!(verdict(GUARDED, protocol, bytes), Some(Cause::Outside));
        assert_eq!(verdict(OPEN, protocol, bytes), None);
    }
}

#[test]
fn nothing_else_is() {
    for (source, destination, protocol, port) in [
        (OUT4, VIP4, 6, 80),
        (OUT4, VIP4, 17, 443),
        (OUT4, VIP4, 1, 443),
        (OUT4, "10.96.0.1", 6, 443),
        // This address shares the VIP's bit.
        (OUT4, "10.96.0.66", 6, 443),
        ("192.0.2.7", VIP4, 6, 443),
        ("127.0.0.1", "10.96.0.66", 6, 443),
        ("192.0.2.2", "192.0.2.66", 6, 443),
    ] {
        let bytes = v4(source, destination, protocol, 0, port);
        assert_eq!(
            verdict(GUARDED, IPV4, &bytes),
            None,
            "{source} {destination}"
        );
    }
    assert_eq!(
        verdict(GUARDED, IPV6, &v6("2001:db8::7", VIP6, 6, &tcp(443))),
        None
    );
    assert_eq!(verdict(GUARDED, IPV6, &v6(OUT6, VIP6, 17, &tcp(443))), None);
}

#[test]
fn spoofed_sources_are_dropped_everywhere() {
    for node in [GUARDED, OPEN] {
        for (source, destination, port) in [
            (VIP4, VIP4, 443),
            (VIP4, "10.244.0.7", 40_000),
            ("127.3.2.1", VIP4, 443),
        ] {
            let bytes = v4(source, destination, 6, 0, port);
            assert_eq!(verdict(node, IPV4, &bytes), Some(Cause::SpoofedSource));
        }
        let bytes = v6("::1", VIP6, 6, &tcp(443));
        assert_eq!(verdict(node, IPV6, &bytes), Some(Cause::SpoofedSource));
        let bytes = v6(VIP6, "fd00::7", 58, &[0; 8]);
        assert_eq!(verdict(node, IPV6, &bytes), Some(Cause::SpoofedSource));
    }
    // The node sends this packet to itself, through a pair of links between which another device
    // forwards.
    assert_eq!(verdict(INNER, IPV4, &v4(VIP4, "10.244.0.7", 6, 0, 1)), None);
}

#[test]
fn ipv4_options_and_fragments_hide_nothing() {
    let mut bytes = v4(OUT4, VIP4, 6, 0, 443);
    bytes[0] = 0x47;
    bytes.splice(20..20, [1; 8]);
    assert_eq!(verdict(GUARDED, IPV4, &bytes), Some(Cause::Outside));
    for fragment in [0x2000, 0x2001, 0x0001, 0x1fff] {
        let bytes = v4(OUT4, VIP4, 6, fragment, 443);
        assert_eq!(verdict(GUARDED, IPV4, &bytes), Some(Cause::Outside));
        let bytes = v4(OUT4, VIP4, 17, fragment, 443);
        assert_eq!(verdict(GUARDED, IPV4, &bytes), None);
    }
    // The first fragment has a port, which is not the proxy's.
    assert_eq!(verdict(GUARDED, IPV4, &v4(OUT4, VIP4, 6, 0x2000, 80)), None);
}

#[test]
fn ipv6_extension_headers_hide_nothing() {
    let chain = |headers: &[u8]| {
        let mut payload = Vec::new();
        for next in headers[1..].iter().chain(&[6]) {
            payload.extend(extension(*next, 0));
        }
        payload.extend(tcp(443));
        v6(OUT6, VIP6, headers[0], &payload)
    };
    for headers in [
        &[0][..],
        &[60],
        &[43],
        &[44],
        &[135],
        &[0, 60, 43, 44, 60],
        &[60; 7],
        &[60; 30],
    ] {
        let bytes = chain(headers);
        assert_eq!(
            verdict(GUARDED, IPV6, &bytes),
            Some(Cause::Outside),
            "{headers:?}"
        );
        assert_eq!(verdict(OPEN, IPV6, &bytes), None);
    }
    // The length of an authentication header has another unit.
    let ah = [[6, 4, 0, 0].as_slice(), &[0; 20], &tcp(443)].concat();
    assert_eq!(
        verdict(GUARDED, IPV6, &v6(OUT6, VIP6, 51, &ah)),
        Some(Cause::Outside)
    );
    // Later fragments of TCP, of a protocol that cannot be read, and of UDP.
    for (next, cause) in [
        (6, Some(Cause::Outside)),
        (60, Some(Cause::Outside)),
        (17, None),
    ] {
        let payload = [extension(next, 8).as_slice(), &tcp(80)].concat();
        assert_eq!(verdict(GUARDED, IPV6, &v6(OUT6, VIP6, 44, &payload)), cause);
    }
}

#[test]
fn a_packet_that_is_cut_off_is_no_way_in() {
    for (protocol, bytes) in [
        (IPV4, v4(OUT4, VIP4, 6, 0, 443)),
        (IPV6, v6(OUT6, VIP6, 6, &tcp(443))),
    ] {
        for length in 0..bytes.len() {
            let header = if protocol == IPV4 { 20 } else { 40 };
            // The kernel does not deliver a packet without its addresses.
            let expected = (length >= header).then_some(Cause::Outside);
            assert_eq!(
                verdict(GUARDED, protocol, &bytes[..length]),
                expected,
                "{length}"
            );
        }
    }
}

#[test]
fn vlan_tags_are_taken_as_the_kernel_takes_them() {
    let inner = v4(OUT4, VIP4, 6, 0, 443);
    let tagged = |ids: &[u16]| {
        let mut bytes = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            bytes.extend(id.to_be_bytes());
            let next = if n + 1 < ids.len() { VLAN } else { IPV4 };
            bytes.extend(next.to_be_bytes());
        }
        bytes.extend(&inner);
        bytes
    };
    for ids in [&[0][..], &[0xe000], &[0, 0]] {
        assert_eq!(verdict(GUARDED, VLAN, &tagged(ids)), Some(Cause::Outside));
    }
    for ids in [&[100][..], &[0, 100], &[100, 0]] {
        assert_eq!(verdict(GUARDED, VLAN, &tagged(ids)), None);
        assert_eq!(verdict(TRUNK, VLAN, &tagged(ids)), Some(Cause::Outside));
    }
    let outer = |tag: u16, node: Node| {
        let outcome = examine(&Bytes(&inner), IPV4.to_be(), tag.to_be(), &node);
        outcome.err().map(|refused| refused.cause)
    };
    assert_eq!(outer(0xe000, GUARDED), Some(Cause::Outside));
    assert_eq!(outer(7, GUARDED), None);
    assert_eq!(outer(7, TRUNK), Some(Cause::Outside));
}

#[test]
fn neighbours_are_told_nothing() {
    let arp = |operation: u8, sender: &str, target: &str| {
        let mut bytes = std::vec![0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, 1];
        bytes.extend(&address(sender).octets()[12..]);
        bytes.extend([0; 6]);
        bytes.extend(&address(target).octets()[12..]);
        bytes
    };
    let asked = arp(1, OUT4, VIP4);
    assert_eq!(verdict(GUARDED, ARP, &asked), Some(Cause::Neighbour));
    assert_eq!(verdict(OPEN, ARP, &asked), None);
    for other in [
        arp(2, OUT4, VIP4),
        arp(1, OUT4, "10.96.0.66"),
        arp(1, "192.0.2.7", VIP4),
    ] {
        assert_eq!(verdict(GUARDED, ARP, &other), None);
    }
    let ask = |kind: u8, target: &str| {
        let icmp = [&[kind, 0, 0, 0, 0, 0, 0, 0], &address(target).octets()[..]].concat();
        v6("fe80::1", "ff02::1:ff00:2", 58, &icmp)
    };
    let asked = ask(135, VIP6);
    assert_eq!(verdict(GUARDED, IPV6, &asked), Some(Cause::Neighbour));
    assert_eq!(verdict(OPEN, IPV6, &asked), None);
    assert_eq!(verdict(GUARDED, IPV6, &ask(136, VIP6)), None);
    assert_eq!(verdict(GUARDED, IPV6, &ask(135, "fd00:97::2")), None);
}

proptest! {
    /// The parser fails for no bytes, and a packet without an address of ours is never dropped.
    #[test]
    fn any_bytes_are_read(protocol: u16, outer: u16, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for protocol in [protocol, IPV4, IPV6, ARP, VLAN] {
            for node in [GUARDED, TRUNK, OPEN, INNER] {
                let refused = examine(&Bytes(&bytes), protocol.to_be(), outer, &node).is_err();
                let names_a_vip = vips().iter().any(|vip| {
                    let octets = vip.octets();
                    let octets = if vip.as_ipv4().is_some() { &octets[12..] } else { &octets[..] };
                    bytes.windows(octets.len()).any(|window| window == octets)
                });
                prop_assert!(!refused || names_a_vip);
            }
        }
    }

    /// A packet for the proxy is dropped, whatever headers precede its TCP header.
    #[test]
    fn whatever_stands_in_front(options in 0_u8..=10, filler: u8, lengths in prop::collection::vec(0_u8..4, 0..7)) {
        let mut four = v4(OUT4, VIP4, 6, 0, 443);
        four[0] = 0x45 + options;
        four.splice(20..20, std::iter::repeat_n(filler, usize::from(options) * 4));
        prop_assert_eq!(verdict(GUARDED, IPV4, &four), Some(Cause::Outside));
        let mut payload = Vec::new();
        for (n, length) in lengths.iter().enumerate() {
            payload.extend([if n + 1 < lengths.len() { 60 } else { 6 }, *length]);
            payload.extend(std::iter::repeat_n(filler, usize::from(*length) * 8 + 6));
        }
        payload.extend(tcp(443));
        let first = if lengths.is_empty() { 6 } else { 60 };
        let six = v6(OUT6, VIP6, first, &payload);
        prop_assert_eq!(verdict(GUARDED, IPV6, &six), Some(Cause::Outside));
    }
}
