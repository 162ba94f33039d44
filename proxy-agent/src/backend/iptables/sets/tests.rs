// SPDX-License-Identifier: Apache-2.0

//! Examples for the sets, and properties of their plan against a model of ipset.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proxy_rules::ipset::{self, SavedSet};
use proxy_rules::xtables::{Family, ParseError};

use super::plan::{Op, Plan, plan};
use super::program::creation;
use super::{Set, TYPE, desired, own, owner};
use crate::backend::live::{Connection, Live};
use crate::instance::{self, Instance};

const LIST: &str = "\
Name: proxy-agent-d4-443
Type: hash:ip,port,ip
Revision: 6
Header: family inet hashsize 16384 maxelem 65536 timeout 3600 bucketsize 12 initval 0x842866ff
Size in memory: 568
References: 15
Number of entries: 3

Name: KUBE-LOOP-BACK
Type: hash:ip,port,ip
Revision: 6
Header: family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x9d0bf71e
Size in memory: 208
References: 0
Number of entries: 0

Name: proxy-agent-n6-443
Type: bitmap:port
Revision: 3
Header: range 0-1023
Size in memory: 208
References: 0
Number of entries: 0
";

fn vips() -> Vec<IpAddr> {
    ["10.96.0.2", "fd00:96::2"]
        .map(|vip| vip.parse().unwrap())
        .to_vec()
}

fn parse(text: &str) -> Result<Vec<SavedSet>, ParseError> {
    parse_of(text, Instance::default())
}

fn parse_of(text: &str, instance: Instance) -> Result<Vec<SavedSet>, ParseError> {
    ipset::parse(text).map(|sets| own(sets, instance))
}

fn saved(set: Set) -> SavedSet {
    let parameters = set.parameters();
    let parameters = parameters.strip_prefix(TYPE).expect("the type comes first");
    let name = set.name();
    let text = format!("Name: {name}\nType: {TYPE}\nHeader:{parameters}\nReferences: 0\n");
    ipset::parse(&text).expect("it is whole").remove(0)
}

#[test]
fn sets_of_ours_are_read() {
    let sets = parse(LIST).unwrap();
    let of_another = parse_of(LIST, "d4".parse().unwrap());
    assert_eq!(of_another, Ok(Vec::new()));
    let wanted = desired(Instance::default(), &vips(), &[443], 65536);
    assert_eq!(sets.len(), 2);
    assert_eq!(sets[0], saved(wanted[0]));
    assert!(wanted[0].is(&sets[0]));
    assert_eq!(sets[1].name, wanted[3].name());
    assert!(!wanted[3].resembles(&sets[1]));
}

#[test]
fn a_list_that_is_cut_off_is_an_error() {
    let name = "proxy-agent-d4-443".to_owned();
    let error = Err(ParseError::Set { name });
    assert_eq!(parse(LIST.split("References").next().unwrap()), error);
    assert_eq!(parse(&LIST.replacen("References: 15\n", "", 1)), error);
    assert_eq!(parse(""), Ok(Vec::new()));
}

#[test]
fn a_set_is_filled_with_what_belongs_to_it() {
    let connection = |client: &str, vip: &str| Connection {
        client: client.parse().unwrap(),
        vip: vip.parse().unwrap(),
    };
    let live = Live {
        untracked: vec![
            connection("10.244.0.10:40000", "10.96.0.2:443"),
            connection("10.244.0.10:40001", "10.96.0.2:6443"),
            connection("[fd00:244::a]:40002", "[fd00:96::2]:443"),
            connection("10.96.0.2:40003", "10.96.0.2:443"),
        ],
        translated: vec![connection("[fd00:244::b]:40004", "[fd00:96::2]:443")],
    };
    let sets = desired(Instance::default(), &vips(), &[443], 1024);
    let scripts: String = sets
        .iter()
        .map(|set| creation(*set, &set.name(), &live))
        .collect();
    let create =
        |name, rest| format!("create proxy-agent-{name}-443 hash:ip,port,ip family {rest}\n");
    let expected = [
        create("d4", "inet hashsize 1024 maxelem 1024 timeout 3600"),
        "add proxy-agent-d4-443 10.244.0.10,tcp:40000,10.96.0.2\n".to_owned(),
        "add proxy-agent-d4-443 10.96.0.2,tcp:40003,10.96.0.2\n".to_owned(),
        create("n4", "inet hashsize 1024 maxelem 1024 timeout 300"),
        create("d6", "inet6 hashsize 1024 maxelem 1024 timeout 3600"),
        "add proxy-agent-d6-443 fd00:244::a,tcp:40002,fd00:96::2\n".to_owned(),
        create("n6", "inet6 hashsize 1024 maxelem 1024 timeout 300"),
        "add proxy-agent-n6-443 fd00:244::b,tcp:40004,fd00:96::2\n".to_owned(),
    ];
    assert_eq!(scripts, expected.concat());
}

#[test]
fn no_more_is_filled_in_than_fits() {
    let connection = |port| Connection {
        client: (vips()[0], port).into(),
        vip: (vips()[0], 443).into(),
    };
    let live = Live {
        untracked: (10_000..20_000).map(connection).collect(),
        translated: Vec::new(),
    };
    let set = desired(Instance::default(), &vips(), &[443], 1024)[0];
    assert_eq!(creation(set, "x", &live).lines().count(), 1 + 1024);
}

