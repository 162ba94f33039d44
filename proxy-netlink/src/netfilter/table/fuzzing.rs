// SPDX-License-Identifier: Apache-2.0

//! The fuzz target for responses of nf_tables about a table, its sets, chains and rules.

use std::time::Duration;

use netlink_packet_netfilter::nftables::NfTablesMessage;

use super::counters::count;
use super::outline::{ChainOutline, Outline, comment_of};
use super::{Base, COMMENT_LENGTH, Chain, Hook, Rule, Table};
use crate::fuzzing::{answers, choice, echo};
use crate::netfilter::Family;
use crate::netfilter::expression::{self, End, Part, SetOperation};
use crate::netfilter::set::{Field, Set, SetOutline};

/// Processes a datagram or the description of a table; the first byte selects which.
///
/// The outline of a table that is read back must equal that of the table that was sent.
pub fn nf_tables(data: &[u8]) {
    let (kind, rest) = choice(data);
    if kind % 2 == 0 {
        for message in answers::<NfTablesMessage>(rest) {
            look_at(message);
        }
    } else {
        compare(&made_from(rest));
    }
}

fn look_at(message: NfTablesMessage) {
    match message {
        NfTablesMessage::NewTable(table) => {
            let _ = Outline::of(&table);
        }
        NfTablesMessage::NewSet(set) => {
            let _ = SetOutline::from(set);
        }
        NfTablesMessage::NewChain(chain) => {
            let _ = ChainOutline::of("chain", chain, Vec::new());
        }
        NfTablesMessage::NewRule(rule) => {
            let comment = comment_of(&rule);
            if let Some(count) = count(&rule) {
                assert_eq!(count.comment, comment);
            }
        }
        _ => {}
    }
}

/// Creates a table with one set and one chain, whose rules have the words as comments.
fn made_from(data: &[u8]) -> Table {
    let (family, data) = choice(data);
    let (seconds, data) = choice(data);
    let (priority, data) = choice(data);
    let family = [Family::IPv4, Family::IPv6][usize::from(family % 2)];
    // nft does not support longer comments.
    let room = COMMENT_LENGTH - 1;
    let purposes = data.split(|byte| *byte == 0).take(8).filter_map(|purpose| {
        let purpose = str::from_utf8(purpose.get(..room).unwrap_or(purpose)).ok()?;
        Some(purpose.to_owned())
    });
    let ip = match family {
        Family::IPv4 => [10, 96, 0, 2].into(),
        _ => [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
    };
    let parts = [Part::Address(End::Source), Part::Port(End::Source)];
    let rules = purposes.map(|purpose| Rule {
        purpose,
        expressions: [
            expression::endpoint(End::Destination, ip, 443 + u16::from(seconds)),
            expression::set(SetOperation::Update, "set", &parts, family),
            expression::set(SetOperation::IsMember, "set", &parts, family),
            expression::has_socket().into(),
            expression::flags_are(seconds, priority),
            vec![expression::counter(), expression::go_to("chain")],
        ]
        .concat(),
    });
    Table {
        family,
        name: "proxy-agent".to_owned(),
        sets: vec![Set {
            name: "set",
            key: &[Field::Address, Field::Port],
            timeout: Duration::from_millis(u64::from(seconds) << (priority % 56)),
            size: u32::from(priority) << (seconds % 24),
            comment: "sources",
            members: Vec::new(),
        }],
        chains: vec![Chain {
            name: "chain",
            base: (seconds % 2 == 0).then_some(Base {
                hook: [Hook::Prerouting, Hook::Input, Hook::Output][usize::from(seconds % 3)],
                priority: -300 + i32::from(priority),
            }),
            rules: rules.collect(),
            is_filled_later: false,
        }],
    }
}

fn compare(table: &Table) {
    let wanted = table.outline();
    let mut found = Outline {
        objects: wanted.objects,
        ..Outline::of(&table.named())
    };
    let mut chain = None;
    let mut comments = Vec::new();
    for (_, family, message) in table.content() {
        match echo(family, message).expect("a message of nf_tables") {
            NfTablesMessage::NewSet(set) => found.sets.push(set.into()),
            NfTablesMessage::NewChain(message) => chain = Some(message),
            NfTablesMessage::NewRule(rule) => {
                comments.push(comment_of(&rule));
                // Nothing has been counted yet, and a counter is sent in another form than that in which the kernel
                // reports it.
                assert_eq!(count(&rule), None);
            }
            _ => {}
        }
    }
    let chain = chain.expect("it has one");
    found
        .chains
        .push(ChainOutline::of("chain", chain, comments));
    assert_eq!(found, wanted);
}
