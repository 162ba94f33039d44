// SPDX-License-Identifier: Apache-2.0

//! Arbitrary output of the iptables and ipset programs.

use proxy_rules::ipset;
use proxy_rules::xtables::{ParseError, Saved, SavedTable, words};

use super::rules::{Rule, Table};
use super::sets;
use crate::instance::Instance;
use crate::ownership::{self, MARKS, Owned as _};

/// The tables that are parsed; others are left alone.
const NAMES: [&str; 4] = ["raw", "mangle", "filter", "nat"];

/// What `iptables-save` prints.
///
/// Parsing and printing round-trips; a table without its end is an error, never a shorter table; ownership depends on the comment
/// alone; and a recognised rule is the same rule when the agent prints it.
pub fn iptables_save(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(saved) = Saved::parse(text) else {
        return;
    };
    for name in NAMES {
        let Some(table) = saved.table(name) else {
            continue;
        };
        let printed = print(name, table);
        let again = Saved::parse(&printed).expect("it is well formed");
        assert_eq!(again.table(name), Some(table), "{printed}");
        let cut = printed.strip_suffix("COMMIT\n").expect("it is its end");
        let line = cut.lines().count() + 1;
        let table_name = name.to_owned();
        let expected = ParseError::Truncated {
            table: table_name,
            line,
        };
        assert_eq!(Saved::parse(cut), Err(expected));
        look_at(name, table);
    }
}

fn print(name: &str, table: &SavedTable) -> String {
    let chains = table.chains.iter();
    let chains = chains.map(|chain| format!(":{} {} [0:0]\n", chain.name, chain.policy));
    let rules = table.rules.iter();
    let rules = rules.map(|rule| format!("-A {} {}\n", rule.chain, rule.spec));
    let lines: Vec<_> = chains.chain(rules).collect();
    format!("*{name}\n{}COMMIT\n", lines.concat())
}

fn look_at(name: &str, table: &SavedTable) {
    for rule in &table.rules {
        let Some(words) = words(&rule.spec) else {
            assert_eq!(rule.owner(), None);
            continue;
        };
        assert_eq!(self::words(&quoted(&words)).as_ref(), Some(&words));
        if let Some(owner) = rule.owner() {
            let mut pairs = words.windows(2).filter(|pair| pair[0] == "--comment");
            assert!(pairs.any(|pair| ownership::owner(&pair[1]) == Some(owner)));
        }
        let owner = rule.owner().unwrap_or_default();
        for of in Table::ALL.into_iter().filter(|of| of.name() == name) {
            let Some(known) = Rule::recognise(owner, of, &rule.chain, &words) else {
                continue;
            };
            assert_eq!(known.kind.chain(owner), rule.chain);
            let printed = self::words(&known.spec()).expect("what we print has words");
            assert_eq!(
                Rule::recognise(owner, of, &rule.chain, &printed),
                Some(known)
            );
            assert!(
                words
                    .iter()
                    .any(|word| word.contains(&known.port.to_string()))
            );
        }
    }
    assert!(!table.filters(MARKS) || table.has_foreign_content(MARKS));
    if table.rules.iter().any(|rule| rule.owner().is_none()) {
        assert!(table.filters(MARKS));
    }
}

/// Words as one rule, each in quotes.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| {
        let word = word.replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{word}\"")
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// What `ipset list -terse` prints.
///
/// Only sets of the given instance are found; parsing and printing round-trips. A list that ends within a set is an error.
pub fn ipset_list(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for instance in ["", "b"] {
        let instance: Instance = instance.parse().expect("a name");
        let parse = |text: &str| ipset::parse(text).map(|sets| sets::own(sets, instance));
        let Ok(found) = parse(text) else {
            return;
        };
        let mut printed = String::new();
        for set in &found {
            assert_eq!(sets::owner(&set.name), Some(instance));
            printed.extend(["Name: ", &set.name, "\nType: ", &set.kind, "\nHeader:"]);
            let number = |value: Option<u32>| value.map(|value| value.to_string());
            for (word, value) in [
                ("family", set.family.clone()),
                ("timeout", number(set.timeout)),
                ("maxelem", number(set.max_elements)),
            ] {
                if let Some(value) = value {
                    printed.extend([" ", word, " ", &value]);
                }
            }
            printed += "\n";
            assert_eq!(
                parse(&printed),
                Err(ParseError::Set {
                    name: set.name.clone()
                })
            );
            printed += "References: 0\n";
        }
        assert_eq!(parse(&printed), Ok(found));
    }
}
