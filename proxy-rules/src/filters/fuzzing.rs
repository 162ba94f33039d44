// SPDX-License-Identifier: Apache-2.0

//! The fuzz target for firewalls.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage};
use proxy_netlink::fuzzing::{answers, choice, echo};
use proxy_netlink::netfilter::Family;
use proxy_netlink::netfilter::expression;

use super::nft::sets::Sets;
use super::packet::{Known, Packet};
use super::walk::{self, Chains, Fate};
use super::{Found, nft, packets, xtables};
use crate::Marks;
use crate::xtables::{SavedRule, parse};

/// The chain of a proposed rule.
const PROPOSED: &str = "proposed";

/// Processes a filter table as `iptables-save` prints it, or chains and rules of nf_tables in the format of a dump; the
/// first byte selects which.
///
/// A policy that drops must never let more packets pass than one that accepts. If the doctor finds a fault, it must
/// find none after the rule that it proposes is added.
pub fn firewall(data: &[u8]) {
    let (kind, rest) = choice(data);
    let vips: [SocketAddr; 2] = [
        ([10, 96, 0, 2], 443).into(),
        ([0xfd00, 0x96, 0, 0, 0, 0, 0, 2], 443).into(),
    ];
    let services: [SocketAddr; 1] = [([10, 96, 0, 1], 443).into()];
    let packets = [
        packets(&vips, Known::Vip),
        packets(&services, Known::Service),
        packets(&vips, Known::Upstream),
    ]
    .concat();
    if kind % 2 == 0 {
        of_iptables(rest, &packets);
    } else {
        of_nf_tables(rest, &packets);
    }
}

fn of_iptables(text: &[u8], packets: &[Packet]) {
    let Some(table) = str::from_utf8(text)
        .ok()
        .and_then(|text| parse(text, "filter"))
    else {
        return;
    };
    for found in xtables::find(&table, "iptables", packets) {
        let Found {
            packet, command, ..
        } = found;
        let rule = command.strip_prefix("iptables -I ").expect("an insertion");
        let (chain, spec) = rule.split_once(' ').expect("a rule");
        let mut repaired = table.clone();
        let rule = SavedRule {
            chain: chain.to_owned(),
            spec: spec.to_owned(),
        };
        repaired.rules.insert(0, rule);
        assert_eq!(xtables::find(&repaired, "iptables", &[packet]), []);
    }
}

fn of_nf_tables(datagram: &[u8], packets: &[Packet]) {
    let (mut bases, mut rules) = (Vec::new(), BTreeMap::new());
    for message in answers(datagram) {
        match message {
            NfTablesMessage::NewChain(chain) => bases.extend(nft::base(&chain)),
            NfTablesMessage::NewRule(rule) => {
                nft::add(
                    &rule,
                    "filter",
                    (packets, &Sets::new()),
                    Marks::TEST,
                    &mut rules,
                );
            }
            _ => {}
        }
    }
    for (at, packet) in packets.iter().enumerate() {
        let none = Chains::new();
        let chains = rules.get(&at).unwrap_or(&none);
        let chain_names = bases
            .iter()
            .map(|base| base.chain.as_str())
            .chain(["chain"]);
        for name in chain_names {
            let (accepting, _) = walk::walk(chains, name, false);
            let (dropping, _) = walk::walk(chains, name, true);
            assert!(dropping != Fate::Passes || accepting == Fate::Passes);
            assert!(accepting != Fate::Dropped || dropping == Fate::Dropped);
            let mut repaired = BTreeMap::new();
            nft::add(
                &accept(packet),
                "filter",
                (packets, &Sets::new()),
                Marks::TEST,
                &mut repaired,
            );
            let mut repaired: Chains = repaired.remove(&at).expect("it is about this packet");
            let mut steps = repaired.remove(PROPOSED).expect("it is there");
            steps.extend(chains.get(name).into_iter().flatten().cloned());
            let mut repaired = chains.clone();
            repaired.insert(name.to_owned(), steps);
            assert_eq!(walk::walk(&repaired, name, true).0, Fate::Passes);
        }
    }
}

/// Returns the rule that lets a packet pass, as the kernel would return it.
fn accept(packet: &Packet) -> RuleMessage {
    let (ip, port) = (packet.end.ip(), packet.end.port());
    let mut expressions = expression::endpoint(packet.place(), ip, port);
    expressions.push(expression::accept());
    let rule = RuleMessage {
        attributes: vec![
            RuleAttribute::Table("filter".to_owned()),
            RuleAttribute::Chain(PROPOSED.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ],
    };
    match echo(Family::Inet, NfTablesMessage::NewRule(rule)) {
        Some(NfTablesMessage::NewRule(rule)) => rule,
        other => panic!("{other:?} instead of a rule"),
    }
}
