// SPDX-License-Identifier: Apache-2.0

//! What each program gets, and what must come of it.

use std::net::SocketAddr;

use super::packet::{self, Packet};
use crate::Family;
use crate::bench::variant::Variant;

/// `TC_ACT_UNSPEC`: every verdict of our programs on links.
const NEXT: u32 = u32::MAX;
const MATCH: u32 = 1;
const NO_MATCH: u32 = 0;

const INGRESS: &str = "vip_ingress";
const EGRESS: &str = "vip_egress";
const PREROUTING: &str = "vip_prerouting";
const SERVICE: &str = "vip_service";
const REQUEST: &str = "vip_output_request";
const REPLY: &str = "vip_output_reply";
const TRANSLATED: &str = "vip_output_translated";

/// A program, a packet, and what must come of it.
pub struct Case {
    /// The program's name.
    pub program: &'static str,
    /// What is told of the packet.
    pub about: &'static str,
    /// The packet.
    pub packet: Packet,
    /// What the program must return.
    pub verdict: u32,
    /// The program changes the packet.
    pub rewrites: bool,
}

/// The cases of the programs of an agent, in an order in which the first packets decide the connection
/// of those that follow.
pub fn cases(variant: Variant, family: Family) -> Vec<Case> {
    let mut cases = of_all(family);
    if variant == Variant::Translation {
        cases.extend(of_translation(family));
    }
    cases
}

fn case(program: &'static str, about: &'static str, packet: Packet) -> Case {
    Case {
        program,
        about,
        packet,
        verdict: NEXT,
        rewrites: false,
    }
}

impl Case {
    fn with(self, verdict: u32) -> Self {
        Self { verdict, ..self }
    }

    fn rewriting(self) -> Self {
        Self {
            rewrites: true,
            ..self
        }
    }
}

fn of_all(family: Family) -> Vec<Case> {
    let vip = family.vip_socket();
    let stranger = packet::stranger(family);
    let other = SocketAddr::new(stranger.ip(), 80);
    let client = packet::client(family, 1);
    let to_vip = || Packet::data(client, vip);
    let from_vip = || Packet::data(vip, client);
    let unknown = packet::client(family, 2);
    let to_other = Packet::data(client, other);
    let to_stranger = Packet::data(client, stranger);
    let syn_to_stranger = Packet::syn(client, stranger);
    let syn = || Packet::syn(client, vip);
    let undecided = || Packet::data(unknown, vip);
    let answer = Packet::data(vip, unknown);
    vec![
        case(INGRESS, "port 80 of a stranger", to_other),
        case(INGRESS, "port 443 of a stranger", to_stranger),
        case(INGRESS, "SYN to a stranger", syn_to_stranger),
        case(INGRESS, "SYN to the VIP", syn()),
        case(INGRESS, "data to the VIP", to_vip()),
        case(PREROUTING, "decided", to_vip()).with(MATCH),
        case(PREROUTING, "undecided", undecided()).with(NO_MATCH),
        case(REQUEST, "SYN", syn()).with(MATCH),
        case(REQUEST, "decided", to_vip()).with(MATCH),
        case(REQUEST, "undecided", undecided()).with(NO_MATCH),
        case(REPLY, "decided", from_vip()).with(MATCH),
        case(REPLY, "undecided", answer).with(NO_MATCH),
    ]
}

fn of_translation(family: Family) -> Vec<Case> {
    let (vip, service) = (family.vip_socket(), family.cluster_ip_socket());
    let stranger = packet::stranger(family);
    let other = SocketAddr::new(stranger.ip(), 80);
    let client = packet::client(family, 1);
    let unknown = packet::client(family, 2);
    let translated = packet::client(family, 3);
    let from_vip = || Packet::data(vip, client);
    let undecided = Packet::data(unknown, service);
    let from_other = Packet::data(other, client);
    let from_stranger = Packet::data(stranger, client);
    let syn = Packet::syn(translated, service);
    let request = || Packet::data(translated, service);
    let reply = || Packet::data(vip, translated);
    let answer = Packet::data(vip, unknown);
    vec![
        case(TRANSLATED, "decided", from_vip()).with(NO_MATCH),
        case(TRANSLATED, "undecided", answer).with(NO_MATCH),
        case(SERVICE, "undecided", undecided).with(NO_MATCH),
        case(EGRESS, "port 80 of a stranger", from_other),
        case(EGRESS, "port 443 of a stranger", from_stranger),
        case(EGRESS, "decided", from_vip()),
        case(INGRESS, "SYN to the ClusterIP", syn).rewriting(),
        case(INGRESS, "data to the ClusterIP", request()).rewriting(),
        case(EGRESS, "data to be translated", reply()).rewriting(),
        case(TRANSLATED, "translated", reply()).with(MATCH),
        case(SERVICE, "translated", request()).with(MATCH),
    ]
}
