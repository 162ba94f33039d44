// SPDX-License-Identifier: Apache-2.0

//! The plan, and the tables as far as they need no kernel.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proxy_netlink::netfilter::Table;

use super::*;
use crate::backend::tables;
use crate::config::Guard;

fn config(vips: &[&str]) -> Config {
    Config {
        vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        ports: vec![443],
        max_connections: 1024,
        ..Config::default()
    }
}

fn of_decisions(config: &Config) -> Vec<Table> {
    decisions::tables(config, &Live::default())
}

fn texts(desired: &[Table], observed: &tables::Observed) -> Vec<String> {
    let ops = tables::plan(desired, observed);
    ops.iter().map(ToString::to_string).collect()
}

/// The kernel's state after all operations.
fn after(desired: &[Table]) -> tables::Observed {
    let outlines = desired.iter();
    outlines
        .map(|table| {
            let outline = (!table.chains.is_empty()).then(|| table.outline());
            (table.title(), outline)
        })
        .collect()
}

#[test]
fn missing_tables_are_installed_and_others_deleted() {
    let desired = of_decisions(&config(&["10.96.0.2"]));
    let nothing = desired.iter().map(|table| (table.title(), None)).collect();
    assert_eq!(
        texts(&desired, &nothing),
        ["install nf_tables table ip proxy-agent (it is missing)"]
    );
    let both = of_decisions(&config(&["10.96.0.2", "fd00:96::2"]));
    assert_eq!(
        texts(&desired, &after(&both)),
        ["delete nf_tables table ip6 proxy-agent"]
    );
    assert!(
        tables::plan(&desired, &tables::Observed::new()).is_empty(),
        "nothing was read"
    );
}

#[test]
fn another_size_of_the_sets_is_a_difference() {
    let desired = of_decisions(&config(&["10.96.0.2"]));
    let mut larger = config(&["10.96.0.2"]);
    larger.max_connections *= 2;
    assert_eq!(
        texts(&of_decisions(&larger), &after(&desired)),
        ["install nf_tables table ip proxy-agent (it differs)"]
    );
}

proptest! {
/// For any observed state, one plan is enough, and the next one is empty.
    #[test]
    fn it_converges(
        wanted in prop::collection::btree_set(0..6_u8, 1..5),
        found in prop::option::of(prop::collection::btree_set(0..6_u8, 0..5)),
    ) {
        let vips = |numbers: &BTreeSet<u8>| {
            let numbers = numbers.iter();
            Config {
                vips: numbers.map(|number| match number % 2 {
                    0 => [10, 96, 0, *number].into(),
                    _ => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(*number)].into(),
                }).collect(),
                ..config(&[])
            }
        };
        let desired = of_decisions(&vips(&wanted));
        let mut observed = match &found {
            Some(found) => after(&of_decisions(&vips(found))),
            None => desired.iter().map(|table| (table.title(), None)).collect(),
        };
        for op in tables::plan(&desired, &observed) {
            match op {
                tables::Op::Install(tables) => for (table, _) in tables {
                    observed.insert(table.title(), Some(table.outline()));
                },
                tables::Op::Delete(table) => {
                    observed.insert(table.title(), None);
                }
                tables::Op::Rewrite(table) => prop_assert!(false, "{}", table.title()),
            }
        }
        prop_assert_eq!(&observed, &after(&desired));
        prop_assert!(tables::plan(&desired, &observed).is_empty());
    }
}

#[test]
fn the_guard_has_tables_of_its_own_and_counts_drops() {
    let mut config = config(&["10.96.0.2"]);
    config.ports.push(8443);
    config.allow_from = vec![
        "192.0.2.0/24".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ];
    let mut links = Links::default();
    links.guarded.insert(2, "eth0".to_owned());
    let [ip, ip6]: [Table; 2] = guard::tables(&config, &links).try_into().unwrap();
    assert_eq!(
        (ip.title().as_str(), ip6.chains.len()),
        ("ip proxy-agent_guard", 0)
    );
    let purposes = |chain: usize| {
        let rules = ip.chains[chain].rules.iter();
        rules.map(|rule| rule.purpose.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(
        purposes(0),
        [
            "from this node",
            "from 10.96.0.2: nobody but this node",
            "to 10.96.0.2:443",
            "to 10.96.0.2:8443",
        ]
    );
    assert_eq!(
        purposes(1),
        [
            "to 10.96.0.2:443 from a loopback address",
            "to 10.96.0.2:8443 from a loopback address",
            "from 192.0.2.0/24",
            "to 10.96.0.2:443 from outside, by eth0 (ifindex 2)",
            "to 10.96.0.2:8443 from outside, by eth0 (ifindex 2)",
        ]
    );
    let vip = "10.96.0.2:443".parse().unwrap();
    let causes = |chain: usize, is_first| {
        let causes = purposes(chain).into_iter();
        causes
            .filter_map(|purpose| guard::cause(purpose, vip, is_first))
            .count()
    };
    assert_eq!(
        [causes(0, true), causes(0, false), causes(1, true)],
        [1, 0, 2]
    );
    config.guard = Guard::Off;
    assert!(
        guard::tables(&config, &links)
            .iter()
            .all(|table| table.chains.is_empty())
    );
}
