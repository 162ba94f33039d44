// SPDX-License-Identifier: Apache-2.0

//! The fuzz target for responses of route netlink to requests for links and addresses.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN};

use super::address::{Address, parse_address};
use super::attribute::attribute;
use super::dump::{SEQUENCE, read_datagram};
use super::link::{Link, LinkKind, parse_link};
use crate::answer::Answer;
use crate::fuzzing::{choice, messages};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;

/// Processes a datagram or the body of one message; the first byte selects which.
///
/// If a dump is accepted as complete, its messages must be whole, each of them must have been read, and none may report
/// an interruption or a failure. A link or an address that is encoded like the kernel does must be parsed as the same
/// value.
pub fn route(data: &[u8]) {
    let (kind, rest) = choice(data);
    match kind % 4 {
        0 => datagram(rest, RTM_NEWLINK),
        1 => datagram(rest, RTM_NEWADDR),
        2 => link(rest),
        _ => address(rest),
    }
}

fn datagram(bytes: &[u8], answer: u16) {
    let mut count = 0;
    let mut state = Answer::to_dump(SEQUENCE);
    let read = read_datagram(&mut state, bytes, answer, &mut |message| {
        count += 1;
        if answer == RTM_NEWLINK {
            parse_link(message).map(drop)
        } else {
            parse_address(message).map(drop)
        }
    });
    if read.is_err() {
        return;
    }
    let messages = messages(bytes).expect("what was accepted is whole");
    let ours = || {
        messages
            .iter()
            .filter(|(_, _, sequence, _)| *sequence == SEQUENCE)
    };
    let of = |wanted| ours().filter(move |(kind, ..)| *kind == wanted);
    assert_eq!(of(answer).count(), count);
    if state.end().is_err() {
        return;
    }
    assert!(ours().all(|(_, flags, ..)| flags & NLM_F_DUMP_INTR == 0));
    assert!(of(NLMSG_DONE).count() > 0);
    assert_eq!(of(NLMSG_OVERRUN).count(), 0);
    let mut results = of(NLMSG_DONE).chain(of(NLMSG_ERROR));
    assert!(results.all(|(.., code)| code.first_chunk::<4>().is_none_or(|code| *code == [0; 4])));
}

fn link(body: &[u8]) {
    let Ok(link) = parse_link(body) else {
        return;
    };
    assert_eq!(
        parse_link(&written_link(&link)).expect("it is well formed"),
        link
    );
}

fn written_link(link: &Link) -> Vec<u8> {
    let mut flags = 0;
    if link.up {
        flags |= libc::IFF_UP;
    }
    let kind = match link.kind {
        LinkKind::Loopback => {
            flags |= libc::IFF_LOOPBACK;
            ""
        }
        LinkKind::Dummy => "dummy",
        LinkKind::Bridge => "bridge",
        LinkKind::Veth => "veth",
        LinkKind::Vrf => "vrf",
        LinkKind::Vlan => "vlan",
        LinkKind::Tun => "tun",
        LinkKind::Other => "vxlan",
    };
    let mut bytes = vec![0; 2];
    bytes.extend(u16::from(link.ethernet).to_ne_bytes());
    bytes.extend(link.index.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(attribute(3, &named(&link.name)));
    if let Some(lower) = link.lower {
        bytes.extend(attribute(5, &lower.to_ne_bytes()));
    }
    if let Some(xdp) = link.xdp {
        let mode = if xdp.native { 1 } else { 2 };
        let fields = [
            attribute(2, &[mode]),
            attribute(4, &xdp.program.to_ne_bytes()),
        ];
        bytes.extend(attribute(43, &fields.concat()));
    }
    if let Some(master) = link.master {
        bytes.extend(attribute(10, &master.to_ne_bytes()));
    }
    bytes.extend(attribute(27, &link.group.to_ne_bytes()));
    bytes.extend(attribute(18, &attribute(1, &named(kind))));
    for name in &link.altnames {
        bytes.extend(attribute(52, &attribute(53, &named(name))));
    }
    bytes
}

fn address(body: &[u8]) {
    let Ok(address) = parse_address(body) else {
        return;
    };
    let again = parse_address(&written_address(&address)).expect("it is well formed");
    assert_eq!(again, address);
}

fn written_address(address: &Address) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut flags = 0;
    for (is_set, flag) in [
        (address.secondary, 0x01_u32),
        (address.deprecated, 0x20),
        (address.unusable, 0x40),
        (address.permanent, 0x80),
    ] {
        if is_set {
            flags |= flag;
        }
    }
    let mut bytes = vec![2, address.prefix_len, 0, address.scope];
    bytes.extend(address.index.to_ne_bytes());
    bytes.extend(attribute(1, &octets(address.peer.unwrap_or(address.ip))));
    bytes.extend(attribute(2, &octets(address.ip)));
    bytes.extend(attribute(8, &flags.to_ne_bytes()));
    bytes
}

fn named(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}
