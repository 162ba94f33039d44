// SPDX-License-Identifier: Apache-2.0

//! The chains and rules; `decisions` documents them as a whole.

use std::net::SocketAddr;

use netlink_packet_netfilter::nftables::Expressions;
use proxy_netlink::netfilter::expression::flag::{FIN, RST, SYN};
use proxy_netlink::netfilter::expression::{self, End};
use proxy_netlink::netfilter::{Chain, Family, Hook, Rule};

use super::counted::Counted;
use super::of_proxy;
use super::packets::{Packets, SPECIAL, base, chain, entry, leave, opens, rule, untrack};
use crate::backend::tables;

/// After the source NAT of the input hook (`NF_IP_PRI_NAT_SRC`, 100): packets have the client port that the proxy sees.
const PRIORITY_AS_THE_PROXY_SEES: i32 = 101;
/// The packet priority that a decided SYN carries from the raw hook to the input hook, `7078:1` in nft(8). Nothing in between
/// reads or changes priorities; mark bits may be in use by others.
const DECIDED_SYN: u32 = 0x7078_0001;

/// The chains of a table for these VIPs. With `has_proxy` there are those for the proxy's own connections too, which
/// packets of the VIPs do not reach.
pub fn chains(family: Family, vips: &[SocketAddr], has_proxy: bool) -> Vec<Chain> {
    let mut chains = if vips.is_empty() {
        Vec::new()
    } else {
        of_vips(family, vips)
    };
    if has_proxy {
        of_proxy::add_to(&mut chains);
    }
    chains
}

fn of_vips(family: Family, vips: &[SocketAddr]) -> Vec<Chain> {
    let each = |rule: &dyn Fn(SocketAddr) -> Rule| vips.iter().map(|vip| rule(*vip)).collect();
    let (request, reply) = (Packets::requests(family), Packets::replies(family));
    vec![
        base(
            "prerouting",
            Hook::Prerouting,
            tables::PRIORITY_RAW,
            each(&from_elsewhere),
        ),
        base(
            "input",
            Hook::Input,
            PRIORITY_AS_THE_PROXY_SEES,
            each(&at_the_proxy),
        ),
        base(
            "output",
            Hook::Output,
            tables::PRIORITY_RAW,
            vips.iter()
                .flat_map(|vip| [from_here(*vip), from_the_proxy(*vip)])
                .collect(),
        ),
        chain("request", request_rules(&request, &reply)),
        chain("open", open_rules(vips, &request, &reply)),
        chain("reply", reply_rules(&reply, &request)),
        chain("arrived", arrived_rules(&request, &reply)),
        chain("tracked", tracked_rules(&request, &reply)),
        chain("tracked_reply", tracked_reply_rules(&reply, &request)),
    ]
}

/// Packets on `lo` have passed output already, whose decision applies.
fn from_elsewhere(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    let not_here = expression::not_from_loopback();
    counted(
        Counted::FromElsewhere.purpose(vip),
        [matches, not_here.into()].concat(),
        "request",
    )
}

fn at_the_proxy(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    entry(
        format!("to {vip}, at the proxy"),
        [matches, expression::has_flag(SPECIAL)].concat(),
        "arrived",
    )
}

fn from_here(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    counted(Counted::FromHere.purpose(vip), matches, "request")
}

fn from_the_proxy(vip: SocketAddr) -> Rule {
    let matches = expression::endpoint(End::Source, vip.ip(), vip.port());
    counted(Counted::Replies.purpose(vip), matches, "reply")
}

/// [`entry`], with a counter.
fn counted(purpose: String, mut matches: Vec<Expressions>, chain: &str) -> Rule {
    matches.push(expression::counter());
    entry(purpose, matches, chain)
}

fn request_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    let mut rules = vec![
        packet.plain_of_decided(),
        rule("a SYN", [opens(), vec![expression::go_to("open")]].concat()),
    ];
    rules.extend(packet.answered(Vec::new()));
    rules.push(rule(
        "opening",
        [packet.is("opening"), packet.update("opening"), untrack()].concat(),
    ));
    rules.extend(packet.end_of_decided(packet, turned));
    rules
}

