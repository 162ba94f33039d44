// SPDX-License-Identifier: Apache-2.0

//! The fuzz target for events of the kernel.

use super::datagram::{actor, in_netfilter_events, in_route_events};
use super::{Event, Interest};
use crate::fuzzing::choice;

/// Processes a datagram of route netlink or netfilter; the first byte selects which.
///
/// Only relevant events may be reported, and an event that is found must be found again when more bytes follow the
/// datagram: the parser must not read beyond a message.
pub fn events(data: &[u8]) {
    let (kind, datagram) = choice(data);
    let interest = Interest {
        addresses: vec![[10, 96, 0, 2].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into()],
        local_routes: vec![[10, 96, 0, 1].into()],
        tables: vec!["proxy-agent".to_owned()],
        chains: vec![("raw", "PREROUTING"), ("filter", "INPUT")],
        filters: vec![("filter", "INPUT")],
        ..Interest::default()
    };
    let longer = [datagram, &[0xff; 64]].concat();
    let look = |datagram: &[u8]| match kind % 2 {
        0 => in_route_events(datagram, &interest),
        _ => in_netfilter_events(datagram, &interest),
    };
    if let Some((event, port)) = look(datagram) {
        match &event {
            Event::Address(ip) => assert!(interest.addresses.contains(ip)),
            Event::LocalRoute(ip) => assert!(interest.local_routes.contains(ip)),
            Event::Table(name) => {
                let mut watched = interest.chains.iter().map(|(table, _)| *table);
                assert!(interest.tables.contains(name) || watched.any(|table| table == name));
            }
            Event::Link | Event::Route | Event::TrafficControl => assert_eq!(kind % 2, 0),
            Event::Overrun => panic!("{event} is in no datagram"),
        }
        assert_eq!(look(&longer), Some((event, port)));
    }
    if let Some(by) = actor(datagram) {
        assert_eq!(actor(&longer), Some(by));
    }
}
