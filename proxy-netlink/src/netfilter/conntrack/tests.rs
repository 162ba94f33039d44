// SPDX-License-Identifier: Apache-2.0

//! Compares messages byte by byte with those that Linux 6.18 accepted and sent, and tests the parsers with arbitrary
//! data.

use netlink_packet_core::{Emitable as _, NetlinkSerializable as _, ParseableParametrized as _};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner};
use proptest::prelude::*;

use super::*;

/// The subsystem conntrack, followed by the message types.
const CONNTRACK: u16 = 1 << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Returns the type of a message, and its attributes in hexadecimal.
fn sent(message: ConntrackMessage) -> (u16, String) {
    let message = NetfilterMessage::new(NetfilterHeader::new(Family::IPv4, 0, 0), message);
    let mut bytes = vec![0; message.inner.buffer_len()];
    message.inner.emit(&mut bytes);
    let words: Vec<_> = bytes
        .chunks_exact(4)
        .map(|word| format!("{:08x}", u32::from_be_bytes(word.try_into().expect("four"))))
        .collect();
    (message.message_type(), words.join(" "))
}

/// Returns the entry in a message that consists of these bytes.
fn received(bytes: &[u8]) -> Option<Entry> {
    let mut payload = vec![2, 0, 0, 0];
    payload.extend(bytes);
    let message = NetfilterMessage::parse_with_param(&payload, CONNTRACK).ok()?;
    match message.inner {
        NetfilterMessageInner::Conntrack(message) => message::entry(message),
        _ => None,
    }
}

fn bytes(words: &str) -> Vec<u8> {
    let digits: String = words.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits"))
        .collect()
}

fn stale() -> Entry {
    let cluster_ip = address("10.96.0.1:443");
    let client = address("10.244.0.10:40000");
    Entry {
        original: Tuple::new(client, cluster_ip),
        reply: Tuple::new(cluster_ip, client),
        status: Status::Confirmed,
        tcp_state: Some(TcpState::SynSent),
        liberal: false,
        remaining: Some(Duration::from_secs(100)),
        id: 0x0102_0304,
        zone: 7,
    }
}

#[cfg(target_endian = "little")]
mod golden {
    use super::*;

    const TUPLE: &str = "3400 0180 \
        1400 0180 0800 0100 0af4 000a 0800 0200 0a60 0001 \
        1c00 0280 0500 0100 0600 0000 0600 0200 9c40 0000 0600 0300 01bb 0000";
    const REPLY: &str = "3400 0280 \
        1400 0180 0800 0100 0a60 0001 0800 0200 0af4 000a \
        1c00 0280 0500 0100 0600 0000 0600 0200 01bb 0000 0600 0300 9c40 0000";
    /// The status confirmed, assured, and seen reply; a timeout of one day.
    const LIVE: &str = "0800 0300 0000 000e 0800 0700 0001 5180";
    /// The state established; liberal, with unknown options, in both directions.
    const TCP: &str =
        "2000 0480 1c00 0180 0500 0100 0300 0000 0600 0400 0a0a 0000 0600 0500 0a0a 0000";

