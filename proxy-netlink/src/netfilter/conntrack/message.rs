// SPDX-License-Identifier: Apache-2.0

//! Messages of ctnetlink. The parent module decides when they are sent.
//!
//! Numbers without another source are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute as Attribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoInfo,
    ProtoInfoTCP, ProtoTuple, Protocol, Status, Tuple as TuplePart,
};

use super::{Ending, Entry, Filter, TcpState, Tuple};

/// `CTA_ID`.
const ID: u16 = 12;
/// `CTA_NAT_DST`.
const NAT_DST: u16 = 13;
/// `CTA_ZONE`.
const ZONE: u16 = 18;
/// `CTA_FILTER` (Linux 5.8).
const FILTER: u16 = 25;
/// `CTA_STATUS_MASK` (Linux 5.15).
const STATUS_MASK: u16 = 26;
/// `CTA_TUPLE_ZONE`: the zone of one direction only.
const TUPLE_ZONE: u16 = 3;

/// `CTA_PROTOINFO_TCP_FLAGS_ORIGINAL`.
const TCP_FLAGS_ORIGINAL: u16 = 4;
/// `CTA_PROTOINFO_TCP_FLAGS_REPLY`.
const TCP_FLAGS_REPLY: u16 = 5;

/// `IP_CT_TCP_FLAG_BE_LIBERAL` of `linux/netfilter/nf_conntrack_tcp.h`.
const BE_LIBERAL: u8 = 0x08;
/// The flags of a connection that conntrack picks up after its start; the other one is `IP_CT_TCP_FLAG_SACK_PERM`. The
/// connection's options and windows are not known.
const PICKED_UP: u8 = BE_LIBERAL | 0x02;

/// Returns the entry in a message, or `None` if the message does not concern a TCP connection.
pub(super) fn entry(message: ConntrackMessage) -> Option<Entry> {
    let ConntrackMessage::New(attributes) = message else {
        return None;
    };
    let mut original = None;
    let mut reply = None;
    let mut id = None;
    let mut status = Status::empty();
    let mut tcp_state = None;
    let mut liberal = false;
    let mut remaining = None;
    let mut zone = 0;
    for attribute in attributes {
        match attribute {
            Attribute::CtaTupleOrig(parts) => {
                zone = zone_of(&parts).unwrap_or(zone);
                original = tuple_of(&parts);
            }
            Attribute::CtaTupleReply(parts) => reply = tuple_of(&parts),
            Attribute::CtaStatus(value) => status = value,
            Attribute::CtaTimeout(seconds) => {
                remaining = Some(Duration::from_secs(u64::from(seconds)));
            }
            Attribute::CtaProtoInfo(infos) => (tcp_state, liberal) = tcp_of(&infos),
            Attribute::Other(other) => match other.kind() {
                ID => id = value_of(&other).map(u32::from_be_bytes),
                ZONE => zone = value_of(&other).map_or(zone, u16::from_be_bytes),
                _ => {}
            },
            _ => {}
        }
    }
    Some(Entry {
        original: original?,
        reply: reply?,
        status,
        tcp_state,
        liberal,
        remaining,
        id: id?,
        zone,
    })
}

