// SPDX-License-Identifier: Apache-2.0

//! The fuzz target for responses of connection tracking.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netlink_packet_netfilter::conntrack::ConntrackMessage;

use super::{Entry, Filter, Status, TcpState, Tuple, message, takes_over};
use crate::fuzzing::{answers, choice, echo};

/// Processes a datagram or the ends of a connection; the first byte selects which.
///
/// The message that deletes an entry must identify this entry, and an entry that is created must be parsed as that of
/// the connection.
pub fn conntrack(data: &[u8]) {
    let (kind, rest) = choice(data);
    if kind % 4 == 0 {
        create(rest);
    } else {
        for entry in answers(rest).into_iter().filter_map(message::entry) {
            check(&entry);
        }
    }
}

fn check(entry: &Entry) {
    let filter = Filter::UnansweredTo(entry.original.destination);
    let answered = entry.status.intersects(Status::SeenReply | Status::DstNat);
    assert_eq!(filter.accepts(entry), !answered);
    if entry.original.source.is_ipv4() != entry.original.destination.is_ipv4() {
        return;
    }
    // The attributes after the tuple are the same for every entry, and a deletion contains no state. With those of the
    // reply direction, it is an entry again.
    let ConntrackMessage::Delete(mut attributes) = message::delete(entry) else {
        panic!("not a deletion");
    };
    let ConntrackMessage::New(whole) =
        message::create(&entry.reply, entry.reply.source, Duration::ZERO)
    else {
        panic!("not a creation");
    };
    attributes.push(whole[1].clone());
    let read: ConntrackMessage = echo(entry.original.family(), ConntrackMessage::New(attributes))
        .expect("a message of conntrack");
    let named = message::entry(read).expect("it has tuples and an id");
    assert_eq!(
        (named.original, named.id, named.zone),
        (entry.original, entry.id, entry.zone)
    );
}

/// Creates the entry of a live connection and parses it.
fn create(data: &[u8]) {
    let Some((octets, rest)) = data.split_first_chunk::<48>() else {
        return;
    };
    let Some((ports, rest)) = rest.split_first_chunk::<6>() else {
        return;
    };
    let (family, _) = choice(rest);
    let end = |at: usize| {
        let octets: [u8; 16] = octets[16 * at..][..16].try_into().expect("sixteen");
        let ip = match family % 2 {
            0 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            _ => IpAddr::from(octets),
        };
        SocketAddr::new(ip, u16::from_be_bytes([ports[2 * at], ports[2 * at + 1]]))
    };
    let (client, service, vip) = (end(0), end(1), end(2));
    let original = Tuple::new(client, service);
    let timeout = Duration::from_secs(u64::from(u16::from_be_bytes([ports[0], ports[5]])));
    let family = original.family();
    let ConntrackMessage::New(mut attributes) = message::create(&original, vip, timeout) else {
        panic!("not a creation");
    };
    // The kernel assigns the id.
    let ConntrackMessage::Delete(of_deletion) = message::delete(&entry_of(&original)) else {
        panic!("not a deletion");
    };
    attributes.extend(of_deletion.into_iter().skip(2));
    let read = echo(family, ConntrackMessage::New(attributes)).expect("a message of conntrack");
    let entry = message::entry(read).expect("a whole entry");
    assert_eq!(entry.original, original);
    assert_eq!(entry.reply, Tuple::new(service, client));
    assert_eq!(entry.remaining, Some(timeout));
    let reply = Tuple::new(vip, client);
    let translated = Entry { reply, ..entry };
    assert!(takes_over(&translated, &original, &reply));
    let elsewhere = Entry {
        reply: original,
        ..translated
    };
    assert!(original == reply || !takes_over(&elsewhere, &original, &reply));
}

fn entry_of(original: &Tuple) -> Entry {
    Entry {
        original: *original,
        reply: *original,
        status: Status::empty(),
        tcp_state: Some(TcpState::SynSent),
        liberal: false,
        remaining: None,
        id: 1,
        zone: 0,
    }
}