    fn words(parts: &[&str]) -> String {
        let digits: String = parts.concat().split_whitespace().collect();
        let at = |at| &digits[at..at + 8];
        (0..digits.len())
            .step_by(8)
            .map(at)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn creation() {
        let original = stale().original;
        let day = Duration::from_hours(24);
        let message = message::create(&original, address("10.96.0.2:6443"), day);
        // The minimum and the maximum of the address and of the port are equal.
        let nat = "2800 0d00 0800 0100 0a60 0002 0800 0200 0a60 0002 \
            1400 0380 0600 0100 192b 0000 0600 0200 192b 0000";
        let expected = words(&[TUPLE, REPLY, LIVE, TCP, nat]);
        assert_eq!(sent(message), (CONNTRACK, expected));
    }

    #[test]
    fn creation_for_ipv6() {
        let original = Tuple::new(address("[fd44::10]:40000"), address("[fd00::1]:443"));
        let day = Duration::from_hours(24);
        let (_, words) = sent(message::create(&original, address("[fd00::2]:443"), day));
        let vip = "fd000000 00000000 00000000 00000002";
        let nat = format!(
            "40000d00 14000400 {vip} 14000500 {vip} 14000380 06000100 01bb0000 06000200 01bb0000"
        );
        assert!(words.ends_with(&nat), "{words}");
    }

    #[test]
    fn deletion_names_tuple_zone_and_id() {
        let expected = words(&[TUPLE, "0600 1200 0007 0000 0800 0c00 0102 0304"]);
        assert_eq!(sent(message::delete(&stale())), (DELETE, expected));
    }

    #[test]
    fn look_up() {
        let expected = words(&[TUPLE]);
        assert_eq!(sent(message::find(&stale().original)), (GET, expected));
    }

    #[test]
    fn lists() {
        let unanswered = message::list(Filter::UnansweredTo(address("10.96.0.1:443")));
        let expected = words(&[
            "2400 0180 0c00 0180 0800 0200 0a60 0001 \
             1400 0280 0500 0100 0600 0000 0600 0300 01bb 0000",
            // Destination address, protocol and destination port of the original direction.
            "0c00 1980 0800 0100 2a00 0000",
            // Neither a reply nor DNAT.
            "0800 0300 0000 0000 0800 1a00 0000 0022",
        ]);
        assert_eq!(sent(unanswered), (GET, expected));
    }

    /// The kernel's response to the look-up of an entry that was created as above.
    #[test]
    fn entry() {
        let vip_reply = REPLY.replace("0a60 0001", "0a60 0002");
        let rest = "0800 0300 0000 01ae 0800 0800 0000 0000 \
            0800 0c00 51de 5232 0800 0b00 0000 0002 0800 0700 0006 977f \
            3000 0480 2c00 0180 0500 0100 0300 0000 0500 0200 0000 0000 \
            0500 0300 0000 0000 0600 0400 0a00 0000 0600 0500 0a00 0000 \
            1c00 1880 0800 0100 0000 0000 0800 0200 0000 0000 0800 0300 0000 0000";
        let read = received(&bytes(&words(&[TUPLE, &vip_reply, rest]))).expect("an entry");
        assert_eq!(read.original, stale().original);
        let vip = address("10.96.0.2:443");
        assert_eq!(read.reply, Tuple::new(vip, stale().original.source));
        assert!(read.status.contains(Status::DstNat | Status::Assured));
        assert_eq!(read.tcp_state, Some(TcpState::Established));
        assert!(read.liberal);
        assert_eq!(read.remaining, Some(Duration::from_secs(431_999)));
        assert_eq!((read.id, read.zone), (0x51de_5232, 0));
        assert!(takes_over(&read, &stale().original, &read.reply));
        assert!(!Filter::UnansweredTo(read.original.destination).accepts(&read));

        // The zone is set in both directions, or in the original direction only, within its tuple.
        let own_zone = TUPLE.replacen("3400", "3c00", 1) + " 0600 0300 0009 0000";
        for zoned in [
            [TUPLE, &vip_reply, "0600 1200 0009 0000", rest],
            [&own_zone, &vip_reply, "", rest],
        ] {
            let read = received(&bytes(&words(&zoned))).expect("an entry");
            assert_eq!(read.zone, 9);
        }
        let udp = TUPLE.replace("0500 0100 0600", "0500 0100 1100");
        assert_eq!(received(&bytes(&words(&[&udp, &vip_reply, rest]))), None);
        assert_eq!(received(&bytes(&words(&[TUPLE, rest]))), None);
    }
}

#[test]
fn an_entry_that_spoils_the_connection_does_not_take_over() {
    let original = stale().original;
    let reply = Tuple::new(address("10.96.0.2:443"), original.source);
    let right = Entry {
        reply,
        status: Status::Confirmed | Status::Assured | Status::SeenReply | Status::DstNat,
        tcp_state: Some(TcpState::Established),
        liberal: true,
        ..stale()
    };
    assert!(takes_over(&right, &original, &reply));
    let mut wrong = vec![right.clone(); 4];
    // The windows of an earlier connection.
    wrong[0].liberal = false;
    wrong[1].tcp_state = Some(TcpState::Over(Ending::TimeWait));
    // The client's port was translated.
    wrong[2].reply.destination.set_port(1);
    // The connection of another service.
    wrong[3].original.destination = address("10.96.0.3:443");
    for entry in wrong {
        assert!(!takes_over(&entry, &original, &reply), "{entry:?}");
    }
}

#[test]
fn the_kernel_tells_its_timeouts() {
    let syn_sent = tcp_timeout(TcpState::SynSent);
    match syn_sent {
        Ok(timeout) => assert!(timeout > Duration::ZERO),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
    }
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into()));
    let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into()));
    (prop_oneof![v4, v6], any::<(u16, u16)>()).prop_map(|((source, destination), ports)| {
        Tuple::new(
            SocketAddr::new(source, ports.0),
            SocketAddr::new(destination, ports.1),
        )
    })
}

proptest! {
    /// The parser returns the entry that was requested.
    #[test]
    fn creations_survive_the_round_trip(original in any_tuple(), vip: ([u8; 4], u16), seconds: u32) {
        let timeout = Duration::from_secs(seconds.into());
        let message = message::create(&original, vip.into(), timeout);
        let ConntrackMessage::New(mut attributes) = message else {
            panic!("not a creation");
        };
        let ConntrackMessage::Delete(deletion) = message::delete(&Entry { original, ..stale() })
        else {
            panic!("not a deletion");
        };
        // The attributes for zone and id.
        attributes.extend(deletion.into_iter().skip(1));
        let message = ConntrackMessage::New(attributes);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let entry = received(&bytes).expect("an entry");
        prop_assert_eq!(entry.original, original);
        prop_assert_eq!(entry.reply, Tuple::new(original.destination, original.source));
        prop_assert_eq!(entry.tcp_state, Some(TcpState::Established));
        prop_assert_eq!(entry.remaining, Some(timeout));
        prop_assert_eq!((entry.id, entry.zone), (stale().id, stale().zone));
        prop_assert!(entry.liberal);
    }

    #[test]
    fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = received(&bytes);
    }

    /// Messages that are almost valid reach deeper code.
    #[test]
    fn anything_like_an_entry_can_be_read(
        original in any_tuple(),
        spoiled in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let message = message::create(&original, address("10.96.0.2:443"), Duration::ZERO);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        for (at, byte) in spoiled {
            *at.get_mut(&mut bytes) = byte;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        let _ = received(&bytes);
    }
}
