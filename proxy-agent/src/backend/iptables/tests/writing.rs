// SPDX-License-Identifier: Apache-2.0

//! Rules as they are written and recognised.

use proxy_rules::xtables::{Family, words};

use super::{desired, learning, raw};
use crate::backend::iptables::rules::{Rule, Table};
use crate::instance::Instance;
use crate::ownership::{Owned as _, owner};

#[test]
fn rules_are_written_as_save_prints_them() {
    let mut all = Vec::new();
    for family in Family::ALL {
        for table in [Table::Raw, Table::Filter] {
            for rule in desired(table, family) {
                all.push(format!("{table} {rule}"));
            }
        }
    }
    assert_eq!(
        all.join("\n"),
        r#"raw -A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -m comment --comment "proxy-agent: untrack client to VIP" -j NOTRACK
raw -A OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -m comment --comment "proxy-agent: untrack client to VIP" -j NOTRACK
raw -A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -m comment --comment "proxy-agent: untrack VIP to client" -j NOTRACK
filter -A INPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -m comment --comment "proxy-agent: accept client to VIP" -j ACCEPT
filter -A OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -m comment --comment "proxy-agent: accept VIP to client" -j ACCEPT
raw -A PREROUTING -d fd00:96::2/128 -p tcp -m tcp --dport 443 -m comment --comment "proxy-agent: untrack client to VIP" -j NOTRACK
raw -A OUTPUT -d fd00:96::2/128 -p tcp -m tcp --dport 443 -m comment --comment "proxy-agent: untrack client to VIP" -j NOTRACK
raw -A OUTPUT -s fd00:96::2/128 -p tcp -m tcp --sport 443 -m comment --comment "proxy-agent: untrack VIP to client" -j NOTRACK
filter -A INPUT -d fd00:96::2/128 -p tcp -m tcp --dport 443 -m comment --comment "proxy-agent: accept client to VIP" -j ACCEPT
filter -A OUTPUT -s fd00:96::2/128 -p tcp -m tcp --sport 443 -m comment --comment "proxy-agent: accept VIP to client" -j ACCEPT"#
    );
}

/// As iptables 1.8.9 of both flavours prints them.
#[test]
fn learning_rules_are_written_as_save_prints_them() {
    let mut all = Vec::new();
    for table in [Table::Raw, Table::Mangle] {
        for rule in learning(table, Family::V4) {
            all.push(format!("{table} {rule}"));
        }
    }
    let all = all.join("\n");
    let printed = include_str!("learning.txt");
    assert_eq!(all, printed.trim_end());
    let v6 = learning(Table::Raw, Family::V6)[0].to_string();
    assert!(v6.contains("-d fd00:96::2/128 ! -i lo"), "{v6}");
    assert!(v6.contains("proxy-agent-n6-443 src,src,dst"), "{v6}");
}

#[test]
fn a_rule_is_recognised_however_it_is_printed() {
    let decide = learning(Table::Raw, Family::V4)[0];
    for spec in [
        "! -i lo -d 10.96.0.2 -p tcp -m set ! --match-set proxy-agent-n4-443 src,src,dst -m tcp \
         --syn --dport 443 -j SET --exist --add-set proxy-agent-d4-443 src,src,dst",
        "-d 10.96.0.2/32 ! -i lo -p 6 -m tcp --dport 443 --tcp-flags SYN,RST,ACK,FIN SYN -m set ! \
         --match-set proxy-agent-n4-443 src,src,dst -j SET --add-set proxy-agent-d4-443 \
         src,src,dst --exist",
    ] {
        let found = Rule::recognise(
            Instance::default(),
            Table::Raw,
            "PREROUTING",
            &words(spec).unwrap(),
        );
        assert_eq!(found, Some(decide), "{spec}");
    }
    let expected = desired(Table::Raw, Family::V4)[2];
    for spec in [
        "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -m comment --comment x -j NOTRACK",
        "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -m comment --comment x -j CT --notrack",
        "-s 10.96.0.2 -p 6 -m comment --comment x -m tcp --sport 443 -j NOTRACK",
    ] {
        let found = Rule::recognise(
            Instance::default(),
            Table::Raw,
            "OUTPUT",
            &words(spec).unwrap(),
        );
        assert_eq!(found, Some(expected), "{spec}");
    }
}

#[test]
fn a_rule_that_does_anything_else_is_not_recognised() {
    for (table, chain, spec) in [
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/31 -p tcp -m tcp --sport 443 -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "! -s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p udp --sport 443 -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443:444 -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j CT",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j ACCEPT",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK",
        ),
        (
            Table::Raw,
            "PREROUTING",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -o lo -p tcp -m tcp --sport 443 -j NOTRACK",
        ),
        (
            Table::Filter,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j NOTRACK",
        ),
        (Table::Raw, "OUTPUT", "-s"),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m socket -m tcp --sport 443 -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -m set --match-set proxy-agent-d4-444 \
             dst,dst,src -j NOTRACK",
        ),
        (
            Table::Raw,
            "OUTPUT",
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -m set ! --match-set proxy-agent-d4-443 \
             dst,dst,src -j NOTRACK",
        ),
    ] {
        let found = Rule::recognise(Instance::default(), table, chain, &words(spec).unwrap());
        assert_eq!(found, None, "{spec}");
    }
}

#[test]
fn only_the_comment_makes_a_rule_ours() {
    let owned = [
        "proxy-agent",
        "proxy-agent:",
        "proxy-agent: untrack, as 0.0.1 wrote it",
    ];
    let foreign = [
        "",
        "proxy-agents",
        "my proxy-agent",
        "proxy-agent-2: x",
        "Proxy-agent: x",
    ];
    for comment in owned {
        assert_eq!(owner(comment), Some(Instance::default()), "{comment}");
    }
    for comment in foreign {
        assert_ne!(owner(comment), Some(Instance::default()), "{comment}");
    }
    // Not in the comment, but in a string match.
    let table = raw(r#"-A OUTPUT -m string --string "proxy-agent: x" -j ACCEPT"#);
    assert_eq!(table.rules[0].owner(), None);
}
