// SPDX-License-Identifier: Apache-2.0

//! Plans, and the published state.

mod played;

use proptest::prelude::*;
use proxy_netlink::netfilter::{Family, Table};

use super::plan::{Facts, plan};
use super::*;

fn cgroup(id: u64) -> Cgroup {
    Cgroup {
        id,
        path: format!("/proxy-{id}"),
        levels: vec![1],
    }
}

fn desired(endpoints: &[SocketAddr], left: &[SocketAddr], cgroups: &[u64]) -> Desired {
    Desired {
        endpoints: endpoints.to_vec(),
        left: left.to_vec(),
        cgroups: cgroups.iter().map(|id| cgroup(*id)).collect(),
        learns_in: Vec::new(),
    }
}

fn tables_of(desired: &Desired) -> Vec<Table> {
    rules::tables(Instance::default(), 1024, desired)
}

/// The outlines that reading these tables would return.
fn observed(tables: &[Table]) -> tables::Observed {
    tables
        .iter()
        .map(|table| {
            let there = (!table.chains.is_empty()).then(|| table.outline());
            (table.title(), there)
        })
        .collect()
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_proxy_that_moves_changes_rules_and_no_set() {
    let one = endpoint("192.0.2.1:443");
    let before = tables_of(&desired(&[one], &[], &[7]));
    for after in [
        desired(&[one], &[], &[8]),
        desired(&[one], &[], &[]),
        desired(&[one], &[one], &[7]),
        desired(&[one, endpoint("192.0.2.2:443")], &[], &[7]),
    ] {
        let ops = plan(&tables_of(&after), &observed(&before));
        assert!(matches!(ops[..], [tables::Op::Rewrite(_)]), "{ops:?}");
    }
}

#[test]
fn a_family_without_endpoints_has_no_table() {
    let six = endpoint("[2001:db8::1]:443");
    let before = tables_of(&desired(&[endpoint("192.0.2.1:443"), six], &[], &[7]));
    let ops = plan(&tables_of(&desired(&[six], &[], &[7])), &observed(&before));
    assert!(matches!(ops[..], [tables::Op::Delete(_)]), "{ops:?}");
    assert_eq!(
        ops[0].to_string(),
        "delete nf_tables table ip proxy-agent_upstream"
    );
}

#[test]
fn another_size_of_the_sets_is_a_new_table() {
    let desired = desired(&[endpoint("192.0.2.1:443")], &[], &[7]);
    let before = rules::tables(Instance::default(), 2048, &desired);
    let ops = plan(&tables_of(&desired), &observed(&before));
    assert_eq!(
        ops[0].to_string(),
        "install nf_tables table ip proxy-agent_upstream (it differs)"
    );
    assert_eq!(ops.len(), 1);
}

/// An untracked SYN needs a rule with a cgroup: without one, nothing is decided.
#[test]
fn without_a_cgroup_nothing_opens() {
    let notracks = |cgroups: &[u64]| {
        let tables = tables_of(&desired(&[endpoint("192.0.2.1:443")], &[], cgroups));
        let open = tables[0].chains.iter().find(|chain| chain.name == "open");
        let rules = &open.unwrap().rules;
        let is =
            |rule: &&netfilter::Rule| format!("{:?}", rule.expressions).contains("\"notrack\"");
        rules
            .iter()
            .filter(is)
            .map(|rule| rule.purpose.clone())
            .collect::<Vec<_>>()
    };
    assert!(notracks(&[]).is_empty());
    assert_eq!(notracks(&[7]), ["of cgroup 7, level 1"]);
}

fn judged(facts: &Facts<'_>) -> Option<Reason> {
    let judged = facts.judge(endpoint("192.0.2.1:443"));
    judged.tracked.map(|tracked| tracked.reason)
}

#[test]
fn an_endpoint_is_untracked_only_without_any_reason() {
    let one = endpoint("192.0.2.1:443");
    let (none, way) = (BTreeMap::new(), BTreeMap::from([(one, "NAT".to_owned())]));
    let (never, again) = (BTreeSet::new(), BTreeSet::from([one]));
    let here = Proxy::In(vec![cgroup(7)]);
    let wildcard = Proxy::Unusable(Tracked::new(Reason::Wildcard, ""));
    let facts = |proxy, translated, repeated| Facts {
        unsupported: None,
        proxy,
        translated,
        filtered: &none,
        repeated,
    };
    assert_eq!(judged(&facts(&here, &none, &never)), None);
    assert_eq!(judged(&facts(&here, &way, &again)), Some(Reason::Nat));
    assert_eq!(judged(&facts(&here, &none, &again)), Some(Reason::Repeated));
    assert_eq!(
        judged(&facts(&Proxy::Away, &none, &again)),
        Some(Reason::NoListener)
    );
    assert_eq!(
        judged(&facts(&Proxy::Away, &way, &never)),
        Some(Reason::Nat)
    );
    assert_eq!(
        judged(&facts(&wildcard, &none, &never)),
        Some(Reason::Wildcard)
    );
    let filtered = Facts {
        filtered: &way,
        ..facts(&here, &none, &again)
    };
    assert_eq!(judged(&filtered), Some(Reason::Filter));
    let other_backend = Facts {
        unsupported: Some(Tracked::new(Reason::Backend, "")),
        ..facts(&here, &none, &never)
    };
    assert_eq!(judged(&other_backend), Some(Reason::Backend));
    let others = || Some(Tracked::new(Reason::Company, ""));
    let limit = || Some(Tracked::new(Reason::Limit, ""));
    let reason = |facts: &Facts<'_>, others, limit| {
        let why = facts.learns_not(others, limit);
        why.map(|why| why.reason)
    };
    let fine = facts(&here, &way, &again);
    assert_eq!(reason(&fine, None, None), None);
    assert_eq!(reason(&fine, None, limit()), Some(Reason::Limit));
    assert_eq!(reason(&fine, others(), limit()), Some(Reason::Company));
    assert_eq!(
        reason(&facts(&wildcard, &none, &never), others(), None),
        Some(Reason::Wildcard)
    );
    assert_eq!(
        reason(&other_backend, others(), None),
        Some(Reason::Backend)
    );
}

