// SPDX-License-Identifier: Apache-2.0

//! The expressions of this project's rules, in the form in which `nft list ruleset` displays them.

mod set;

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

pub use self::set::{Part, SetOperation, set};

/// Payload bases (`enum nft_payload_bases`).
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const PROTOCOL_TCP: u8 = 6;
/// `lo` is the first link of every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// The end of a connection whose fields an expression reads from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source address and port.
    Source,
    /// The destination address and port.
    Destination,
}

/// `ip daddr ADDRESS meta l4proto tcp tcp dport PORT`, or the same for the source.
///
/// The address is compared first, because this comparison ends the rule for almost every packet of the node.
#[must_use]
pub fn endpoint(end: End, ip: IpAddr, port: u16) -> Vec<Expressions> {
    let (offset, address) = address_field(end, ip);
    let mut expressions = Vec::from(payload(NETWORK_HEADER, offset, address));
    expressions.extend(is_tcp());
    expressions.extend(payload(
        TRANSPORT_HEADER,
        port_offset(end),
        port.to_be_bytes().to_vec(),
    ));
    expressions
}

/// `meta l4proto tcp`. nft omits it if a match on the TCP header follows.
#[must_use]
pub fn is_tcp() -> [Expressions; 2] {
    is_protocol(PROTOCOL_TCP)
}

/// `ip daddr ADDRESS`, or the same for the source.
#[must_use]
pub fn address(end: End, ip: IpAddr) -> Vec<Expressions> {
    let (offset, address) = address_field(end, ip);
    Vec::from(payload(NETWORK_HEADER, offset, address))
}

/// `ip daddr NETWORK`, or the same for the source.
#[must_use]
pub fn network(end: End, network: IpNet) -> Vec<Expressions> {
    let octets = |ip| address_field(end, ip).1;
    let (offset, value) = address_field(end, network.network());
    let mask = octets(network.netmask());
    let length = length_of(&value);
    vec![
        load(NETWORK_HEADER, offset, length, Register::Reg1),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(length),
            Bitwise::Mask(DataAttribute::Value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; value.len()])),
        ]),
        compare(Operator::Equal, value),
    ]
}

/// `iif LINK`.
#[must_use]
pub fn by_link(index: u32) -> [Expressions; 2] {
    [
        meta(MetaKey::Iif),
        compare(Operator::Equal, index.to_ne_bytes().to_vec()),
    ]
}

/// `iif "lo"`.
#[must_use]
pub fn from_loopback() -> [Expressions; 2] {
    by_link(LOOPBACK_IFINDEX)
}

/// `iif != "lo"`.
#[must_use]
pub fn not_from_loopback() -> [Expressions; 2] {
    [
        meta(MetaKey::Iif),
        compare(Operator::NotEqual, LOOPBACK_IFINDEX.to_ne_bytes().to_vec()),
    ]
}

/// `socket transparent <= 1`: the packet belongs to a socket of this network namespace, whether the connection is
/// established, being opened or waiting for late packets; or a listener was found for it.
///
/// The value does not matter, but only with a comparison does nft display the expression in a form that it can parse
/// again. Source: `nft_socket.c`, Linux 4.18; docs/kernel-facts.md describes sockets that do not exist yet or any more.
#[must_use]
pub fn has_socket() -> [Expressions; 2] {
    /// `NFT_SOCKET_TRANSPARENT`.
    const TRANSPARENT: u32 = 0;
    [
        socket(TRANSPARENT, None),
        compare(Operator::LessThanEqual, vec![1]),
    ]
}

/// `socket cgroupv2 level LEVEL "PATH"`: the socket was created in the cgroup with this id, or below it. In the raw
/// output hook the socket is that of the packet, so the match concerns the process that sends it (Linux 5.13).
#[must_use]
pub fn socket_cgroup(level: u8, id: u64) -> [Expressions; 2] {
    /// `NFT_SOCKET_CGROUPV2`.
    const CGROUP: u32 = 3;
    [
        socket(CGROUP, Some(level)),
        compare(Operator::Equal, id.to_ne_bytes().to_vec()),
    ]
}

/// The attributes of `enum nft_socket_attributes`.
fn socket(key: u32, level: Option<u8>) -> Expressions {
    const KEY: u16 = 1;
    const REGISTER: u16 = 2;
    const LEVEL: u16 = 3;
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let mut attributes = vec![
        number(KEY, key),
        number(REGISTER, u32::from(Register::Reg1)),
    ];
    attributes.extend(level.map(|level| number(LEVEL, level.into())));
    Expressions::Other {
        expression_type: "socket".to_owned(),
        attributes,
    }
}