#[test]
fn changed_sets_are_replaced_and_unused_ones_go_last() {
    let old = desired(Instance::default(), &vips(), &[443], 1024);
    let observed: Vec<SavedSet> = old.iter().copied().map(saved).collect();
    assert_eq!(plan(&old, &observed, &[]), Plan::default());
    let new = desired(Instance::default(), &vips()[..1], &[443], 2048);
    let changed = plan(&new, &observed, &[]);
    let shown: Vec<String> = changed.before.iter().map(ToString::to_string).collect();
    let filled = "filled with the proxy's connections";
    let parameters = "hash:ip,port,ip family inet hashsize 1024 maxelem 2048";
    assert_eq!(
        shown,
        [
            format!("replace set proxy-agent-d4-443 ({parameters} timeout 3600), {filled}"),
            format!("replace set proxy-agent-n4-443 ({parameters} timeout 300), {filled}"),
        ]
    );
    let shown: Vec<String> = changed.after.iter().map(ToString::to_string).collect();
    let unused = ["proxy-agent-d6-443", "proxy-agent-n6-443"];
    assert_eq!(shown, unused.map(|name| format!("destroy set {name}")));
    // Rules were missing in one family.
    let refilled = plan(&old, &observed, &[Family::V6]);
    assert_eq!(refilled.before, [Op::Replace(old[2]), Op::Replace(old[3])]);
    assert!(refilled.after.is_empty());
}

/// Models ipset; none if it refuses an operation. The model has no sets in use.
fn carry_out(sets: &mut BTreeMap<String, SavedSet>, op: &Op) -> Option<()> {
    match op {
        Op::Create(set) => sets.insert(set.name(), saved(*set)).is_none().then_some(()),
        Op::Replace(set) => {
            let unfinished = set.unfinished();
            let there = sets.get(&set.name())?;
            (set.resembles(there) && !sets.contains_key(&unfinished)).then_some(())?;
            sets.insert(set.name(), saved(*set)).map(drop)
        }
        Op::Destroy(name) => sets.remove(name).map(drop),
    }
}

fn any_sets() -> impl Strategy<Value = BTreeMap<String, SavedSet>> {
    let names = desired(Instance::default(), &vips(), &[443, 6443], 1024);
    let names = names.iter().flat_map(|set| [set.name(), set.unfinished()]);
    let names: Vec<String> = names
        .chain([
            "proxy-agent-probe-77".to_owned(),
            "proxy-agent-n4-443-new".to_owned(),
        ])
        .collect();
    let set = (
        select(vec!["hash:ip,port,ip", "hash:ip"]),
        select(vec!["inet", "inet6"]),
        proptest::option::of(select(vec![300, 3600])),
        select(vec![1024, 2048]),
    );
    btree_map(select(names), set, 0..12).prop_map(|sets| {
        let mut saved = BTreeMap::new();
        for (name, (kind, family, timeout, max_elements)) in sets {
            let set = SavedSet {
                name: name.clone(),
                kind: kind.to_owned(),
                family: Some(family.to_owned()),
                timeout,
                max_elements: Some(max_elements),
            };
            saved.insert(name, set);
        }
        saved
    })
}

proptest! {
    #[test]
    fn one_plan_makes_the_sets_as_desired(
        mut sets in any_sets(),
        vips in subsequence(vips(), 0..=2),
        ports in subsequence(vec![443u16, 6443, 8443], 0..=3),
        refilled in subsequence(Family::ALL.to_vec(), 0..=2),
    ) {
        let wanted = desired(Instance::default(), &vips, &ports, 2048);
        let observed: Vec<SavedSet> = sets.values().cloned().collect();
        let changes = plan(&wanted, &observed, &refilled);
        for op in changes.before.iter().chain(&changes.after) {
            prop_assert!(carry_out(&mut sets, op).is_some(), "{}", op);
        }
        let mut expected: Vec<SavedSet> = wanted.iter().copied().map(saved).collect();
        expected.sort_by(|a, b| a.name.cmp(&b.name));
        let after: Vec<SavedSet> = sets.into_values().collect();
        prop_assert_eq!(&after, &expected);
        prop_assert_eq!(plan(&wanted, &after, &[]), Plan::default());
    }

    #[test]
    fn the_parser_takes_any_text(text in "(?s).*") {
        let _ = parse(&text);
    }

    #[test]
    fn the_parser_takes_any_part_of_a_list(
        lines in subsequence(LIST.lines().collect::<Vec<_>>(), 0..=20)
    ) {
        for set in parse(&lines.join("\n")).unwrap_or_default() {
            prop_assert_eq!(owner(&set.name), Some(Instance::default()));
        }
    }

    #[test]
    fn names_fit_into_the_kernel_and_identify_their_owner(
        instance in instance::any_instance(),
        port in any::<u16>(),
    ) {
        for set in desired(instance, &vips(), &[port], 1024) {
            for name in [set.name(), set.unfinished()] {
                prop_assert!(name.len() <= 31);
                prop_assert_eq!(owner(&name), Some(instance));
            }
        }
    }

    #[test]
    fn a_set_is_nobodys_or_begins_with_its_owners_mark(
        name in "(proxy-agent)?-?[a-z0-9-]{0,9}(-[dnDN][46]-[0-9]{1,5})?(-new)?",
    ) {
        if let Some(instance) = owner(&name) {
            prop_assert!(name.starts_with(&instance.mark()));
        }
    }
}
