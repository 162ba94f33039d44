// SPDX-License-Identifier: Apache-2.0

//! What is stale: golden text, and properties that hold for any entry.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use proxy_netlink::netfilter::conntrack::{Ending, Entry, Status, TcpState, Tuple};

use super::plan::{Desired, Op, plan};

const CLUSTER_IP: &str = "10.96.0.1:443";
const CLUSTER_IP6: &str = "[fd00::1]:443";

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn desired() -> Desired {
    Desired {
        cluster_ips: vec![address(CLUSTER_IP), address(CLUSTER_IP6)],
        syn_sent: Duration::from_mins(2),
    }
}

fn stale(client: &str, cluster_ip: &str) -> Entry {
    let (source, destination) = (address(client), address(cluster_ip));
    Entry {
        original: Tuple {
            source,
            destination,
        },
        reply: Tuple {
            source: destination,
            destination: source,
        },
        status: Status::Confirmed,
        tcp_state: Some(TcpState::SynSent),
        liberal: false,
        remaining: Some(Duration::from_secs(100)),
        id: 1,
        zone: 0,
    }
}

#[test]
fn stale_entries_are_told_in_order() {
    let entries = vec![
        stale("[fd44::10]:40000", CLUSTER_IP6),
        stale("10.244.0.10:40001", CLUSTER_IP),
        stale("10.244.0.10:40000", CLUSTER_IP),
        // The kernel may list one twice.
        stale("10.244.0.10:40001", CLUSTER_IP),
    ];
    let texts: Vec<_> = plan(&desired(), entries)
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = |tuple: &str| {
        format!(
            "delete the stale conntrack entry of {tuple} (SYN_SENT, not DNATed, unanswered for 20 s)"
        )
    };
    assert_eq!(
        texts,
        [
            text("10.244.0.10:40000 to 10.96.0.1:443"),
            text("10.244.0.10:40001 to 10.96.0.1:443"),
            text("[fd44::10]:40000 to [fd00::1]:443"),
        ]
    );
}

#[test]
fn many_stale_entries_are_told_in_one_line() {
    let entries = (0..1000)
        .map(|port| stale(&format!("10.244.0.10:{}", 40_000 + port), CLUSTER_IP))
        .collect();
    let ops = plan(&desired(), entries);
    assert_eq!(ops.len(), 21);
    assert_eq!(
        ops[20].to_string(),
        "delete 980 further stale conntrack entries"
    );
    let entries: usize = ops.iter().map(|op| op.entries().len()).sum();
    assert_eq!(entries, 1000);
}

#[test]
fn a_masqueraded_entry_is_stale_too() {
    let mut entry = stale("10.244.0.10:40000", CLUSTER_IP);
    entry.reply.destination = address("192.0.2.1:40000");
    entry.status |= Status::SrcNat;
    assert!(desired().is_stale(&entry));
}

#[test]
fn what_may_be_right_is_left_alone() {
    let right = stale("10.244.0.10:40000", CLUSTER_IP);
    assert!(desired().is_stale(&right));
    let mut entries = vec![right; 9];
    entries[0].status |= Status::SeenReply;
    entries[1].status |= Status::DstNat;
    // IPVS translates without that flag.
    entries[2].reply.source = address("10.96.0.2:443");
    entries[3].original.destination = address("10.96.0.1:444");
    entries[4].tcp_state = Some(TcpState::Established);
    entries[5].tcp_state = Some(TcpState::Over(Ending::Close));
    entries[6].tcp_state = None;
    entries[7].remaining = None;
    // A timeout of its own, longer than that of others.
    entries[8].remaining = Some(Duration::from_secs(121));
    assert_eq!(plan(&desired(), entries), []);
}

#[test]
fn a_syn_on_its_way_is_left_alone() {
    let mut entry = stale("10.244.0.10:40000", CLUSTER_IP);
    let stale_at = |remaining| {
        entry.remaining = Some(Duration::from_secs(remaining));
        desired().is_stale(&entry)
    };
    assert_eq!(
        [120, 119, 118, 117, 1, 0].map(stale_at),
        [false, false, false, true, true, true]
    );
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    prop::sample::select(vec![
        address(CLUSTER_IP),
        address(CLUSTER_IP6),
        address("10.96.0.1:80"),
        address("10.96.0.2:443"),
        address("[fd00::2]:443"),
        address("10.244.0.10:40000"),
    ])
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let tuple = || {
        (any_address(), any_address()).prop_map(|(source, destination)| Tuple {
            source,
            destination,
        })
    };
    let state = prop_oneof![
        3 => Just(Some(1)),
        1 => prop::option::of(0_u8..10),
    ];
    let remaining = prop::option::of((0_u64..150).prop_map(Duration::from_secs));
    let status = prop_oneof![Just(Status::Confirmed.bits()), 0_u32..1 << 15];
    (
        tuple(),
        tuple(),
        any::<bool>(),
        state,
        remaining,
        status,
        0_u32..4,
    )
        .prop_map(
            |(original, other, answer, state, remaining, status, id)| Entry {
                original,
                reply: if answer {
                    Tuple {
                        source: original.destination,
                        destination: original.source,
                    }
                } else {
                    other
                },
                status: Status::from_bits_retain(status),
                tcp_state: state.map(TcpState::from),
                liberal: false,
                remaining,
                id,
                zone: 0,
            },
        )
}

proptest! {
    #[test]
    fn only_stale_entries_are_deleted(entries in prop::collection::vec(any_entry(), 0..100)) {
        let desired = desired();
        let ops = plan(&desired, entries.clone());
        let deleted: Vec<_> = ops.iter().flat_map(Op::entries).cloned().collect();
        for entry in &deleted {
            prop_assert!(entries.contains(entry));
            prop_assert!(!entry.status.contains(Status::SeenReply), "answered");
            prop_assert!(!entry.status.contains(Status::DstNat), "translated");
            prop_assert_eq!(entry.reply.source, entry.original.destination, "translated");
            prop_assert!(desired.cluster_ips.contains(&entry.original.destination));
            prop_assert_eq!(entry.tcp_state, Some(TcpState::SynSent));
            prop_assert!(entry.remaining.expect("known") <= Duration::from_secs(117), "young");
        }
        // Nothing is left for a second pass.
        let left = entries
            .into_iter()
            .filter(|entry| !deleted.iter().any(|gone| {
                (gone.original, gone.zone, gone.id) == (entry.original, entry.zone, entry.id)
            }))
            .collect();
        prop_assert_eq!(plan(&desired, left), []);
    }

    /// The order in which the kernel lists does not matter.
    #[test]
    fn the_plan_is_the_same_in_any_order(ports in prop::collection::hash_set(1_u16.., 0..60)) {
        let entries = |ports: &[u16]| -> Vec<_> {
            ports.iter().map(|port| stale(&format!("10.244.0.10:{port}"), CLUSTER_IP)).collect()
        };
        let ports: Vec<_> = ports.into_iter().collect();
        let mut sorted = ports.clone();
        sorted.sort_unstable();
        prop_assert_eq!(plan(&desired(), entries(&ports)), plan(&desired(), entries(&sorted)));
    }
}