/// `meta l4proto PROTOCOL`.
#[must_use]
pub fn is_protocol(protocol: u8) -> [Expressions; 2] {
    [
        meta(MetaKey::L4Proto),
        compare(Operator::Equal, vec![protocol]),
    ]
}

/// `icmp type != TYPE`, for a packet that is known to be ICMP of either family.
#[must_use]
pub fn is_not_icmp_type(kind: u8) -> [Expressions; 2] {
    [
        load(TRANSPORT_HEADER, 0, 1, Register::Reg1),
        compare(Operator::NotEqual, vec![kind]),
    ]
}

/// `meta priority set PRIORITY`: sets the packet's priority for traffic control.
#[must_use]
pub fn set_priority(priority: u32) -> [Expressions; 2] {
    [
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(priority.to_ne_bytes().to_vec())),
        ]),
        Expressions::Meta(vec![
            Meta::Key(MetaKey::Priority),
            Meta::SourceRegister(Register::Reg1),
        ]),
    ]
}

/// `meta priority PRIORITY`.
#[must_use]
pub fn has_priority(priority: u32) -> [Expressions; 2] {
    [
        meta(MetaKey::Priority),
        compare(Operator::Equal, priority.to_ne_bytes().to_vec()),
    ]
}

/// `counter`.
#[must_use]
pub fn counter() -> Expressions {
    bare("counter")
}

/// `notrack`.
#[must_use]
pub fn notrack() -> Expressions {
    bare("notrack")
}

/// The flags of a TCP header.
pub mod flag {
    /// The sender closes its direction.
    pub const FIN: u8 = 0x01;
    /// The sender opens the connection.
    pub const SYN: u8 = 0x02;
    /// The sender resets the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
}

/// `tcp flags VALUE / MASK`: the flags in the mask equal those in the value.
#[must_use]
pub fn flags_are(value: u8, mask: u8) -> Vec<Expressions> {
    masked_flags(mask, Operator::Equal, value)
}

/// `tcp flags MASK`: at least one of the flags in the mask is set.
#[must_use]
pub fn has_flag(mask: u8) -> Vec<Expressions> {
    masked_flags(mask, Operator::NotEqual, 0)
}

fn masked_flags(mask: u8, operator: Operator, value: u8) -> Vec<Expressions> {
    const FLAGS: u32 = 13;
    vec![
        load(TRANSPORT_HEADER, FLAGS, 1, Register::Reg1),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(1),
            Bitwise::Mask(DataAttribute::Value(vec![mask])),
            Bitwise::Xor(DataAttribute::Value(vec![0])),
        ]),
        compare(operator, vec![value]),
    ]
}

/// `goto CHAIN`.
#[must_use]
pub fn go_to(chain: &str) -> Expressions {
    verdict(vec![
        VerdictAttribute::Code(Verdict::Goto),
        VerdictAttribute::Chain(chain.to_owned()),
    ])
}

/// `accept`: the packet leaves the chain and continues with all others.
#[must_use]
pub fn accept() -> Expressions {
    const ACCEPT: u32 = 1;
    verdict(vec![VerdictAttribute::Code(Verdict::Other(ACCEPT))])
}

/// `drop`.
#[must_use]
pub fn drop_packet() -> Expressions {
    const DROP: u32 = 0;
    verdict(vec![VerdictAttribute::Code(Verdict::Other(DROP))])
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

/// Returns the offset and the content of an address in its IP header.
fn address_field(end: End, ip: IpAddr) -> (u32, Vec<u8>) {
    match (ip, end) {
        (IpAddr::V4(v4), End::Source) => (12, v4.octets().to_vec()),
        (IpAddr::V4(v4), End::Destination) => (16, v4.octets().to_vec()),
        (IpAddr::V6(v6), End::Source) => (8, v6.octets().to_vec()),
        (IpAddr::V6(v6), End::Destination) => (24, v6.octets().to_vec()),
    }
}

/// Returns the offset of a port in its TCP header.
fn port_offset(end: End) -> u32 {
    match end {
        End::Source => 0,
        End::Destination => 2,
    }
}

fn bare(name: &str) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: Vec::new(),
    }
}

fn length_of(value: &[u8]) -> u32 {
    u32::try_from(value.len()).expect("an address or a port")
}

fn payload(base: u32, offset: u32, value: Vec<u8>) -> [Expressions; 2] {
    let length = length_of(&value);
    [
        load(base, offset, length, Register::Reg1),
        compare(Operator::Equal, value),
    ]
}

fn load(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![
        Meta::Key(key),
        Meta::DestinationRegister(Register::Reg1),
    ])
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}
