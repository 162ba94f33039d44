// SPDX-License-Identifier: Apache-2.0

//! Plans as golden text; `tests/model.rs` has their properties.

mod model;

use std::net::IpAddr;

use proxy_netlink::route::{Address, Link, LinkKind, Prefix};

use super::is_translated_source;
use super::plan::{Desired, Earlier, Op, Plan, plan, plan_teardown};
use super::table::{LinkTable, OWN_GROUP, address};
use crate::config::AddressScope;

const V4: &str = "10.96.0.2";
const V6: &str = "fd00::2";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `lo`, `eth0`, and a port of the VRF `blue`.
fn table(addresses: Vec<Address>) -> LinkTable {
    let mut port = Link::new(3, "port", LinkKind::Veth);
    port.master = Some(4);
    let links = vec![
        Link::new(1, "lo", LinkKind::Loopback),
        Link::new(2, "eth0", LinkKind::Other),
        port,
        Link::new(4, "blue", LinkKind::Vrf),
    ];
    LinkTable {
        links,
        addresses,
        ..LinkTable::default()
    }
}

fn desired(interface: &str) -> Desired {
    Desired {
        vips: vec![ip(V4), ip(V6)],
        interface: interface.to_owned(),
        scope: AddressScope::Auto,
        earlier: Earlier::default(),
    }
}

fn texts(plan: &Plan) -> Vec<String> {
    plan.ops.iter().map(Op::to_string).collect()
}

#[test]
fn an_empty_node_gets_link_and_vips() {
    let plan = plan(&desired("proxy0"), &table(Vec::new()));
    assert_eq!(
        texts(&plan),
        [
            "create link proxy0 as a dummy and set it up",
            "add 10.96.0.2/32 to proxy0",
            "add fd00::2/128 to proxy0",
        ]
    );
}

#[test]
fn a_link_that_went_down_comes_up_before_anything_is_added() {
    let mut table = table(vec![address(1, V4, 32)]);
    table.links[0].up = false;
    assert_eq!(
        texts(&plan(&desired("lo"), &table)),
        ["set link lo up", "add fd00::2/128 to lo"]
    );
}

#[test]
fn vips_leave_other_links_after_they_are_on_theirs() {
    let mut with_peer = address(2, V4, 32);
    with_peer.peer = Some(ip("192.0.2.1"));
    let table = table(vec![address(2, V4, 24), with_peer, address(2, V6, 128)]);
    assert_eq!(
        texts(&plan(&desired("lo"), &table)),
        [
            "add 10.96.0.2/32 to lo",
            "add fd00::2/128 to lo",
            "remove 10.96.0.2/24 from eth0",
            "remove 10.96.0.2 peer 192.0.2.1/32 from eth0",
            "remove fd00::2/128 from eth0",
        ]
    );
}

#[test]
fn copies_with_a_wrong_prefix_are_put_right() {
    let table = table(vec![address(1, V4, 24), address(1, V6, 64)]);
    assert_eq!(
        texts(&plan(&desired("lo"), &table)),
        [
            "add 10.96.0.2/32 to lo",
            "replace fd00::2/64 on lo by fd00::2/128 (wrong prefix or peer)",
            "remove 10.96.0.2/24 from lo",
        ]
    );
}

#[test]
fn scope_detection_and_lifetime_are_put_right() {
    let (mut host_scope, mut failed) = (address(1, V4, 32), address(1, V6, 128));
    host_scope.scope = libc::RT_SCOPE_HOST;
    failed.unusable = true;
    assert_eq!(
        texts(&plan(&desired("lo"), &table(vec![host_scope, failed]))),
        [
            "give 10.96.0.2/32 on lo the scope link",
            "add fd00::2/128 to lo anew (held up by duplicate address detection)",
        ]
    );
    let (mut a, mut b) = (address(1, V4, 32), address(1, V6, 128));
    (a.permanent, b.permanent) = (false, false);
    assert_eq!(
        texts(&plan(&desired("lo"), &table(vec![a, b]))),
        [
            "let 10.96.0.2/32 stay on lo forever",
            "let fd00::2/128 stay on lo forever"
        ]
    );
}

