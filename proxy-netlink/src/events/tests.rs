// SPDX-License-Identifier: Apache-2.0

//! Tests which events are reported, and that any bytes from the kernel can be processed.

use netlink_packet_core::NetlinkMessage;
use netlink_packet_netfilter::nftables::{
    GenAttribute, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
    TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::tc::TcMessage;
use proptest::prelude::*;

use super::*;

fn interest() -> Interest {
    Interest {
        addresses: vec!["10.96.0.2".parse().unwrap()],
        tables: vec!["proxy-agent".to_owned()],
        chains: vec![("raw", "PREROUTING"), ("filter", "INPUT")],
        filters: vec![("filter", "INPUT")],
        ..Interest::default()
    }
}

fn bytes<M: netlink_packet_core::NetlinkSerializable>(message: NetlinkMessage<M>) -> Vec<u8> {
    let mut message = message;
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    buffer
}

fn route(message: RouteNetlinkMessage) -> Vec<u8> {
    bytes(NetlinkMessage::from(message))
}

fn netfilter(message: NfTablesMessage) -> Vec<u8> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    bytes(NetlinkMessage::from(NetfilterMessage::new(header, message)))
}

fn address(ip: &str) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.attributes = vec![AddressAttribute::Local(ip.parse().unwrap())];
    message
}

fn rule(table: &str, chain: &str) -> RuleMessage {
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
        ],
    }
}

fn what(found: Option<(Event, u32)>) -> Option<Event> {
    found.map(|(event, _)| event)
}

#[test]
fn the_process_is_named_behind_its_change() {
    let newgen = |attributes| netfilter(NfTablesMessage::NewGen(GenMessage { attributes }));
    let whole = newgen(vec![
        GenAttribute::Id(7),
        GenAttribute::ProcPid(123),
        GenAttribute::ProcName("nft".to_owned()),
    ]);
    let by = actor(&whole).unwrap();
    assert_eq!(by.to_string(), "nft (pid 123)");
    let rule = netfilter(NfTablesMessage::NewRule(rule("proxy-agent", "any")));
    assert_eq!(actor(&rule), None);
    // Kernels before Linux 4.14 report only the port ID.
    let mut old = newgen(vec![GenAttribute::Id(7)]);
    old[12..16].copy_from_slice(&77_u32.to_ne_bytes());
    assert_eq!(actor(&old).unwrap().to_string(), "pid 77");
    let mut both = rule;
    both.extend(whole);
    assert_eq!(actor(&both), Some(by));
}

#[test]
fn the_port_of_an_event_is_that_of_its_message() {
    let mut datagram = route(RouteNetlinkMessage::NewAddress(address("10.0.0.1")));
    let mut second = route(RouteNetlinkMessage::NewAddress(address("10.96.0.2")));
    second[12..16].copy_from_slice(&4711_u32.to_ne_bytes());
    datagram.extend(second);
    let (_, port) = in_route_events(&datagram, &interest()).unwrap();
    assert_eq!(port, 4711);
}

#[test]
fn addresses_count_if_they_are_vips() {
    let vip = address("10.96.0.2");
    let event = Some(Event::Address("10.96.0.2".parse().unwrap()));
    for message in [
        RouteNetlinkMessage::NewAddress(vip.clone()),
        RouteNetlinkMessage::DelAddress(vip),
    ] {
        assert_eq!(what(in_route_events(&route(message), &interest())), event);
    }
    let other = RouteNetlinkMessage::NewAddress(address("10.0.0.1"));
    assert_eq!(what(in_route_events(&route(other), &interest())), None);
}

#[test]
fn links_count_and_so_do_removed_filters() {
    let link = RouteNetlinkMessage::NewLink(LinkMessage::default());
    assert_eq!(
        what(in_route_events(&route(link), &interest())),
        Some(Event::Link)
    );
    let filter = RouteNetlinkMessage::DelTrafficFilter(TcMessage::default());
    let removed = Some(Event::TrafficControl);
    assert_eq!(what(in_route_events(&route(filter), &interest())), removed);
    // Adding a filter, as this program does itself, removes nothing.
    let filter = RouteNetlinkMessage::NewTrafficFilter(TcMessage::default());
    assert_eq!(what(in_route_events(&route(filter), &interest())), None);
}

#[test]
fn all_of_our_table_counts_and_of_others_filters_and_removals_where_our_rules_are() {
    let ours = Some(Event::Table("proxy-agent".to_owned()));
    let raw = Some(Event::Table("raw".to_owned()));
    let filter = Some(Event::Table("filter".to_owned()));
    let cases = [
        (NfTablesMessage::NewRule(rule("proxy-agent", "any")), &ours),
        (NfTablesMessage::DeleteRule(rule("raw", "PREROUTING")), &raw),
        (NfTablesMessage::NewRule(rule("raw", "PREROUTING")), &None),
        (NfTablesMessage::DeleteRule(rule("raw", "cali-x")), &None),
        (
            NfTablesMessage::DeleteRule(rule("nat", "PREROUTING")),
            &None,
        ),
        (
            NfTablesMessage::DeleteTable(TableMessage {
                attributes: vec![TableAttribute::Name("raw".to_owned())],
            }),
            &raw,
        ),
        (NfTablesMessage::NewRule(rule("filter", "INPUT")), &filter),
        (
            NfTablesMessage::DeleteRule(rule("filter", "INPUT")),
            &filter,
        ),
        (NfTablesMessage::NewRule(rule("filter", "FORWARD")), &None),
        (
            NfTablesMessage::NewTable(TableMessage {
                attributes: vec![TableAttribute::Name("filter".to_owned())],
            }),
            &None,
        ),
    ];
    for (message, event) in cases {
        let text = format!("{message:?}");
        let found = what(in_netfilter_events(&netfilter(message), &interest()));
        assert_eq!(&found, event, "{text}");
    }
}

#[test]
fn the_second_message_of_a_datagram_is_seen() {
    let mut datagram = route(RouteNetlinkMessage::NewAddress(address("10.0.0.1")));
    datagram.extend(route(RouteNetlinkMessage::NewAddress(address("10.96.0.2"))));
    assert!(in_route_events(&datagram, &interest()).is_some());
}

proptest! {
    /// Any bytes can be processed, including truncated messages and data that is not netlink.
    #[test]
    fn any_bytes_are_read(
        datagram in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0_u16..0x0b00,
        cut in 0_usize..80,
    ) {
        let _ = in_route_events(&datagram, &interest());
        let _ = in_netfilter_events(&datagram, &interest());
        let _ = actor(&datagram);
        // The header is valid, so that the payload is parsed.
        let mut message = vec![0; 16];
        message.extend(&datagram);
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.truncate(message.len().saturating_sub(cut));
        let _ = in_route_events(&message, &interest());
        let _ = in_netfilter_events(&message, &interest());
        let _ = actor(&message);
    }
}
