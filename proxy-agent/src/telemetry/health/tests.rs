// SPDX-License-Identifier: Apache-2.0

//! Liveness and readiness of agents in every condition.

use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::config::{Config, ProxyListener};
use crate::link::Vip;
use crate::state::Choice;
use crate::state::history::History;

/// The state after a pass that worked.
pub fn state() -> State {
    State {
        version: "1".to_owned(),
        pid: 7,
        started: SystemTime::UNIX_EPOCH,
        settings: Config {
            vips: vec![[10, 96, 0, 2].into()],
            ports: vec![443],
            interface: "lo".to_owned(),
            bpffs: "/sys/fs/bpf/proxy-agent/v2".into(),
            sync_interval: Duration::from_mins(1),
            max_connections: 65_536,
            ..Config::default()
        },
        guard: crate::state::Guarded::default(),
        upstream: crate::state::upstream::Upstream::default(),
        backend: Choice {
            asked: "auto".to_owned(),
            backend: "nftables".to_owned(),
            ..Choice::default()
        },
        programs: BTreeMap::new(),
        history: History {
            ready: true,
            ..History::default()
        },
    }
}

/// The snapshot before the first pass has ended.
pub fn snapshot() -> Snapshot {
    Snapshot {
        started: SystemTime::UNIX_EPOCH,
        interval: Duration::from_mins(1),
        phase: Phase::Working,
        state: None,
        vips: Vec::new(),
        ended: None,
        succeeded: None,
    }
}

fn vip(present: bool, link_up: bool) -> Vip {
    Vip {
        ip: [10, 96, 0, 2].into(),
        link: "lo".to_owned(),
        link_up,
        present,
        elsewhere: Vec::new(),
    }
}

fn after(state: State, vips: Vec<Vip>) -> Snapshot {
    Snapshot {
        phase: Phase::Idle,
        state: Some(Arc::new(state)),
        vips,
        ..snapshot()
    }
}

/// The conditions that fail, without one for the listener.
fn failing(snapshot: &Snapshot) -> Vec<&'static str> {
    let health = readiness(snapshot, Duration::ZERO, &Err("no".to_owned()), false);
    let failing = health.0.iter().filter(|condition| !condition.holds);
    failing.map(|condition| condition.name).collect()
}

fn failed(part: &str) -> State {
    let mut state = state();
    state.history.failures.push(Problem {
        part: part.to_owned(),
        what: "look".to_owned(),
        cause: "no".to_owned(),
    });
    state
}

#[test]
fn each_condition_fails_on_its_own() {
    let good = || vec![vip(true, true)];
    assert_eq!(failing(&after(state(), good())), [""; 0]);
    assert_eq!(failing(&snapshot()), ["pass"]);
    assert_eq!(failing(&after(state(), vec![vip(false, true)])), ["vip"]);
    assert_eq!(failing(&after(state(), vec![vip(true, false)])), ["link"]);
    assert_eq!(failing(&after(state(), Vec::new())), ["vip", "link"]);
    assert_eq!(failing(&after(failed("ebpf"), good())), ["data_plane"]);
    assert_eq!(failing(&after(failed("backend"), good())), ["data_plane"]);
    assert_eq!(failing(&after(failed("link"), good())), ["other"]);
    assert_eq!(failing(&after(failed("conntrack"), good())), ["other"]);
    let mut other = state();
    other.backend.asked = "ebpf".to_owned();
    assert_eq!(failing(&after(other, good())), ["data_plane"]);
    let stopping = Snapshot {
        phase: Phase::Stopping,
        ..after(state(), good())
    };
    assert_eq!(failing(&stopping), ["pass"]);
    assert!(liveness(&stopping, Duration::ZERO).is_good());
}

#[test]
fn without_any_backend_it_is_degraded_and_ready() {
    let mut state = state();
    assert!(!is_degraded(&state));
    state.backend.backend = "none".to_owned();
    assert!(is_degraded(&state));
    let snapshot = after(state, vec![vip(true, true)]);
    assert_eq!(failing(&snapshot), [""; 0]);
}

#[test]
fn an_agent_without_progress_is_not_alive() {
    let alive = |phase, seconds| {
        let snapshot = Snapshot {
            phase,
            ..snapshot()
        };
        liveness(&snapshot, Duration::from_secs(seconds)).is_good()
    };
    assert!(alive(Phase::Working, 120));
    assert!(!alive(Phase::Working, 121));
    assert!(alive(Phase::Idle, 180));
    assert!(!alive(Phase::Idle, 181));
    assert!(alive(Phase::Stopping, 100_000));
}

#[test]
fn a_listener_is_asked_for_if_that_is_wanted() {
    let snapshot = after(state(), vec![vip(true, true)]);
    let text =
        |listeners: &Listeners| readiness(&snapshot, Duration::ZERO, listeners, true).to_string();
    let vip = "10.96.0.2:443".parse().unwrap();
    let bound = Ok(BTreeMap::from([(vip, Listening::Bound)]));
    let listens = text(&bound);
    let expected = "[+]pass ok: the last pass ended 0 s ago\n\
                    [+]vip ok: on lo: 10.96.0.2\n\
                    [+]link ok: lo is up\n\
                    [+]data_plane ok: backend nftables\n\
                    [+]other ok: no failures\n\
                    [+]listener ok: on 10.96.0.2:443\n\
                    passed\n";
    assert_eq!(listens, expected);
    let silent = text(&Ok(BTreeMap::from([(vip, Listening::Nowhere)])));
    let expected = "[-]listener failed: no listener on 10.96.0.2:443\nfailed\n";
    assert!(silent.ends_with(expected), "{silent}");
    assert!(text(&Err("no".to_owned())).contains("[-]listener failed: no\n"));
}

#[test]
fn a_wildcard_listener_is_not_the_proxy_of_a_service_unless_it_is_named() {
    let endpoint = "10.96.0.2:443".parse().unwrap();
    let wildcard = Listening::Wildcard("0.0.0.0:443".parse().unwrap());
    let holds = |backend: &str, counts, services: bool, listening| {
        let mut state = state();
        state.backend.backend = backend.to_owned();
        state.settings.proxy_listener = counts;
        if services {
            state.settings.services.push(crate::config::Service {
                cluster_ip: "10.96.0.1:443".parse().unwrap(),
                vip: endpoint,
            });
        }
        let snapshot = after(state, vec![vip(true, true)]);
        let listeners = Ok(BTreeMap::from([(endpoint, listening)]));
        readiness(&snapshot, Duration::ZERO, &listeners, true).is_good()
    };
    let (vip_only, any) = (ProxyListener::Vip, ProxyListener::Any);
    assert!(!holds("ebpf", vip_only, true, wildcard));
    assert!(holds("ebpf", vip_only, true, Listening::Bound));
    assert!(holds("ebpf", any, true, wildcard));
    // Nothing but connections to Services depends on it.
    assert!(holds("ebpf", vip_only, false, wildcard));
    assert!(holds("nftables", vip_only, true, wildcard));
}
