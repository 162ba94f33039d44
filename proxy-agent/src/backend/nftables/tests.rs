// SPDX-License-Identifier: Apache-2.0

//! The plan, and the tables as far as no kernel is needed.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::plan::plan;
use super::ruleset::tables;
use super::*;
use crate::backend::live::Connection;
use crate::instance::Instance;
use crate::netfilter::set::Value;

fn settings(vips: &[&str]) -> Settings {
    Settings {
        instance: Instance::default(),
        endpoints: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        max_connections: 1024,
        guard: true,
        allow_from: Vec::new(),
    }
}

fn told(desired: &[Table], observed: &tables::Observed) -> Vec<String> {
    plan(desired, observed).iter().map(Op::to_string).collect()
}

/// What the kernel shows once everything was done.
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
    let desired = tables(&settings(&["10.96.0.2:443"]), &Live::default());
    let nothing = desired.iter().map(|table| (table.title(), None)).collect();
    assert_eq!(
        told(&desired, &nothing),
        ["install nf_tables table ip proxy-agent (it is missing)"]
    );
    let both = tables(
        &settings(&["10.96.0.2:443", "[fd00:96::2]:443"]),
        &Live::default(),
    );
    assert_eq!(
        told(&desired, &after(&both)),
        ["delete nf_tables table ip6 proxy-agent"]
    );
    assert!(
        plan(&desired, &tables::Observed::new()).is_empty(),
        "nothing was read"
    );
}

#[test]
fn another_size_of_the_sets_is_a_difference() {
    let desired = tables(&settings(&["10.96.0.2:443"]), &Live::default());
    let mut larger = settings(&["10.96.0.2:443"]);
    larger.max_connections *= 2;
    assert_eq!(
        told(&tables(&larger, &Live::default()), &after(&desired)),
        ["install nf_tables table ip proxy-agent (it differs)"]
    );
}

#[test]
fn live_connections_fill_the_set_of_their_family_and_are_no_difference() {
    let vip = "10.96.0.2:443".parse().unwrap();
    let client = "10.244.0.7:40000".parse().unwrap();
    let live = Live {
        untracked: vec![Connection { client, vip }],
        translated: Vec::new(),
    };
    let settings = settings(&["10.96.0.2:443", "[fd00:96::2]:443"]);
    let filled = tables(&settings, &live);
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
    assert!(plan(&tables(&settings, &Live::default()), &after(&filled)).is_empty());
}

proptest! {
    /// Whatever is there, one plan is enough, and the next one finds nothing to do.
    #[test]
    fn it_converges(
        wanted in prop::collection::btree_set(0..6_u8, 1..5),
        found in prop::option::of(prop::collection::btree_set(0..6_u8, 0..5)),
    ) {
        let vips = |numbers: &BTreeSet<u8>| {
            let numbers = numbers.iter();
            Settings {
                instance: Instance::default(),
                endpoints: numbers.map(|number| match number % 2 {
                    0 => ([10, 96, 0, *number], 443).into(),
                    _ => ([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(*number)], 443).into(),
                }).collect(),
                max_connections: 1024,
                guard: true,
                allow_from: Vec::new(),
            }
        };
        let desired = tables(&vips(&wanted), &Live::default());
        let mut observed = match &found {
            Some(found) => after(&tables(&vips(found), &Live::default())),
            None => desired.iter().map(|table| (table.title(), None)).collect(),
        };
        for op in plan(&desired, &observed) {
            match op {
                Op::Install { tables } => for (table, _) in tables {
                    observed.insert(table.title(), Some(table.outline()));
                },
                Op::Delete { table } => {
                    observed.insert(table.title(), None);
                }
            }
        }
        prop_assert_eq!(&observed, &after(&desired));
        prop_assert!(plan(&desired, &observed).is_empty());
    }
}

#[test]
fn the_guard_is_apart_and_tells_whom_it_drops() {
    let mut settings = settings(&["10.96.0.2:443", "10.96.0.2:8443"]);
    settings.allow_from = vec![
        "192.0.2.0/24".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ];
    let mut links = Links::default();
    links.guarded.insert(2, "eth0".to_owned());
    let [ip, ip6]: [Table; 2] = guard::tables(&settings, &links).try_into().unwrap();
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
    settings.guard = false;
    assert!(
        guard::tables(&settings, &links)
            .iter()
            .all(|table| table.chains.is_empty())
    );
}
