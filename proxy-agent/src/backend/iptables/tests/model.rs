// SPDX-License-Identifier: Apache-2.0

//! Properties of the plan, against a model of the tables, and of the parser.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proxy_rules::xtables::{Family, Flavour, Saved, SavedChain, SavedRule, SavedTable, words};

use super::super::plan;
use super::super::rules::{self, Rule, RuleSet, Table};
use super::{NODE, V4, parsed, planned, raw};
use crate::instance::{self, Instance};
use crate::ownership::Owned as _;

/// Models `iptables-restore --noflush`: all lines or, on an error, none.
fn restore(table: &SavedTable, input: &str) -> Result<SavedTable, String> {
    let mut table = table.clone();
    for line in input.lines().filter(|line| line.starts_with('-')) {
        let (verb, rest) = line.split_at(3);
        let (chain, rest) = rest.split_once(' ').ok_or(line)?;
        if verb == "-D " {
            let same = |rule: &SavedRule| rule.chain == chain && rule.spec == rest;
            let first = table.rules.iter().position(same).ok_or(line)?;
            table.rules.remove(first);
        } else {
            let spec = rest.strip_prefix("1 ").ok_or(line)?;
            let printed = format!("*t\n-A {chain} {spec}\nCOMMIT\n");
            let parsed = parsed("t", &printed);
            table.rules.splice(0..0, parsed.rules);
        }
    }
    Ok(table)
}

fn any_rule_set() -> impl Strategy<Value = RuleSet> {
    select(vec![RuleSet::Stateless, RuleSet::Learning])
}

/// A line of a table: the agent's, desired or stale, in one of its spellings, or a foreign one.
fn any_rule(table: Table) -> impl Strategy<Value = String> {
    let vip = select(vec![V4, "10.96.0.3", "192.0.2.1"]);
    let port = select(vec![443u16, 8443]);
    let ours = (vip, port, any_rule_set(), 0..13usize, any::<bool>()).prop_map(
        move |(vip, port, rule_set, which, alias)| {
            let vip = [vip.parse().unwrap()];
            let all = rules::desired(
                Instance::default(),
                table,
                Family::V4,
                rule_set,
                &vip,
                &[port],
            );
            // There are no stateless rules in mangle.
            let Some(rule) = all.get(which % all.len().max(1)) else {
                return "-A INPUT -j MARK".to_owned();
            };
            let line = rule.to_string();
            if alias {
                line.replace("-j NOTRACK", "-j CT --notrack")
            } else {
                line
            }
        },
    );
    let foreign = select(vec![
        "-A OUTPUT -j LOG",
        "-A OUTPUT -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK",
        r#"-A INPUT -m comment --comment "not proxy-agent: x" -j DROP"#,
        "-A PREROUTING -p tcp -j KUBE",
    ]);
    prop_oneof![
        3 => ours,
        1 => Just("-A OUTPUT -p udp -m comment --comment \"proxy-agent: old\" -j DROP".to_owned()),
        2 => foreign.prop_map(str::to_owned),
    ]
}

fn any_table(table: Table) -> impl Strategy<Value = SavedTable> {
    vec(any_rule(table), 0..24).prop_map(|lines| SavedTable {
        chains: vec![SavedChain {
            name: "OUTPUT".to_owned(),
            policy: "ACCEPT".to_owned(),
        }],
        ..raw(&lines.join("\n"))
    })
}

fn foreign(table: &SavedTable) -> Vec<&SavedRule> {
    table
        .rules
        .iter()
        .filter(|rule| rule.owner().is_none())
        .collect()
}

