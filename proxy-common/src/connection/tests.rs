// SPDX-License-Identifier: Apache-2.0

//! The rules of the decision, over all numbers a handshake can have.

use core::mem::{align_of, offset_of, size_of};
use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::packet::Ipv4Tcp;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

/// A segment between 10.0.0.7:40000 and 10.96.0.2:443; `payload` bytes behind a bare TCP header.
fn segment(flags: u8, seq: u32, ack: u32, payload: u16) -> Segment {
    let mut bytes = [0_u8; 40];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&(40 + payload).to_be_bytes());
    bytes[9] = 6;
    bytes[12..16].copy_from_slice(&[10, 0, 0, 7]);
    bytes[16..20].copy_from_slice(&[10, 96, 0, 2]);
    bytes[20..22].copy_from_slice(&40_000_u16.to_be_bytes());
    bytes[22..24].copy_from_slice(&443_u16.to_be_bytes());
    bytes[24..28].copy_from_slice(&seq.to_be_bytes());
    bytes[28..32].copy_from_slice(&ack.to_be_bytes());
    bytes[32] = 0x50;
    bytes[33] = flags;
    // SAFETY: integers only, no padding, same size.
    let headers: Ipv4Tcp = unsafe { core::mem::transmute(bytes) };
    headers.segment().unwrap()
}

#[test]
fn layouts_are_what_the_kernel_and_older_agents_expect() {
    assert_eq!(size_of::<ConnectionKey>(), 36);
    assert_eq!(align_of::<ConnectionKey>(), 4);
    assert_eq!(offset_of!(ConnectionKey, client), 0);
    assert_eq!(offset_of!(ConnectionKey, vip), 16);
    assert_eq!(offset_of!(ConnectionKey, client_port), 32);
    assert_eq!(offset_of!(ConnectionKey, vip_port), 34);
    assert_eq!(size_of::<Connection>(), 28);
}

#[test]
fn a_connection_is_translated_if_it_has_another_destination() {
    let syn = segment(SYN, 1, 0, 0);
    assert!(!Connection::opened_by(&syn, Endpoint::NONE).is_translated());
    let service = Endpoint::from("10.96.0.1:443".parse::<SocketAddr>().unwrap());
    let decision = Connection::opened_by(&syn, service);
    assert!(decision.is_translated());
    assert_eq!(decision.original(), service);
}

#[test]
fn both_directions_have_one_key() {
    let client = Endpoint::from("10.0.0.7:40000".parse::<SocketAddr>().unwrap());
    let vip = Endpoint::from("10.96.0.2:443".parse::<SocketAddr>().unwrap());
    let key = ConnectionKey::of_request(&segment(SYN, 1, 0, 0));
    assert_eq!(key, ConnectionKey::new(client, vip));
    assert_eq!((key.client(), key.vip()), (client, vip));
    // The same endpoints, seen from the other side.
    let reply = segment(SYN | ACK, 1, 0, 0);
    assert_eq!(
        ConnectionKey::of_reply(&reply),
        ConnectionKey::new(vip, client)
    );
}

proptest! {
    #[test]
    fn the_handshake_of_the_decided_connection_is_covered(isn: u32, server_isn: u32) {
        let decision = Connection::opened_by(&segment(SYN, isn, 0, 0), Endpoint::NONE);
        prop_assert!(decision.covers_request(&segment(SYN, isn, 0, 0)));
        prop_assert!(decision.covers_reply(&segment(SYN | ACK, server_isn, isn.wrapping_add(1), 0)));
        prop_assert!(decision.covers_reply(&segment(RST | ACK, 0, isn.wrapping_add(1), 0)));
    }

    /// A SYN that was translated is known when it comes by again, addressed to the VIP; another one is not,
    /// and neither is one that was addressed to the VIP from the start.
    #[test]
    fn a_translated_syn_is_known_again(isn: u32, other: u32) {
        let service = Endpoint::from("10.96.0.1:443".parse::<SocketAddr>().unwrap());
        let syn = segment(SYN, isn, 0, 0);
        prop_assert!(Connection::opened_by(&syn, service).has_translated(&syn));
        prop_assert!(!Connection::opened_by(&syn, Endpoint::NONE).has_translated(&syn));
        let next = segment(SYN, other, 0, 0);
        prop_assert_eq!(Connection::opened_by(&syn, service).has_translated(&next), isn == other);
    }

    /// The same client port, another connection: neither its SYN nor what answers it.
    #[test]
    fn another_handshake_is_not(isn: u32, other: u32, server_isn: u32) {
        prop_assume!(isn != other);
        let decision = Connection::opened_by(&segment(SYN, isn, 0, 0), Endpoint::NONE);
        prop_assert!(!decision.covers_request(&segment(SYN, other, 0, 0)));
        prop_assert!(!decision.covers_reply(&segment(SYN | ACK, server_isn, other.wrapping_add(1), 0)));
        prop_assert!(!decision.covers_reply(&segment(RST | ACK, 0, other.wrapping_add(1), 0)));
    }

    /// What is neither SYN nor answer is under the entry, whatever its numbers.
    #[test]
    fn the_stream_is_covered(isn: u32, seq in 1_u32.., ack: u32, payload in 0_u16..1460) {
        let decision = Connection::opened_by(&segment(SYN, isn, 0, 0), Endpoint::NONE);
        for flags in [ACK, ACK | 0x01, RST, RST | ACK] {
            prop_assert!(decision.covers_request(&segment(flags, seq, ack, payload)));
            prop_assert!(decision.covers_reply(&segment(flags, seq, ack, payload)));
        }
    }

    /// TCP Fast Open: the server may acknowledge the SYN alone, or its data, but no more.
    #[test]
    fn fast_open_is_covered(isn: u32, payload in 0_u16..1460, taken in 0_u16..1460) {
        let decision = Connection::opened_by(&segment(SYN, isn, 0, payload), Endpoint::NONE);
        let ack = isn.wrapping_add(1).wrapping_add(u32::from(taken));
        prop_assert_eq!(decision.covers_reply(&segment(SYN | ACK, 9, ack, 0)), taken <= payload);
    }
}