/// Creates the request for the entries that a filter accepts.
pub(super) fn list(filter: Filter) -> ConntrackMessage {
    // Bits of `net/netfilter/nf_internals.h` that select the compared parts of the tuple.
    const IP_DST: u32 = 1 << 1;
    const PROTO_NUM: u32 = 1 << 3;
    const PROTO_DST_PORT: u32 = 1 << 5;
    /// `CTA_FILTER_ORIG_FLAGS`. The corresponding attribute for the reply makes Linux 5.8 to 5.15 send nothing at all
    /// (<https://github.com/svinota/pyroute2/pull/857>).
    const ORIG_FLAGS: u16 = 1;

    let tcp = ProtoTuple::Protocol(Protocol::Tcp);
    let (parts, compared) = match filter {
        // For IPv6 addresses Linux inverts the comparison: it would omit exactly the requested entries. Seen on 6.18;
        // <https://github.com/torvalds/linux/blob/v6.12/net/netfilter/nf_conntrack_netlink.c#L1133>
        Filter::UnansweredTo(address) if address.is_ipv6() => (
            vec![TuplePart::Proto(vec![
                tcp,
                ProtoTuple::DestinationPort(address.port()),
            ])],
            PROTO_NUM | PROTO_DST_PORT,
        ),
        Filter::UnansweredTo(address) => (
            vec![
                TuplePart::Ip(vec![IPTuple::DestinationAddress(address.ip())]),
                TuplePart::Proto(vec![tcp, ProtoTuple::DestinationPort(address.port())]),
            ],
            IP_DST | PROTO_NUM | PROTO_DST_PORT,
        ),
    };
    let (mask, value) = filter.status();
    let flags = DefaultNla::new(ORIG_FLAGS, compared.to_ne_bytes().to_vec());
    // The kernel requires the flag `NLA_F_NESTED` here, and `Attribute::Other` drops it.
    ConntrackMessage::Other {
        message_type: ConntrackMessageType::Get.into(),
        attributes: vec![
            raw(&Attribute::CtaTupleOrig(parts)),
            nested(FILTER, &[flags]),
            raw(&Attribute::CtaStatus(value)),
            DefaultNla::new(STATUS_MASK, mask.bits().to_be_bytes().to_vec()),
        ],
    }
}

/// Creates the request for the entry that has `tuple` in one of its directions, in the default zone.
pub(super) fn find(tuple: &Tuple) -> ConntrackMessage {
    ConntrackMessage::Get(vec![Attribute::CtaTupleOrig(parts_of(tuple))])
}

/// Creates the request that deletes an entry. The id protects a later entry with the same tuples.
pub(super) fn delete(entry: &Entry) -> ConntrackMessage {
    ConntrackMessage::Delete(vec![
        // Without the tuple the kernel would delete all entries.
        Attribute::CtaTupleOrig(parts_of(&entry.original)),
        Attribute::Other(DefaultNla::new(ZONE, entry.zone.to_be_bytes().to_vec())),
        Attribute::Other(DefaultNla::new(ID, entry.id.to_be_bytes().to_vec())),
    ])
}

/// Creates the request that creates the entry of an established connection whose destination is translated to `vip`.
///
/// The reply tuple is that of a connection without translation: the kernel derives the translated one from
/// `CTA_NAT_DST`, and only then sets the status that applies the translation to packets.
pub(super) fn create(original: &Tuple, vip: SocketAddr, timeout: Duration) -> ConntrackMessage {
    let reply = Tuple::new(original.destination, original.source);
    let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
    // The value and the mask (`struct nf_ct_tcp_flags`), which the crate parses but cannot construct.
    let flags = |kind| ProtoInfoTCP::Other(DefaultNla::new(kind, vec![PICKED_UP, PICKED_UP]));
    ConntrackMessage::New(vec![
        Attribute::CtaTupleOrig(parts_of(original)),
        Attribute::CtaTupleReply(parts_of(&reply)),
        Attribute::CtaStatus(Status::Confirmed | Status::Assured | Status::SeenReply),
        Attribute::CtaTimeout(seconds),
        Attribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![
            ProtoInfoTCP::State(TcpState::Established.into()),
            flags(TCP_FLAGS_ORIGINAL),
            flags(TCP_FLAGS_REPLY),
        ])]),
        Attribute::Other(destination_nat(vip)),
    ])
}

/// Returns `CTA_NAT_DST` with exactly this address and port.
fn destination_nat(vip: SocketAddr) -> DefaultNla {
    const V4_MINIP: u16 = 1;
    const V4_MAXIP: u16 = 2;
    const PROTO: u16 = 3;
    const V6_MINIP: u16 = 4;
    const V6_MAXIP: u16 = 5;
    const PORT_MIN: u16 = 1;
    const PORT_MAX: u16 = 2;

    let (min, max, address) = match vip.ip() {
        IpAddr::V4(v4) => (V4_MINIP, V4_MAXIP, v4.octets().to_vec()),
        IpAddr::V6(v6) => (V6_MINIP, V6_MAXIP, v6.octets().to_vec()),
    };
    let port = vip.port().to_be_bytes().to_vec();
    let ports = [
        DefaultNla::new(PORT_MIN, port.clone()),
        DefaultNla::new(PORT_MAX, port),
    ];
    nested(
        NAT_DST,
        &[
            DefaultNla::new(min, address.clone()),
            DefaultNla::new(max, address),
            nested(PROTO, &ports),
        ],
    )
}

