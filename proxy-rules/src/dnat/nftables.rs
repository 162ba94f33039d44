// SPDX-License-Identifier: Apache-2.0

//! nf_tables over netlink: every rule of the families that have NAT, including those of iptables-nft.
//!
//! The addresses of a `dnat` are in registers. Within the rule, each register is traced to its source: a constant, or
//! the value of a map, which is then read.

mod registers;

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleMessage};

use proxy_netlink::netfilter::{Element, Error, Family, Socket, fold_elements};
use registers::{Content, Registers};

use super::{Finding, Findings, Unread};
use crate::nla::until_zero as text;
use crate::{Marks, NFT_FAMILIES};

// Attributes of rules and expressions, linux/netfilter/nf_tables.h and nf_tables_compat.h.
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_DNAT: u32 = 1;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_TARGET_REV: u16 = 2;
const NFTA_TARGET_INFO: u16 = 3;
/// `NF_NAT_RANGE_MAP_IPS` of `linux/netfilter/nf_nat.h`: the range contains addresses.
const MAP_IPS: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the range contains ports.
const MAP_PORTS: u32 = 2;
/// `NFPROTO_IPV6`, in [`NFTA_NAT_FAMILY`].
const NFPROTO_IPV6: u32 = 10;

/// Adds the rules of nf_tables that send connections to the VIPs.
pub fn find(vips: &[IpAddr], marks: Marks, findings: &mut Findings) {
    for (family, title) in NFT_FAMILIES {
        let source = || format!("nf_tables tables of family {title}");
        match scan(family, title, vips, marks) {
            Ok(scan) => {
                findings.found.extend(scan.found);
                findings.unread.extend(scan.unread);
            }
            Err(error) if is_without_nf_tables(&error) => {}
            Err(error) => findings.unread.push(Unread::new(source(), error)),
        }
    }
}

/// Returns true if the error means that the kernel has no nf_tables, and therefore no rules of it.
fn is_without_nf_tables(error: &Error) -> bool {
    match error {
        Error::Open(cause) => cause.raw_os_error() == Some(libc::EPROTONOSUPPORT),
        // The subsystem is not registered: `nfnetlink_rcv_msg` of net/netfilter/nfnetlink.c.
        error => error.errno() == Some(libc::EINVAL),
    }
}

/// The findings in the rules of one family.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) found: Vec<Finding>,
    pub(super) maps: BTreeSet<MapUse>,
    unread: Vec<Unread>,
}

/// A map whose values are addresses to which a rule sends connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MapUse {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) map: String,
    /// The offset of the address in a value.
    pub(super) address: usize,
    /// The length of the address: 4 or 16.
    pub(super) length: usize,
    /// The offset of the port in a value.
    pub(super) port: Option<usize>,
}

fn scan(family: Family, title: &str, vips: &[IpAddr], marks: Marks) -> Result<Scan, Error> {
    let mut socket = Socket::open()?;
    let what = format!("list the rules of family {title}");
    let request = NfTablesMessage::GetRule(RuleMessage {
        attributes: Vec::new(),
    });
    let mut scan: Scan = socket.fold_raw(&what, family, &request, |scan, rule| {
        look_at(rule, title, vips, marks, scan);
    })?;
    for used in &scan.maps {
        let place = format!(
            "{}, map {}",
            place(title, &used.table, &used.chain),
            used.map
        );
        let table = (family, used.table.as_str());
        let read = fold_elements(
            &mut socket,
            table,
            &used.map,
            |found: &mut Vec<_>, element| {
                let target = target_in(&element, used, vips);
                found.extend(target.map(|(vip, port)| Finding {
                    place: place.clone(),
                    vip,
                    port,
                }));
            },
        );
        match read {
            // If there is no result, the map has been deleted since its rule was read, and the rule with it.
            Ok(found) => scan.found.extend(found.into_iter().flatten()),
            Err(error) => scan.unread.push(Unread::new(place, error)),
        }
    }
    Ok(scan)
}

fn place(title: &str, table: &str, chain: &str) -> String {
    format!("nf_tables table {title} {table}, chain {chain}")
}

/// Adds the targets of one rule, given its attributes, that are VIPs.
pub(super) fn look_at(rule: &[u8], title: &str, vips: &[IpAddr], marks: Marks, scan: &mut Scan) {
    let table = text(attribute(rule, NFTA_RULE_TABLE));
    if str::from_utf8(table).is_ok_and(marks.is_own_name) {
        return;
    }
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let chain = text(attribute(rule, NFTA_RULE_CHAIN));
    let mut registers = Registers::default();
    for (_, expression) in attributes(attribute(rule, NFTA_RULE_EXPRESSIONS)) {
        let data = attribute(expression, NFTA_EXPR_DATA);
        let target = match text(attribute(expression, NFTA_EXPR_NAME)) {
            b"immediate" => {
                registers.load(data);
                None
            }
            b"lookup" => {
                registers.look_up(data);
                None
            }
            b"nat" => dnat(data, &registers),
            b"target" => xtables_target(data, title),
            _ => None,
        };
        match target {
            Some(Target::Fixed(range)) => {
                let reached = range.reaches(vips).map(|(vip, port)| Finding {
                    place: place(title, &name(table), &name(chain)),
                    vip,
                    port,
                });
                scan.found.extend(reached);
            }
            Some(Target::FromMap {
                map,
                address,
                length,
                port,
            }) => {
                scan.maps.insert(MapUse {
                    table: name(table),
                    chain: name(chain),
                    map,
                    address,
                    length,
                    port,
                });
            }
            None => {}
        }
    }
}

