// SPDX-License-Identifier: Apache-2.0

//! Plans, and the published state.

mod played;

use proptest::prelude::*;
use proxy_netlink::netfilter::{self, Family, Table};

use super::plan::{Facts, plan};
use super::*;
use crate::backend::decisions;
use crate::backend::live::Live;
use crate::config::ProxyUpstream;

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

const FAMILIES: [Family; 2] = [Family::IPv4, Family::IPv6];

fn tables_of(desired: &Desired) -> Vec<Table> {
    rules::tables(Instance::default(), &FAMILIES, desired)
}

/// The outlines that reading these tables would return.
fn observed(tables: &[Table]) -> tables::Observed {
    let outlines = tables
        .iter()
        .map(|table| (table.title(), Some(table.outline())));
    outlines.collect()
}

/// The tables of a backend.
fn of_backend() -> Vec<Table> {
    let config = Config {
        vips: vec!["10.96.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        ports: vec![443],
        proxy_upstream: ProxyUpstream::Auto,
        ..Config::default()
    };
    decisions::tables(&config, &Live::default())
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

/// The rules fill chains that the backend's tables have, and the backend leaves them alone.
#[test]
fn tables_with_these_rules_are_those_of_the_backend() {
    let rules = tables_of(&desired(&[endpoint("192.0.2.1:443")], &[], &[7]));
    for (whole, rules) in of_backend().iter().zip(&rules) {
        assert_eq!(whole.title(), rules.title());
        let mut filled = whole.clone();
        for chain in &rules.chains {
            let there = filled.chains.iter_mut();
            let mut there = there.filter(|one| one.name == chain.name);
            let place = there.next().expect(chain.name);
            assert!(place.is_filled_later && place.rules.is_empty());
            place.rules.clone_from(&chain.rules);
        }
        assert_eq!(filled.outline(), whole.outline());
    }
}

#[test]
fn a_family_without_endpoints_has_no_rules() {
    let six = endpoint("[2001:db8::1]:443");
    let before = tables_of(&desired(&[endpoint("192.0.2.1:443"), six], &[], &[7]));
    let ops = plan(&tables_of(&desired(&[six], &[], &[7])), &observed(&before));
    let [tables::Op::Rewrite(table)] = &ops[..] else {
        panic!("{ops:?}");
    };
    assert!(table.chains.iter().all(|chain| chain.rules.is_empty()));
    assert_eq!(
        ops[0].to_string(),
        "change the rules of nf_tables table ip proxy-agent"
    );
}

/// An untracked SYN needs a rule with a cgroup: without one, nothing is decided.
#[test]
fn without_a_cgroup_nothing_opens() {
    let notracks = |cgroups: &[u64]| {
        let tables = tables_of(&desired(&[endpoint("192.0.2.1:443")], &[], cgroups));
        let open = tables[0]
            .chains
            .iter()
            .find(|chain| chain.name == of_proxy::OPEN);
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

/// Before endpoints are known there are rules if the proxy is known, in the families of the VIPs.
#[test]
fn what_notes_other_connections_is_there_where_they_are_learned() {
    let learning = |cgroups: &[u64]| Desired {
        learns_in: vec![Family::IPv4],
        ..desired(&[], &[], cgroups)
    };
    // The names of the chains with rules.
    let chains = |desired: &Desired| {
        let tables = tables_of(desired).into_iter();
        let names = tables.map(|table| {
            let chains = table.chains.into_iter();
            let chains = chains.filter(|chain| !chain.rules.is_empty());
            chains.map(|chain| chain.name).collect()
        });
        names.collect::<Vec<Vec<_>>>()
    };
    assert!(chains(&learning(&[])).iter().all(Vec::is_empty));
    assert_eq!(
        chains(&learning(&[7])),
        [vec![of_proxy::OUTPUT, of_proxy::OTHER], vec![]]
    );
    let named = chains(&desired(&[endpoint("192.0.2.1:443")], &[], &[7]));
    assert!(!named[0].contains(&of_proxy::OTHER), "{named:?}");
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
            let tables::Op::Rewrite(table) = op else {
                panic!("{op}");
            };
            let old = there.insert(table.title(), Some(table.outline())).flatten();
            prop_assert!(old.is_some_and(|old| old.differs_in_rules(&table.outline())));
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