/// Returns an attribute in the form in which it is sent.
fn raw(attribute: &Attribute) -> DefaultNla {
    let flag = if attribute.is_nested() {
        NLA_F_NESTED
    } else {
        0
    };
    DefaultNla::new(attribute.kind() | flag, bytes_of(attribute))
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

fn parts_of(tuple: &Tuple) -> Vec<TuplePart> {
    vec![
        TuplePart::Ip(vec![
            IPTuple::SourceAddress(tuple.source.ip()),
            IPTuple::DestinationAddress(tuple.destination.ip()),
        ]),
        TuplePart::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(tuple.source.port()),
            ProtoTuple::DestinationPort(tuple.destination.port()),
        ]),
    ]
}

/// Returns the tuple if it is one of TCP.
fn tuple_of(parts: &[TuplePart]) -> Option<Tuple> {
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port) = (None, None);
    let mut protocol = None;
    for part in parts {
        match part {
            TuplePart::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(ip) => source = Some(*ip),
                        IPTuple::DestinationAddress(ip) => destination = Some(*ip),
                        _ => {}
                    }
                }
            }
            TuplePart::Proto(fields) => {
                for field in fields {
                    match field {
                        ProtoTuple::Protocol(value) => protocol = Some(*value),
                        ProtoTuple::SourcePort(value) => source_port = Some(*value),
                        ProtoTuple::DestinationPort(value) => destination_port = Some(*value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (protocol == Some(Protocol::Tcp)).then_some(())?;
    Some(Tuple::new(
        SocketAddr::new(source?, source_port?),
        SocketAddr::new(destination?, destination_port?),
    ))
}

/// Returns the zone that applies to this direction only.
fn zone_of(parts: &[TuplePart]) -> Option<u16> {
    parts.iter().find_map(|part| match part {
        TuplePart::Other(other) if other.kind() == TUPLE_ZONE => {
            value_of(other).map(u16::from_be_bytes)
        }
        _ => None,
    })
}

/// Returns the TCP state, and true if both directions are liberal.
fn tcp_of(infos: &[ProtoInfo]) -> (Option<TcpState>, bool) {
    let mut state = None;
    let mut liberal = (false, false);
    for info in infos {
        let ProtoInfo::TCP(parts) = info else {
            continue;
        };
        for part in parts {
            match part {
                ProtoInfoTCP::State(value) => state = Some(TcpState::from(*value)),
                ProtoInfoTCP::OriginalFlags(flags) => liberal.0 = flags.flags & BE_LIBERAL != 0,
                ProtoInfoTCP::ReplyFlags(flags) => liberal.1 = flags.flags & BE_LIBERAL != 0,
                _ => {}
            }
        }
    }
    (state, liberal.0 && liberal.1)
}

/// Returns the value of an attribute if it has the expected length.
fn value_of<const N: usize>(attribute: &DefaultNla) -> Option<[u8; N]> {
    bytes_of(attribute).try_into().ok()
}

fn bytes_of(attribute: &impl Nla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::SynSent,
            3 => Self::Established,
            7 => Self::Over(Ending::TimeWait),
            8 => Self::Over(Ending::Close),
            other => Self::Other(other),
        }
    }
}

impl From<TcpState> for u8 {
    fn from(state: TcpState) -> Self {
        match state {
            TcpState::SynSent => 1,
            TcpState::Established => 3,
            TcpState::Over(Ending::TimeWait) => 7,
            TcpState::Over(Ending::Close) => 8,
            TcpState::Other(number) => number,
        }
    }
}
