// SPDX-License-Identifier: Apache-2.0

//! Evaluates the matches of iptables in rules of iptables-nft.

use netlink_packet_core::DefaultNla;
use proxy_netlink::netfilter::expression::End;

use super::super::super::packet::{Direction, Packet};
use super::super::super::walk::Truth;
use super::{NFTA_MATCH_INFO, NFTA_MATCH_NAME, truth};
use crate::nla::{text, value};

/// Evaluates the matches of iptables that occur in almost every rule.
pub fn matches(attributes: &[DefaultNla], packet: &Packet) -> Truth {
    let info = value(attributes, NFTA_MATCH_INFO).unwrap_or_default();
    match text(attributes, NFTA_MATCH_NAME).as_slice() {
        b"comment" => Truth::Yes,
        b"tcp" => tcp(&info, packet).unwrap_or(Truth::Maybe),
        b"udp" | b"icmp" | b"icmp6" => Truth::No,
        b"conntrack" => conntrack(&info, packet).unwrap_or(Truth::Maybe),
        b"addrtype" => addrtype(&info, packet).unwrap_or(Truth::Maybe),
        _ => Truth::Maybe,
    }
}

/// Evaluates `struct xt_tcp`: ranges of source and destination ports in host byte order, one byte of options, two of
/// flags, one of inversions.
fn tcp(info: &[u8], packet: &Packet) -> Option<Truth> {
    let number = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let [option, flags_mask, _, inverted] = *info.get(8..)?.first_chunk()?;
    if option != 0 || flags_mask != 0 || inverted != 0 {
        return Some(Truth::Maybe);
    }
    let within = |first, last, port: Option<Vec<u8>>| {
        if (first, last) == (0, u16::MAX) {
            return Some(Truth::Yes);
        }
        let Some(port) = port else {
            return Some(Truth::Maybe);
        };
        let port = u16::from_be_bytes(*port.first_chunk()?);
        Some(truth((first..=last).contains(&port)))
    };
    let source = within(number(0)?, number(2)?, packet.transport(0, 2))?;
    let destination = within(number(4)?, number(6)?, packet.transport(2, 2))?;
    Some(source.min(destination))
}

/// Evaluates `struct xt_addrtype_info_v1`: sets of types to which source and destination must belong (zero: any type),
/// and flags. VIPs are addresses of the node, and so are Services because of the agent's route.
fn addrtype(info: &[u8], packet: &Packet) -> Option<Truth> {
    /// `1 << RTN_LOCAL` of linux/rtnetlink.h.
    const LOCAL: u16 = 1 << 2;
    const INVERT_SOURCE: u32 = 1;
    const INVERT_DESTINATION: u32 = 1 << 1;
    // The type is known for the node's own end, regardless of which end of the packet is known otherwise.
    let known = match packet.direction {
        Direction::Request | Direction::Opening => End::Destination,
        Direction::Reply => End::Source,
    };
    let kinds = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let flags = u32::from_ne_bytes(*info.get(4..)?.first_chunk()?);
    if flags & !(INVERT_SOURCE | INVERT_DESTINATION) != 0 {
        // The match is limited to the addresses of a link.
        return Some(Truth::Maybe);
    }
    let is_of = |kinds: u16, inverted: u32, end| match kinds {
        0 => Truth::Yes,
        _ if known != end => Truth::Maybe,
        _ => truth((kinds & LOCAL != 0) != (flags & inverted != 0)),
    };
    let source = is_of(kinds(0)?, INVERT_SOURCE, End::Source);
    let destination = is_of(kinds(2)?, INVERT_DESTINATION, End::Destination);
    Some(source.min(destination))
}

/// Evaluates `struct xt_conntrack_mtinfo3`, of which only the state applies to untracked packets.
fn conntrack(info: &[u8], packet: &Packet) -> Option<Truth> {
    /// The offset of the flags, which follow eight addresses, two times and five numbers of two bytes.
    const FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
    /// `XT_CONNTRACK_STATE`.
    const STATE: u16 = 1;
    let number = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let (flags, inverted, states) = (number(FLAGS)?, number(FLAGS + 2)?, number(FLAGS + 4)?);
    if packet.is_tracked() && flags != STATE {
        return Some(Truth::Maybe);
    }
    if flags & STATE == 0 {
        // All other criteria need a conntrack entry, and there is none: `conntrack_mt` of net/netfilter/xt_conntrack.c.
        return Some(Truth::No);
    }
    let named = u32::from(states) & packet.xtables_state() != 0;
    let matches = named != (inverted & STATE != 0);
    // Any additional criterion needs a conntrack entry.
    Some(truth(matches && flags == STATE))
}
