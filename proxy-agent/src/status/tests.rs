// SPDX-License-Identifier: Apache-2.0

//! The status of a fixed state in both forms, and of arbitrary states.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proxy_common::guard::Cause as DropCause;
use proxy_common::{Counters, Reason, Traffic};
use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::actor::Actor;

use super::counters::Row;
use super::*;
use crate::backend::ebpf::statistics::Origin;
use crate::config::{Config, GuardMode, Service};
use crate::link::{LinkTable, Vip};
use crate::reconcile::trigger::Cause;
use crate::state::history::{History, Pass, Problem, Repair, TriggerEvent};
use crate::state::upstream::{Endpoint, Reason as TrackedReason, Tracked, Upstream};
use crate::state::{Choice, Guarded, GuardedLink, Rejected};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_211_000 + seconds)
}

fn upstream() -> Upstream {
    Upstream {
        cgroups: vec![Cgroup {
            id: 4711,
            path: "/system.slice/haproxy.service".to_owned(),
            levels: vec![2],
        }],
        endpoints: vec![
            Endpoint {
                endpoint: "192.0.2.1:443".parse().unwrap(),
                tracked: None,
            },
            Endpoint {
                endpoint: "[2001:db8::1]:6443".parse().unwrap(),
                tracked: Some(Tracked::new(
                    TrackedReason::Nat,
                    "NAT: conntrack has an answer from elsewhere, in words that go on in a second line",
                )),
            },
        ],
        learns: false,
        learns_not: None,
        unsupported: None,
    }
}

fn state() -> State {
    let repair = |part: &str, what: &str, trigger| Repair {
        at: at(7),
        part: part.to_owned(),
        what: what.to_owned(),
        trigger,
    };
    State {
        version: "0.1.0".to_owned(),
        pid: 4711,
        started: at(0),
        settings: Config {
            vips: vec![[10, 96, 0, 2].into(), "fd00:10:96::2".parse().unwrap()],
            ports: vec![443],
            interface: "vips".to_owned(),
            services: vec![Service {
                cluster_ip: "10.96.0.1:443".parse().unwrap(),
                vip: "10.96.0.2:443".parse().unwrap(),
            }],
            bpffs: "/sys/fs/bpf/proxy-agent/v2".into(),
            sync_interval: Duration::from_mins(1),
            max_connections: 65_536,
            guard_mode: GuardMode::Xdp,
            ..Config::default()
        },
        guard: Guarded {
            links: vec![GuardedLink {
                link: "eth0".to_owned(),
                how: "xdp, native, and tc".to_owned(),
            }],
            notes: vec!["br0 carries a default route, and all its ports are veth or tap".to_owned()],
        },
        upstream: upstream(),
        backend: Choice {
            asked: "auto".to_owned(),
            backend: "ebpf".to_owned(),
            detail: "attached by tcx".to_owned(),
            rejected: vec![Rejected {
                backend: "other".to_owned(),
                reason: "a reason that is long enough to go on in a second line, down to the \
                         kernel's answer: Operation not permitted (os error 1)"
                    .to_owned(),
            }],
            breaks: vec!["nf_tables table ip nat, chain KUBE-SEP-X, to 10.96.0.2:443".to_owned()],
        },
        programs: BTreeMap::new(),
        history: History {
            ready: false,
            failures: vec![Problem {
                part: "link".to_owned(),
                what: "add 10.96.0.2/32 to vips".to_owned(),
                cause: "No such device (os error 19)".to_owned(),
            }],
            last_pass: Some(Pass {
                at: at(100),
                cause: Cause::Resync,
                took: Duration::from_micros(3456),
                changes: 1,
            }),
            passes: 17,
            failed_passes: 2,
            repaired: BTreeMap::from([("ebpf".to_owned(), 1), ("link".to_owned(), 40)]),
            repairs: [
                repair(
                    "ebpf",
                    "install nf_tables table ip proxy-agent (it is missing) and ip6 proxy-agent (it \
                     is missing)",
                    Some(TriggerEvent {
                        at: at(6),
                        event: "nf_tables table proxy-agent changed".to_owned(),
                        by: Some(Actor {
                            pid: 123,
                            name: Some("nft".to_owned()),
                        }),
                    }),
                ),
                repair("link", "set link vips up", None),
            ]
            .into(),
            ..History::default()
        },
    }
}

fn row(vip: &str, link: Option<u32>, number: u64) -> Row {
    let mut counters = Counters {
        requests: Traffic {
            packets: number,
            bytes: number.saturating_mul(1000),
        },
        decided: number / 2,
        ..Counters::ZERO
    };
    if link.is_none() {
        counters.replies = counters.requests;
    } else {
        counters.terminated = number / 3;
        counters.undecided[Reason::InUse as usize] = number / 4;
        counters.undecided[Reason::NoListener as usize] = number / 5;
        counters.dropped[DropCause::Outside as usize] = number / 6;
    }
    Row {
        vip: vip.parse().unwrap(),
        origin: link.map_or(Origin::ThisHost, Origin::Link),
        counters,
    }
}

