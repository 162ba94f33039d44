// SPDX-License-Identifier: Apache-2.0

//! Tests comments, outlines and expressions.

use netlink_packet_core::{Nla as _, NlaBuffer, Parseable as _};
use proptest::prelude::*;

use super::outline::comment_of;
use super::*;
use crate::netfilter::expression::{self, End};

fn rule(purpose: &str) -> Rule {
    Rule {
        purpose: purpose.to_owned(),
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
            is_filled_later: false,
        }],
    }
}

#[test]
fn a_missing_or_changed_rule_is_a_difference() {
    let both = table(vec![rule("a"), rule("b")]).outline();
    let swapped = table(vec![rule("b"), rule("a")]).outline();
    let one = table(vec![rule("a")]).outline();
    for other in [swapped, one] {
        assert_ne!(both, other);
    }
    assert_eq!(both, table(vec![rule("a"), rule("b")]).outline());
}

/// The bytes that nft sends for `ip daddr 10.96.0.2 tcp dport 443`, from its `--debug=netlink`.
#[test]
fn expressions_compare_address_protocol_and_port() {
    let expressions = expression::endpoint(End::Destination, "10.96.0.2".parse().unwrap(), 443);
    let text = format!("{expressions:?}");
    for part in [
        "Base(1), Offset(16), Len(4)",
        "Value([10, 96, 0, 2])",
        "Key(L4Proto)",
        "Value([6])",
        "Base(2), Offset(2), Len(2)",
        "Value([1, 187])",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
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
    // The user data contains only another type.
    assert_eq!(comment_of(&with_user_data(vec![9, 1, 0])), "");
}

proptest! {
    #[test]
    fn comments_survive_the_round_trip(purpose in "[ -~]{0,90}") {
        let read = comment_of(&with_user_data(encode_comment(&purpose)));
        prop_assert_eq!(read, purpose);
    }

    #[test]
    fn any_user_data_is_read(data in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = comment_of(&with_user_data(data));
    }

    /// The parser of the crate returns the expressions that were emitted.
    #[test]
    fn rules_survive_the_round_trip(priority: u32, port: u16, octets: [u8; 4]) {
        let mut expressions = expression::endpoint(End::Source, octets.into(), port);
        expressions.extend(expression::has_socket());
        expressions.extend(expression::set_priority(priority));
        expressions.push(expression::notrack());
        let attribute =
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect());
        let mut buffer = vec![0; attribute.value_len() + 4];
        netlink_packet_core::Emitable::emit(&attribute, &mut buffer);
        let read = RuleAttribute::parse(&NlaBuffer::new(&buffer)).unwrap();
        prop_assert_eq!(read, attribute);
    }
}