#[test]
fn the_scope_follows_the_flag_and_cilium() {
    let mut as_before = [address(1, V4, 32), address(1, V6, 128)];
    as_before[0].scope = libc::RT_SCOPE_UNIVERSE;
    as_before[1].deprecated = false;
    let hidden = [address(1, V4, 32), address(1, V6, 128)];
    let hide = [
        "give 10.96.0.2/32 on lo the scope link",
        "have fd00::2/128 on lo not preferred as a source",
    ];
    let show = [
        "give 10.96.0.2/32 on lo the scope global",
        "have fd00::2/128 on lo preferred as a source",
    ];
    for (scope, cilium, never) in [
        (AddressScope::Auto, false, true),
        (AddressScope::Auto, true, false),
        (AddressScope::Link, true, true),
        (AddressScope::Global, false, false),
    ] {
        let mut wanted = desired("lo");
        wanted.scope = scope;
        for (here, hides, shows) in [(&as_before, true, false), (&hidden, false, true)] {
            let mut table = table(here.to_vec());
            if cilium {
                let link = Link::new(9, "cilium_host", LinkKind::Veth);
                table.links.push(link);
            }
            let expected: &[&str] = match never {
                true if hides => &hide,
                false if shows => &show,
                _ => &[],
            };
            assert_eq!(
                texts(&plan(&wanted, &table)),
                expected,
                "{scope:?}, {cilium}"
            );
        }
    }
}

#[test]
fn a_masqueraded_connection_keeps_the_scope() {
    let pair = |local: &str, remote: &str| (local.parse().unwrap(), remote.parse().unwrap());
    let (proxy, client) = ("10.96.0.2:443", "10.96.0.2:40000");
    let translated = |found: &[_]| is_translated_source(ip(V4), &found.iter().copied().collect());
    assert!(!translated(&[]));
    assert!(!translated(&[pair(proxy, "10.244.0.7:40000")]));
    assert!(!translated(&[pair(proxy, client), pair(client, proxy)]));
    // The client's socket has the ClusterIP, and another address.
    assert!(translated(&[
        pair(proxy, client),
        pair("192.0.2.1:40000", "10.96.0.1:443")
    ]));
}

#[test]
fn an_address_that_would_take_foreign_ones_along_stays() {
    let primary = address(2, V4, 24);
    let foreign = Prefix {
        ip: ip("10.96.0.9"),
        len: 24,
    };
    let mut table = table(vec![address(1, V6, 128), primary.clone()]);
    table.endangering.push((primary, vec![foreign]));
    let plan = plan(&desired("lo"), &table);
    assert_eq!(texts(&plan), ["add 10.96.0.2/32 to lo"]);
    let [(wanted, refusal)] = plan.refusals.as_slice() else {
        panic!("one refusal, not {:?}", plan.refusals);
    };
    assert_eq!(wanted, "remove 10.96.0.2/24 from eth0");
    assert_eq!(
        refusal.to_string(),
        "the kernel would delete 10.96.0.9/24 with it, as promote_secondaries is off: remove it by \
         hand, or run `sysctl -w net.ipv4.conf.eth0.promote_secondaries=1`"
    );
}

#[test]
fn a_link_in_a_vrf_is_reported() {
    let plan = plan(&desired("port"), &table(Vec::new()));
    assert_eq!(plan.refusals.len(), 1);
    assert!(plan.refusals[0].1.to_string().contains("VRF blue"));
}

#[test]
fn an_alternative_name_is_the_link() {
    let mut table = table(Vec::new());
    table.links[1].altnames.push("enp0s3".to_owned());
    assert_eq!(
        texts(&plan(&desired("enp0s3"), &table)),
        ["add 10.96.0.2/32 to enp0s3", "add fd00::2/128 to enp0s3"]
    );
}