/// The destination to which a rule sends connections.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Fixed(Range),
    FromMap {
        map: String,
        address: usize,
        length: usize,
        port: Option<usize>,
    },
}

/// Addresses from `first` to `last`, in network byte order: 4 or 16 bytes each.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: Vec<u8>,
    last: Vec<u8>,
    port: Option<u16>,
}

impl Range {
    fn reaches(&self, vips: &[IpAddr]) -> impl Iterator<Item = (IpAddr, Option<u16>)> {
        vips.iter()
            .filter(|vip| {
                let vip = octets(**vip);
                vip.len() == self.first.len() && (&self.first..=&self.last).contains(&&vip)
            })
            .map(|vip| (*vip, self.port))
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Returns the target of `dnat to`.
fn dnat(data: &[u8], registers: &Registers) -> Option<Target> {
    let number = |kind| number(data, kind);
    if number(NFTA_NAT_TYPE)? != NFT_NAT_DNAT {
        return None;
    }
    let length = if number(NFTA_NAT_FAMILY)? == NFPROTO_IPV6 {
        16
    } else {
        4
    };
    let first = number(NFTA_NAT_REG_ADDR_MIN)?;
    let port = number(NFTA_NAT_REG_PROTO_MIN);
    let (content, address) = registers.content(first)?;
    if let Content::ValueOf(map) = content {
        let of_the_same = |port| match registers.content(port)? {
            (Content::ValueOf(other), offset) if other == map => Some(offset),
            _ => None,
        };
        return Some(Target::FromMap {
            map: map.clone(),
            address,
            length,
            port: port.and_then(of_the_same),
        });
    }
    let last = number(NFTA_NAT_REG_ADDR_MAX).unwrap_or(first);
    let port = port.and_then(|port| registers.constant(port, 2));
    Some(Target::Fixed(Range {
        first: registers.constant(first, length)?.to_vec(),
        last: registers.constant(last, length)?.to_vec(),
        port: port.and_then(port_number),
    }))
}

/// Returns the target of iptables-nft's DNAT.
fn xtables_target(data: &[u8], family: &str) -> Option<Target> {
    if text(attribute(data, NFTA_TARGET_NAME)) != b"DNAT" {
        return None;
    }
    let info = attribute(data, NFTA_TARGET_INFO);
    let range = match number(data, NFTA_TARGET_REV).unwrap_or(0) {
        // struct nf_nat_ipv4_multi_range_compat: a count, followed by flags, addresses and ports.
        0 if family != "ip6" => range(info.get(4..)?, 4, 4)?,
        // struct nf_nat_range, or nf_nat_range2, which only appends further fields.
        _ => range(info, 16, if family == "ip6" { 16 } else { 4 })?,
    };
    Some(Target::Fixed(range))
}

/// Parses flags in host byte order, two addresses of `length` bytes in fields of `field` bytes, and two ports.
fn range(info: &[u8], field: usize, length: usize) -> Option<Range> {
    let flags = u32::from_ne_bytes(*info.first_chunk()?);
    if flags & MAP_IPS == 0 {
        return None;
    }
    let address = |at: usize| Some(info.get(at..at + length)?.to_vec());
    let port = info.get(4 + 2 * field..).and_then(port_number);
    Some(Range {
        first: address(4)?,
        last: address(4 + field)?,
        port: port.filter(|_| flags & MAP_PORTS != 0),
    })
}

/// Returns the target in an element of a map, if it is a VIP.
pub(super) fn target_in(
    element: &Element,
    used: &MapUse,
    vips: &[IpAddr],
) -> Option<(IpAddr, Option<u16>)> {
    let value = element.value.as_ref()?;
    let address = value.get(used.address..used.address + used.length)?;
    let vip = vips.iter().find(|vip| octets(**vip) == address)?;
    let port = used.port.and_then(|at| port_number(value.get(at..)?));
    Some((*vip, port))
}

fn port_number(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Returns the attributes in the bytes, each with its kind. An invalid attribute ends the sequence.
///
/// The iterator of `netlink-packet-core` is not used because its values do not outlive it.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The length of `struct nlattr`, and the mask that removes the flags from its kind (`NLA_TYPE_MASK`).
    const HEADER: usize = 4;
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & KIND;
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the content of an attribute, or an empty slice if there is no such attribute.
fn attribute(bytes: &[u8], kind: u16) -> &[u8] {
    let mut found = attributes(bytes).filter(|(of, _)| *of == kind);
    found.next().map_or(&[], |(_, value)| value)
}

fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    let number = attribute(bytes, kind).first_chunk()?;
    Some(u32::from_be_bytes(*number))
}

#[cfg(test)]
mod tests;
