// SPDX-License-Identifier: Apache-2.0

//! The fuzz target for rules that may send connections to a VIP, and for the list of IPVS.

use std::net::IpAddr;

use netlink_packet_netfilter::nftables::NfTablesMessage;
use proxy_netlink::fuzzing::{answers, choice};
use proxy_netlink::netfilter::elements_in;

use super::{Finding, ipvs, legacy, nftables};
use crate::Marks;

/// Processes the attributes of a rule of nf_tables, elements of a map, a rule of iptables or a list of IPVS; the first
/// byte selects which.
///
/// Only VIPs may be found, each of the family of the rule, and none in a table that belongs to the caller. A rule must
/// produce the same result if other attributes follow its own.
pub fn dnat(data: &[u8]) {
    let (kind, rest) = choice(data);
    let vips = [
        [10, 96, 0, 2].into(),
        [0xfd00, 0x96, 0, 0, 0, 0, 0, 2].into(),
    ];
    match kind % 6 {
        0 => of_nf_tables("ip", rest, &vips),
        1 => of_nf_tables("ip6", rest, &vips),
        2 => of_nf_tables("inet", rest, &vips),
        3 => of_map(rest, &vips),
        4 => of_iptables(rest, &vips),
        _ => of_ipvs(rest, &vips),
    }
}

fn of_nf_tables(title: &str, rule: &[u8], vips: &[IpAddr]) {
    let look = |rule: &[u8]| {
        let mut scan = nftables::Scan::default();
        nftables::look_at(rule, title, vips, Marks::TEST, &mut scan);
        scan
    };
    let scan = look(rule);
    check(&scan.found, vips);
    for found in &scan.found {
        let of_table = |table: &str| {
            found
                .place
                .starts_with(&format!("nf_tables table {title} {table}"))
        };
        assert!(of_table("") && !of_table("proxy-agent, chain "));
    }
    if is_whole(rule) {
        let longer = [rule, &[8, 0, 0xe7, 3, 1, 2, 3, 4]].concat();
        assert_eq!(look(&longer).found, scan.found);
    }
}

/// Returns true if the bytes are completely filled with attributes.
fn is_whole(mut rest: &[u8]) -> bool {
    while let Some(length) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes(*length)).next_multiple_of(4);
        match rest.get(length..) {
            Some(behind) if length >= 4 => rest = behind,
            _ => return false,
        }
    }
    rest.is_empty()
}

fn of_map(datagram: &[u8], vips: &[IpAddr]) {
    for (address, length, port) in [(0, 4, Some(4)), (0, 16, Some(16)), (4, 4, None)] {
        let used = nftables::MapUse {
            table: "nat".to_owned(),
            chain: "chain".to_owned(),
            map: "map".to_owned(),
            address,
            length,
            port,
        };
        for message in answers(datagram) {
            if let NfTablesMessage::NewSetElement(elements) = message {
                let targets = elements_in(elements)
                    .filter_map(|element| nftables::target_in(&element, &used, vips));
                for (vip, _) in targets {
                    assert!(vips.contains(&vip) && vip.is_ipv4() == (length == 4));
                }
            }
        }
    }
}

fn of_iptables(spec: &[u8], vips: &[IpAddr]) {
    let Ok(spec) = str::from_utf8(spec) else {
        return;
    };
    let Some(target) = legacy::target(spec) else {
        return;
    };
    assert!(spec.contains("--to-destination"));
    assert!(target.reaches(vips).all(|(vip, _)| vips.contains(&vip)));
}

fn of_ipvs(list: &[u8], vips: &[IpAddr]) {
    let Ok(list) = str::from_utf8(list) else {
        return;
    };
    let found = ipvs::parse(list, vips);
    check(&found, vips);
    assert!(found.len() <= list.matches("->").count());
}

fn check(found: &[Finding], vips: &[IpAddr]) {
    assert!(found.iter().all(|found| vips.contains(&found.vip)));
}
