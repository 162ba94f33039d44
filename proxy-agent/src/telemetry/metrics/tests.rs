// SPDX-License-Identifier: Apache-2.0

//! All metrics, compared with a recorded answer.

use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use proxy_common::guard::Cause;
use proxy_common::{Counters, Reason, Traffic};
use proxy_kernel::conntrack;

use super::*;
use crate::backend::ebpf::statistics::{Fill, Origin};
use crate::link::{LinkTable, Vip};
use crate::state::history::Problem;
use crate::state::upstream::{Endpoint, Reason as UpstreamReason, Tracked};
use crate::status::counters::{self, Row};
use crate::telemetry::health::tests::{snapshot, state};
use crate::telemetry::shared::Phase;

const GOLDEN: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/telemetry/metrics/golden.txt"
);

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_211_000 + seconds)
}

fn row(origin: Origin) -> Row {
    let mut counters = Counters {
        requests: Traffic {
            packets: 20,
            bytes: 2_000,
        },
        decided: 5,
        terminated: 2,
        ..Counters::ZERO
    };
    counters.undecided[Reason::InUse as usize] = 1;
    counters.dropped[Cause::Outside as usize] = 3;
    Row {
        vip: "10.96.0.2:443".parse().unwrap(),
        origin,
        counters,
    }
}

/// The metrics of an agent with every kind of event.
fn eventful() -> (Snapshot, Reading) {
    let mut state = state();
    state.history.ready = false;
    state.history.failed_passes = 3;
    state.history.errors.insert("link".to_owned(), 4);
    state.history.repaired.insert("ebpf".to_owned(), 7);
    state.history.failures.push(Problem {
        part: "link".to_owned(),
        what: "set lo up".to_owned(),
        cause: "no".to_owned(),
    });
    state.backend.rejected.push(crate::state::Rejected {
        backend: "ebpf".to_owned(),
        reason: "bpf(2) is refused".to_owned(),
    });
    state
        .backend
        .breaks
        .push("table \"nat\", to 10.96.0.2".to_owned());
    state.guard.links.push(crate::state::GuardedLink {
        link: "eth0".to_owned(),
        how: "tc".to_owned(),
    });
    state.upstream.learns = true;
    state.upstream.learns_not = Some(Tracked::new(UpstreamReason::Company, "other processes"));
    state.upstream.endpoints.extend([
        Endpoint {
            endpoint: "192.0.2.1:443".parse().unwrap(),
            tracked: None,
        },
        Endpoint {
            endpoint: "[2001:db8::1]:6443".parse().unwrap(),
            tracked: Some(Tracked::new(UpstreamReason::Nat, "NAT")),
        },
    ]);
    state.settings.services.push(crate::config::Service {
        cluster_ip: "10.96.0.1:443".parse().unwrap(),
        vip: "10.96.0.2:443".parse().unwrap(),
    });
    let snapshot = Snapshot {
        started: at(0),
        phase: Phase::Idle,
        state: Some(Arc::new(state)),
        vips: vec![Vip {
            ip: [10, 96, 0, 2].into(),
            link: "lo".to_owned(),
            link_up: false,
            present: true,
            elsewhere: Vec::new(),
        }],
        ended: Some(at(60)),
        succeeded: Some(at(30)),
        ..snapshot()
    };
    let rows = vec![
        row(Origin::ThisHost),
        row(Origin::Link(7)),
        row(Origin::GoneLinks),
    ];
    let fill = |entries| Fill {
        entries,
        size: 65_536,
    };
    let reading = Reading {
        counters: Some(counters::sorted(rows, &LinkTable::default())),
        maps: vec![("connections", fill(17)), ("statistics", fill(3))],
        conntrack: Some(conntrack::Fill {
            count: 100,
            max: 262_144,
        }),
        conntrack_statistics: Some(conntrack::Statistics {
            insert_failed: 1,
            drop: 2,
            early_drop: 3,
        }),
        unread: vec!["links"],
    };
    (snapshot, reading)
}

fn text_of(snapshot: &Snapshot, reading: Option<&Reading>, links: bool) -> String {
    let durations = durations();
    let event = durations.with_label_values(&["event"]);
    event.observe(0.004);
    event.observe(20.0);
    let listeners = Ok(BTreeMap::from([(
        "10.96.0.2:443".parse().unwrap(),
        Listening::Bound,
    )]));
    let readiness = health::readiness(snapshot, Duration::ZERO, &listeners, true);
    text(&Facts {
        snapshot,
        durations: &durations,
        readiness: &readiness,
        listeners: &listeners,
        reading,
        links,
    })
    .unwrap()
}

#[test]
fn everything_is_as_recorded() {
    let (snapshot, reading) = eventful();
    let text = text_of(&snapshot, Some(&reading), true);
    // The record is of x86-64.
    let arch = format!("arch=\"{ARCH}\"");
    let text = text.replace(&arch, "arch=\"x86_64\"");
    for metric in metric::ALL {
        let header = format!("# HELP {} {}\n", metric.name, metric.help);
        assert!(text.contains(&header), "{} is never served", metric.name);
    }
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(GOLDEN, &text).unwrap();
    }
    let recorded = fs::read_to_string(GOLDEN).unwrap_or_default();
    assert!(
        text == recorded,
        "the metrics differ from {GOLDEN}; if they should, run with UPDATE_GOLDEN=1:\n{text}"
    );
}

#[test]
fn links_are_served_only_if_that_is_asked_for() {
    let (snapshot, reading) = eventful();
    let text = text_of(&snapshot, Some(&reading), false);
    assert!(!text.contains("proxy_agent_link_"), "{text}");
}

#[test]
fn before_the_first_pass_there_are_few_metrics() {
    let text = text_of(&snapshot(), None, false);
    assert!(text.contains("\nproxy_agent_ready 0\n"), "{text}");
    assert!(!text.contains("proxy_agent_vip_present"), "{text}");
}