proptest! {
    #[test]
    fn one_plan_makes_a_table_as_desired(
        (table, observed) in select(Table::ALL.to_vec())
            .prop_flat_map(|table| (Just(table), any_table(table))),
        vips in subsequence(vec![V4, "10.96.0.3", "10.96.0.4"], 0..=3),
        ports in subsequence(vec![443u16, 8443], 0..=2),
        rule_set in any_rule_set(),
    ) {
        let vips: Vec<IpAddr> = vips.iter().map(|vip| vip.parse().unwrap()).collect();
        let wanted = rules::desired(Instance::default(), table, Family::V4, rule_set, &vips, &ports);
        let after = match planned(table, Family::V4, &wanted, &observed) {
            Some(op) => {
                let after = restore(&observed, &op.restore_input())
                    .map_err(|line| TestCaseError::fail(format!("refused: {line}")))?;
                prop_assert_eq!(op.missing_in(&after), None);
                after
            }
            None => observed.clone(),
        };
        prop_assert_eq!(foreign(&after), foreign(&observed));
        let mut owned: Vec<Rule> = Vec::new();
        for rule in after.rules.iter().filter(|rule| rule.owner().is_some()) {
            let words = words(&rule.spec).unwrap();
            owned.extend(Rule::recognise(Instance::default(), table, &rule.chain, &words));
        }
        prop_assert_eq!(after.rules.len(), owned.len() + foreign(&after).len());
        for rule in &wanted {
            let group = |other: &&Rule| other.group() == rule.group();
            prop_assert!(owned.iter().filter(group).eq(wanted.iter().filter(group)));
        }
        owned.sort();
        let mut expected = wanted.clone();
        expected.sort();
        prop_assert_eq!(owned, expected);
        prop_assert_eq!(planned(table, Family::V4, &wanted, &after), None);
    }

    #[test]
    fn teardown_leaves_foreign_rules_only(observed in any_table(Table::Raw)) {
        let after = match planned(Table::Raw, Family::V4, &[], &observed) {
            Some(op) => restore(&observed, &op.restore_input()).map_err(TestCaseError::fail)?,
            None => observed.clone(),
        };
        prop_assert_eq!(after.rules.iter().collect::<Vec<_>>(), foreign(&observed));
    }

/// They are neither removed with the agent's own rules, nor taken for desired ones.
    #[test]
    fn rules_of_other_instances_are_foreign(
        own in instance::any_instance(),
        other in instance::any_instance(),
        rule_set in any_rule_set(),
    ) {
        prop_assume!(own != other);
        let vip = [IpAddr::from([10, 96, 0, 2])];
        let rules = |owner| rules::desired(owner, Table::Raw, Family::V4, rule_set, &vip, &[443]);
        let lines: Vec<String> = rules(other).iter().map(ToString::to_string).collect();
        let observed = raw(&lines.join("\n"));
        let plan = |wanted: &[Rule]| {
            plan::plan(own, Flavour::Nft, Family::V4, Table::Raw, wanted, &observed)
        };
        prop_assert_eq!(plan(&[]), None);
        let op = plan(&rules(own)).unwrap();
        prop_assert_eq!((op.deletions.len(), op.insertions), (0, rules(own)));
    }

    #[test]
    fn a_rule_survives_being_printed(
        vip in any::<IpAddr>(),
        port in 1u16..,
        rule_set in any_rule_set(),
        which in 0..15usize,
    ) {
        let desired = |table| rules::desired(Instance::default(), table, Family::of(vip), rule_set, &[vip], &[port]);
        let all = Table::ALL.map(desired).concat();
        let rule = all[which % all.len()];
        let read = raw(&rule.to_string()).rules.remove(0);
        prop_assert_eq!(read.owner(), Some(Instance::default()));
        let words = words(&read.spec).unwrap();
        prop_assert_eq!(Rule::recognise(Instance::default(), rule.kind.table(), &read.chain, &words), Some(rule));
    }

    #[test]
    fn the_parser_takes_any_text(text in "(?s).*") {
        let _ = Saved::parse(&text);
        let _ = words(&text);
    }

    #[test]
    fn the_parser_takes_any_mixture_of_lines(lines in vec(
        prop_oneof![
            select(NODE.lines().map(str::to_owned).collect::<Vec<_>>()),
            "[*:#\\[-][A `'\"\\\\\\]0-9]{0,12}",
        ], 0..12)
    ) {
        let text = lines.join("\n");
        if let Ok(saved) = Saved::parse(&text) {
            let commits = text.lines().filter(|line| line.trim() == "COMMIT").count();
            let begins = text.lines().filter(|line| line.trim().starts_with('*')).count();
            prop_assert_eq!(commits, begins);
            prop_assert_eq!(Saved::parse(&text), Ok(saved));
        }
    }
}
