// SPDX-License-Identifier: Apache-2.0

//! The packets that each program gets, and the verdict that it must return.

use std::net::SocketAddr;

use super::packet::{self, Packet};
use crate::variant::Variant;
use tests::Family;

/// `TC_ACT_UNSPEC`: the verdict of our programs on links about all these packets.
const NEXT: u32 = u32::MAX;

const INGRESS: &str = "vip_ingress";
const EGRESS: &str = "vip_egress";

/// A program, a packet, and the expected verdict.
pub struct Case {
    /// The program's name.
    pub program: &'static str,
    /// The description of the packet in results.
    pub about: &'static str,
    /// The packet.
    pub packet: Packet,
    /// The value that the program must return.
    pub verdict: u32,
}

/// The cases of the programs of an agent.
pub fn cases(variant: Variant, family: Family) -> Vec<Case> {
    let mut cases = of_all(family);
    if variant == Variant::Service {
        cases.extend(of_services(family));
    }
    cases
}

fn case(program: &'static str, about: &'static str, packet: Packet) -> Case {
    Case {
        program,
        about,
        packet,
        verdict: NEXT,
    }
}

fn of_all(family: Family) -> Vec<Case> {
    let vip = family.vip_socket();
    let stranger = packet::stranger(family);
    let other = SocketAddr::new(stranger.ip(), 80);
    let client = packet::client(family, 1);
    vec![
        case(
            INGRESS,
            "port 80 of a stranger",
            Packet::data(client, other),
        ),
        case(
            INGRESS,
            "port 443 of a stranger",
            Packet::data(client, stranger),
        ),
        case(INGRESS, "SYN to a stranger", Packet::syn(client, stranger)),
        case(INGRESS, "SYN to the VIP", Packet::syn(client, vip)),
        case(INGRESS, "data to the VIP", Packet::data(client, vip)),
    ]
}

fn of_services(family: Family) -> Vec<Case> {
    let service = family.cluster_ip_socket();
    let stranger = packet::stranger(family);
    let other = SocketAddr::new(stranger.ip(), 80);
    let client = packet::client(family, 1);
    vec![
        case(
            INGRESS,
            "SYN to the ClusterIP",
            Packet::syn(client, service),
        ),
        case(
            INGRESS,
            "data to the ClusterIP",
            Packet::data(client, service),
        ),
        case(EGRESS, "port 80 of a stranger", Packet::data(other, client)),
        case(
            EGRESS,
            "port 443 of a stranger",
            Packet::data(stranger, client),
        ),
        case(
            EGRESS,
            "reply of the ClusterIP",
            Packet::data(service, client),
        ),
    ]
}