#[test]
fn a_changed_interface_takes_the_old_dummy_of_ours_with_it() {
    let mut table = table(vec![address(5, V4, 32)]);
    let mut old = Link::new(5, "proxy0", LinkKind::Dummy);
    old.group = OWN_GROUP;
    table.links.push(old);
    let wanted = Desired {
        vips: vec![ip(V4)],
        ..desired("lo")
    };
    let expected = [
        "add 10.96.0.2/32 to lo",
        "remove 10.96.0.2/32 from proxy0",
        "delete link proxy0, which the agent created",
    ];
    assert_eq!(texts(&plan(&wanted, &table)), expected);

    table.shared.insert(5);
    assert_eq!(texts(&plan(&wanted, &table)), expected[..2]);
    // Without a VIP of ours on it, it may be another agent's.
    table.shared.clear();
    table.addresses = vec![address(1, V4, 32)];
    assert!(plan(&wanted, &table).ops.is_empty());
}

#[test]
fn what_earlier_starts_left_goes_after_the_new_is_there() {
    let mut peer = address(1, "10.96.0.8", 32);
    peer.peer = Some(ip("192.0.2.1"));
    let mut table = table(vec![
        address(1, "10.96.0.8", 24),
        address(1, "10.96.0.8", 32),
        peer,
        address(2, "10.96.0.8", 32),
        address(2, "10.96.0.9", 32),
        address(5, "fd00::8", 128),
    ]);
    let mut dummy = Link::new(5, "proxy0", LinkKind::Dummy);
    dummy.group = OWN_GROUP;
    table.links.push(dummy.clone());
    let mut wanted = desired("lo");
    wanted.earlier.vips = [
        ("10.96.0.8", "lo"),
        ("fd00::8", "proxy0"),
        (V4, "lo"),
        (V4, "eth9"),
    ]
    .map(|(vip, link)| (ip(vip), link.to_owned()))
    .to_vec();
    wanted.earlier.links = vec!["lo".to_owned(), "proxy0".to_owned(), "eth0".to_owned()];
    assert_eq!(
        texts(&plan(&wanted, &table)),
        [
            "add 10.96.0.2/32 to lo",
            "add fd00::2/128 to lo",
            "remove 10.96.0.8/32 from lo",
            "remove fd00::8/128 from proxy0",
            "delete link proxy0, which the agent created",
        ]
    );
    // Not the link that is used now, nor one that others use too.
    wanted.interface = "proxy0".to_owned();
    let ops = texts(&plan(&wanted, &table));
    assert!(!ops.iter().any(|op| op.starts_with("delete")), "{ops:?}");
    wanted.interface = "lo".to_owned();
    table.shared.insert(5);
    let ops = texts(&plan(&wanted, &table));
    assert!(!ops.iter().any(|op| op.starts_with("delete")), "{ops:?}");
}

#[test]
fn teardown_deletes_only_a_dummy_of_ours() {
    let vips = vec![address(1, V4, 32), address(2, V4, 24), address(5, V4, 32)];
    let mut table = table(vips);
    table.links.push(Link::new(5, "proxy0", LinkKind::Dummy));
    let removal = "remove 10.96.0.2/32 from proxy0";
    assert_eq!(texts(&plan_teardown(&desired("proxy0"), &table)), [removal]);
    table.links[4].group = OWN_GROUP;
    assert_eq!(
        texts(&plan_teardown(&desired("proxy0"), &table)),
        [removal, "delete link proxy0, which the agent created"]
    );
    table.shared.insert(5);
    assert_eq!(texts(&plan_teardown(&desired("proxy0"), &table)), [removal]);
    table.links[0].group = OWN_GROUP;
    assert_eq!(
        texts(&plan_teardown(&desired("lo"), &table)),
        ["remove 10.96.0.2/32 from lo"]
    );
}
