// SPDX-License-Identifier: Apache-2.0

//! Tests of the tables that need no kernel.

use super::*;

#[test]
fn live_connections_fill_the_set_of_their_family_and_are_no_difference() {
    let vip = "10.96.0.2:443".parse().unwrap();
    let client = "10.244.0.7:40000".parse().unwrap();
    let live = Live {
        untracked: vec![Connection { client, vip }],
        translated: Vec::new(),
    };
    let config = Config {
        vips: vec!["10.96.0.2".parse().unwrap(), "fd00:96::2".parse().unwrap()],
        ports: vec![443],
        max_connections: 1024,
        ..Config::default()
    };
    let filled = tables(&config, &live);
    let members = |table: &Table| table.sets[0].members.clone();
    assert_eq!(
        members(&filled[0]),
        [[
            Value::Address(client.ip()),
            Value::Port(40000),
            Value::Address(vip.ip()),
            Value::Port(443)
        ]]
    );
    assert!(members(&filled[1]).is_empty());
    for (empty, filled) in tables(&config, &Live::default()).iter().zip(&filled) {
        assert_eq!(empty.outline(), filled.outline());
    }
}

/// The order of the rules determines the cost of a packet.
#[test]
fn a_plain_packet_of_a_decided_connection_meets_one_rule_behind_the_entry() {
    let config = Config {
        vips: vec!["10.96.0.2".parse().unwrap()],
        ports: vec![443],
        max_connections: 1024,
        ..Config::default()
    };
    let table = tables(&config, &Live::default()).remove(0);
    for name in ["request", "reply"] {
        let chain = table.chains.iter().find(|chain| chain.name == name);
        assert_eq!(chain.unwrap().rules[0].purpose, "plain, decided");
    }
}

proptest::proptest! {
    /// As `cargo xtask fuzz decision`, but without coverage feedback.
    #[test]
    fn every_packet_of_a_connection_is_treated_as_its_first_one(
        history in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..129),
    ) {
        fuzzing::decision(&history);
    }
}