/// A client that opens a connection has given up an older one from its port, whose end may not have been seen.
fn open_rules(vips: &[SocketAddr], packet: &Packets, turned: &Packets) -> Vec<Rule> {
    let older = rule(
        "older decisions of this client port are void",
        packet.void(turned),
    );
    let rules = vips.iter().flat_map(|vip| open_rules_of(*vip, packet));
    [older].into_iter().chain(rules).collect()
}

/// Separate rules for each VIP, so that each has its own counters.
fn open_rules_of(vip: SocketAddr, packet: &Packets) -> Vec<Rule> {
    let to_vip = expression::endpoint(End::Destination, vip.ip(), vip.port());
    let rule = |counted: Counted, expressions: Vec<Expressions>| Rule {
        purpose: counted.purpose(vip),
        expressions: [to_vip.clone(), expressions].concat(),
    };
    vec![
        rule(
            Counted::InUse,
            [packet.is("tracked"), packet.delete("opening"), leave()].concat(),
        ),
        rule(
            Counted::Decided,
            [
                packet.update("opening"),
                expression::set_priority(DECIDED_SYN).into(),
                vec![expression::counter()],
                untrack(),
            ]
            .concat(),
        ),
        rule(Counted::NoRoom, leave()),
    ]
}

/// `packet` has the client first, as in the sets; `sent` has the sender first.
fn reply_rules(packet: &Packets, sent: &Packets) -> Vec<Rule> {
    let mut rules = vec![
        packet.plain_of_decided(),
        rule(
            "the answer to a tracked SYN: older decisions of its client port are void",
            [
                expression::has_flag(SYN),
                packet.is("tracked"),
                packet.forget(sent),
                leave(),
            ]
            .concat(),
        ),
        rule(
            "tracked, and reset with this",
            [
                expression::has_flag(RST),
                packet.is("tracked"),
                packet.forget(sent),
                packet.delete("tracked"),
                leave(),
            ]
            .concat(),
        ),
        rule("opening", [packet.is("opening"), untrack()].concat()),
    ];
    rules.extend(packet.end_of_decided(sent, packet));
    rules.push(rule(
        "tracked, and closed with this",
        [
            expression::has_flag(FIN),
            packet.is("tracked"),
            vec![expression::go_to("tracked_reply")],
        ]
        .concat(),
    ));
    // Requests of these connections do not reach these rules. Connections may be open for longer than the set's timeout.
    rules.push(rule(
        "tracked",
        [
            packet.is("tracked"),
            packet.update("tracked"),
            vec![expression::accept()],
        ]
        .concat(),
    ));
    rules
}

/// Only packets with a special flag reach this chain.
fn arrived_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "a decided SYN",
            [
                opens(),
                expression::has_priority(DECIDED_SYN).into(),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        rule(
            "an undecided SYN: its connection is tracked",
            [
                opens(),
                packet.update("tracked"),
                packet.delete("half_closed"),
                turned.delete("half_closed"),
                leave(),
            ]
            .concat(),
        ),
        // Its answer must not be taken for the answer of an older connection.
        rule(
            "an undecided SYN, and no room to remember it: older decisions are void",
            [opens(), packet.forget(turned), leave()].concat(),
        ),
        rule(
            "of a tracked connection",
            [packet.is("tracked"), vec![expression::go_to("tracked")]].concat(),
        ),
    ]
}

/// A tracked connection has ended after a FIN from both ends or one RST.
fn tracked_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "reset",
            [
                expression::has_flag(RST),
                packet.delete("tracked"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        rule(
            "closed, after the proxy",
            [
                turned.is("half_closed"),
                packet.delete("tracked"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        rule(
            "closed, before the proxy",
            [packet.update("half_closed"), vec![expression::accept()]].concat(),
        ),
    ]
}

fn tracked_reply_rules(packet: &Packets, turned: &Packets) -> Vec<Rule> {
    vec![
        rule(
            "closed, after the client",
            [
                packet.is("half_closed"),
                packet.delete("tracked"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
        // After its FIN the proxy sends no packets until the client closes.
        rule(
            "closed, before the client",
            [
                packet.update("tracked"),
                turned.update("half_closed"),
                vec![expression::accept()],
            ]
            .concat(),
        ),
    ]
}