/// Before endpoints are known there are tables if the proxy is known, in the families of the VIPs.
#[test]
fn what_notes_other_connections_is_there_where_they_are_learned() {
    let learning = |cgroups: &[u64]| Desired {
        learns_in: vec![Family::IPv4],
        ..desired(&[], &[], cgroups)
    };
    assert!(learning(&[]).is_nothing());
    let chains = |desired: &Desired| {
        let tables = tables_of(desired).into_iter();
        let names = tables.map(|table| table.chains.iter().map(|chain| chain.name).collect());
        names.collect::<Vec<Vec<_>>>()
    };
    assert!(chains(&learning(&[])).iter().all(Vec::is_empty));
    assert!(!learning(&[7]).is_nothing());
    let [four, six] = &chains(&learning(&[7]))[..] else {
        panic!("two families");
    };
    assert!(
        four.contains(&"other") && six.is_empty(),
        "{four:?} {six:?}"
    );
    let named = chains(&desired(&[endpoint("192.0.2.1:443")], &[], &[7]));
    assert!(!named[0].contains(&"other"), "{named:?}");
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let some = [
        "192.0.2.1:443",
        "192.0.2.2:6443",
        "[2001:db8::1]:443",
        "[2001:db8::2]:443",
    ]
    .map(endpoint)
    .to_vec();
    let endpoints = prop::sample::subsequence(some, 0..=4);
    let families = prop::sample::subsequence(vec![Family::IPv4, Family::IPv6], 0..=2);
    (
        endpoints,
        prop::collection::vec(2_u64..6, 0..3),
        any::<bool>(),
        families,
    )
        .prop_map(|(endpoints, cgroups, leave, learns_in)| {
            let left = endpoints.iter().copied().filter(|_| leave);
            Desired {
                learns_in,
                ..desired(&endpoints, &left.take(1).collect::<Vec<_>>(), &cgroups)
            }
        })
}

proptest! {
/// Carried out, a plan leaves nothing to do, for any observed and any desired state.
    #[test]
    fn a_plan_is_complete(before in any_desired(), after in any_desired()) {
        let (before, after) = (tables_of(&before), tables_of(&after));
        let mut there = observed(&before);
        for op in plan(&after, &there) {
            match op {
                tables::Op::Install(tables) => {
                    for (table, _) in tables {
                        there.insert(table.title(), Some(table.outline()));
                    }
                }
                tables::Op::Rewrite(table) => {
                    let outline = there.get(&table.title()).and_then(Option::as_ref);
                    prop_assert!(outline.is_some_and(|old| old.differs_in_rules_only(&table.outline())));
                    there.insert(table.title(), Some(table.outline()));
                }
                tables::Op::Delete(table) => {
                    there.insert(table.title(), None);
                }
            }
        }
        prop_assert!(plan(&after, &there).is_empty());
        prop_assert_eq!(there, observed(&after));
    }

    /// What could not be read is not touched.
    #[test]
    fn nothing_is_done_about_what_was_not_read(after in any_desired()) {
        prop_assert!(plan(&tables_of(&after), &tables::Observed::new()).is_empty());
    }
}