/// The VIPs of a node without links.
fn vips(state: &State) -> Vec<Vip> {
    LinkTable::default().vips(&state.settings.vips, &state.settings.interface)
}

fn status() -> Status {
    let state = state();
    let rows = vec![
        row("[fd00:10:96::2]:443", None, 3),
        row("10.96.0.2:443", Some(7), 123_456_789),
        row("10.96.0.2:443", None, 42),
        row("10.96.0.2:443", Some(9), 0),
        row(
            "[fd00:1234:5678:9abc:def0:1234:5678:9abc]:65535",
            Some(7),
            1,
        ),
    ];
    let mut vips = vips(&state);
    vips[1].present = true;
    vips[1].link_up = true;
    vips[1].elsewhere = vec!["eth0".to_owned()];
    Status {
        agent: Agent::new(&state, true, at(200_000)),
        vips,
        services: state
            .settings
            .services
            .iter()
            .map(|service| model::OfService {
                service: *service,
                undecided: None,
            })
            .collect(),
        backend: state.backend.clone(),
        hidden: vec![model::Hidden {
            link: "pod0".to_owned(),
            by: vec!["other (priority 1)".to_owned()],
        }],
        guard: state.guard.clone(),
        upstream: model::Upstream::from(&state.upstream),
        counters: counters::sorted(rows, &LinkTable::default()),
        connections: Some(Connections {
            entries: 17,
            size: 65_536,
        }),
        passes: model::Passes::from(&state.history),
        repairs: model::Repairs::from(&state.history),
        drift: Drift {
            changes: vec![model::Change {
                part: "link".to_owned(),
                what: "add 10.96.0.2/32 to vips".to_owned(),
            }],
            failures: Vec::new(),
        },
        unreadable: vec!["cannot use the eBPF map STATISTICS: no".to_owned()],
    }
}

fn is_as_recorded(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/status")
        .join(file);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == recorded,
        "the status differs from {}; if it should, run with UPDATE_GOLDEN=1:\n{text}",
        path.display()
    );
}

#[test]
fn the_table_is_as_recorded() {
    let text = table::Table(&status(), false).to_string();
    assert!(
        text.lines()
            .all(|line| line.chars().count() <= table::WIDTH),
        "a line is too wide in\n{text}"
    );
    is_as_recorded("golden.txt", &text);
}

#[test]
fn the_json_is_as_recorded() {
    is_as_recorded("golden.json", &json(&status()).unwrap());
}

#[test]
fn a_service_that_does_not_end_on_the_proxy_says_why() {
    let mut status = status();
    status.services[0].undecided = Some("a reason".to_owned());
    let text = table::Table(&status, false).to_string();
    let line = "\n10.96.0.1:443 goes through kube-proxy: a reason\n";
    assert!(text.contains(line), "{text}");
    let json = json(&status).unwrap();
    assert!(json.contains(r#""undecided": "a reason""#), "{json}");
}

#[test]
fn links_without_traffic_are_shown_if_that_is_asked_for() {
    let status = status();
    assert!(
        !table::Table(&status, false)
            .to_string()
            .contains("ifindex 9")
    );
    assert!(
        table::Table(&status, true)
            .to_string()
            .contains("ifindex 9")
    );
}

#[test]
fn links_that_are_gone_are_in_the_sums_only() {
    let gone = Row {
        origin: Origin::GoneLinks,
        ..row("10.96.0.2:443", Some(7), 4)
    };
    let rows = vec![gone, row("10.96.0.2:443", Some(7), 2)];
    let sorted = counters::sorted(rows, &LinkTable::default());
    assert_eq!(sorted[0].total.decided, 3);
    assert_eq!(sorted[0].links.len(), 1);
}

#[test]
fn a_vip_is_found_where_it_is() {
    let state = state();
    let found = vips(&state);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|vip| !vip.present && !vip.link_up));
}

#[test]
fn an_agent_that_has_ended_has_no_uptime() {
    let mut status = status();
    status.agent = Agent::new(&state(), false, at(200_000));
    assert_eq!(status.agent.uptime_seconds, None);
    let text = table::Table(&status, false).to_string();
    assert!(text.starts_with("agent      0.1.0, not running (was pid 4711)\n"));
}

fn any_row() -> impl Strategy<Value = Row> {
    let vip = any::<(IpAddr, u16)>();
    (vip, any::<Option<u32>>(), any::<u64>()).prop_map(|(vip, link, number)| Row {
        vip: SocketAddr::from(vip),
        ..row("10.96.0.2:443", link, number)
    })
}

proptest! {
    /// Nothing overflows, and no column is so wide that lines break.
    #[test]
    fn any_counters_are_written(rows in prop::collection::vec(any_row(), 0..8)) {
        let mut status = status();
        status.counters = counters::sorted(rows, &LinkTable::default());
        let text = table::Table(&status, true).to_string();
        prop_assert!(text.lines().all(|line| line.chars().count() <= table::WIDTH), "{}", text);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&json(&status).unwrap()).is_ok());
    }
}
