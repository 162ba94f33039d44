// SPDX-License-Identifier: Apache-2.0

//! Comments, outlines and expressions.

use netlink_packet_core::{Nla as _, NlaBuffer, Parseable as _};
use proptest::prelude::*;

use super::outline::comment_of;
use super::*;
use crate::netfilter::expression::{self, End};

fn rule(purpose: &str, program: u32) -> Rule {
    Rule {
        purpose: purpose.to_owned(),
        program: Some(program),
        expressions: Vec::new(),
    }
}

fn table(rules: Vec<Rule>) -> Table {
    Table {
        family: Family::IPv4,
        name: "test".to_owned(),
        sets: Vec::new(),
        chains: vec![Chain {
            name: "output",
            base: Some(Base {
                hook: Hook::Output,
                priority: -300,
            }),
            rules,
        }],
    }
}

#[test]
fn another_program_is_a_difference_but_not_another_rule() {
    let old = table(vec![rule("a", 1), rule("b", 2)]).outline();
    let new = table(vec![rule("a", 3), rule("b", 4)]).outline();
    assert_ne!(old, new);
    assert!(old.has_rules_of(&new));
}

#[test]
fn a_missing_or_changed_rule_is_another_rule() {
    let both = table(vec![rule("a", 1), rule("b", 2)]).outline();
    let swapped = table(vec![rule("b", 2), rule("a", 1)]).outline();
    let one = table(vec![rule("a", 1)]).outline();
    for other in [swapped, one] {
        assert!(!both.has_rules_of(&other));
    }
    let mut dormant = both.clone();
    dormant.dormant = true;
    assert!(!both.has_rules_of(&dormant));
    let mut crowded = both.clone();
    crowded.objects += 1;
    assert!(!both.has_rules_of(&crowded), "somebody added a chain");
}

/// The bytes nft itself sends for `ip daddr 10.96.0.2 tcp dport 443`, from its `--debug=netlink`.
#[test]
fn expressions_compare_address_protocol_and_port() {
    let expressions = expression::endpoint(End::Destination, "10.96.0.2".parse().unwrap(), 443);
    let told = format!("{expressions:?}");
    for part in [
        "Base(1), Offset(16), Len(4)",
        "Value([10, 96, 0, 2])",
        "Key(L4Proto)",
        "Value([6])",
        "Base(2), Offset(2), Len(2)",
        "Value([1, 187])",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
}

fn with_user_data(data: Vec<u8>) -> RuleMessage {
    RuleMessage {
        attributes: vec![RuleAttribute::UserData(data)],
    }
}

#[test]
fn a_rule_without_comment_has_an_empty_one() {
    assert_eq!(comment_of(&RuleMessage { attributes: vec![] }), "");
    // User data of another type only.
    assert_eq!(comment_of(&with_user_data(vec![9, 1, 0])), "");
}

proptest! {
    #[test]
    fn comments_survive_the_round_trip(purpose in "[ -~]{0,90}", program: u32) {
        let comment = rule(&purpose, program).comment();
        let read = comment_of(&with_user_data(encode_comment(&comment)));
        prop_assert_eq!(read, comment);
    }

    #[test]
    fn any_user_data_is_read(data in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = comment_of(&with_user_data(data));
    }

    /// What we emit is what the parser of the crate reads back.
    #[test]
    fn rules_survive_the_round_trip(fd: i32, port: u16, octets: [u8; 4]) {
        let mut expressions = expression::endpoint(End::Source, octets.into(), port);
        expressions.push(expression::bpf(fd));
        expressions.push(expression::notrack());
        let attribute =
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect());
        let mut buffer = vec![0; attribute.value_len() + 4];
        netlink_packet_core::Emitable::emit(&attribute, &mut buffer);
        let read = RuleAttribute::parse(&NlaBuffer::new(&buffer)).unwrap();
        prop_assert_eq!(read, attribute);
    }
}
