// SPDX-License-Identifier: Apache-2.0

//! Plans as text; `tests/model.rs` has the property that they converge.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use proxy_netlink::netfilter::Table;
use proxy_netlink::route::Link;

use super::*;
use crate::backend::decisions;
use crate::backend::ebpf::pace::Pace;
use crate::backend::live::Live;
use crate::config::Config;

const INGRESS: u32 = 7;
const EGRESS: u32 = 8;
const SOCKET: u32 = 9;
const MAP: u32 = 10;

fn id_of(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => INGRESS,
        Hook::Egress => EGRESS,
    }
}

fn tables(vips: &[&str]) -> Vec<Table> {
    let config = Config {
        vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        ports: vec![443],
        max_connections: 1024,
        ..Config::default()
    };
    decisions::tables(&config, &Live::default())
}

fn desired(vips: &[&str], links: &[u32], mode: AttachMode) -> Desired {
    Desired {
        tables: tables(vips),
        links: links
            .iter()
            .map(|index| (*index, format!("veth{index}")))
            .collect(),
        mode,
        pace: None,
        maps: BTreeMap::from([("SERVICES", Some(MAP))]),
        hooks: BTreeMap::from([(Hook::Ingress, Some(INGRESS))]),
        sockets: BTreeMap::new(),
        routes: BTreeMap::new(),
        former_routes: BTreeSet::new(),
        guard: BTreeMap::new(),
        guarded: BTreeMap::new(),
    }
}

fn nothing(desired: &Desired) -> Observed {
    Observed {
        tables: desired
            .tables
            .iter()
            .map(|table| (table.title(), None))
            .collect(),
        programs: desired
            .links
            .keys()
            .map(|index| ((Hook::Ingress, *index), Vec::new()))
            .collect(),
        maps: BTreeMap::from([("SERVICES", Some(MAP))]),
        ..Observed::default()
    }
}

#[test]
fn only_what_concerns_links_that_come_and_go_is_routine() {
    let attach = |index| Op::Attach {
        hook: Hook::Ingress,
        link: Target {
            index,
            name: String::new(),
        },
        mode: AttachMode::Tcx,
        reason: "",
    };
    let unpin = |index| Op::RemovePin {
        hook: Hook::Ingress,
        index,
    };
    let seen = BTreeSet::from([1, 2]);
    let now = BTreeMap::from([(2, String::new()), (3, String::new())]);
    let routine = |op: Op| op.follows_links(&seen, &now);
    assert!(routine(attach(3)) && !routine(attach(2)));
    assert!(routine(unpin(1)) && !routine(unpin(2)));
}

/// The plan with the links deferred that the pace defers.
fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    super::plan(desired, observed, &waiting(desired, observed))
}

fn texts(ops: &[Op]) -> Vec<String> {
    ops.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_node_gets_rules_first_and_then_programs() {
    let desired = desired(&["10.96.0.2"], &[2, 5], AttachMode::Tcx);
    assert_eq!(
        texts(&plan(&desired, &nothing(&desired))),
        [
            "install nf_tables table ip proxy-agent (it is missing)",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_ingress to link veth5 (ifindex 5) by tcx: it is not attached",
        ]
    );
}

#[test]
fn of_many_links_a_few_get_tcx_at_once_and_the_others_a_filter_until_it_is_their_turn() {
    let mut desired = desired(&["10.96.0.2"], &[2, 3, 4], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    let table = desired.tables[0].outline();
    observed
        .tables
        .insert(desired.tables[0].title(), Some(table));
    desired.guarded.insert(4, "veth4".to_owned());
    desired.pace = Some(Pace {
        at_once: 1,
        is_first: true,
    });
    assert_eq!(
        texts(&plan(&desired, &observed)),
        [
            "attach vip_ingress to link veth4 (ifindex 4) by tcx: it is not attached",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_ingress to link veth3 (ifindex 3) by clsact: it is not attached",
        ]
    );
    for op in plan(&desired, &observed) {
        model::carry_out(&op, &mut observed);
    }
    // A new link is not deferred.
    desired.links.insert(5, "veth5".to_owned());
    observed.programs.insert((Hook::Ingress, 5), Vec::new());
    let pace = |at_once| {
        Some(Pace {
            at_once,
            is_first: false,
        })
    };
    desired.pace = pace(0);
    let waits = plan(&desired, &observed);
    assert_eq!(
        texts(&waits),
        ["attach vip_ingress to link veth5 (ifindex 5) by tcx: it is not attached"]
    );
    desired.pace = pace(1);
    let turn = plan(&desired, &observed);
    assert_eq!(
        texts(&turn),
        [
            "attach vip_ingress to link veth3 (ifindex 3) by tcx: it has a filter instead",
            "attach vip_ingress to link veth5 (ifindex 5) by tcx: it is not attached",
            "remove the clsact filter vip_ingress (priority 1) from link veth3 (ifindex 3)",
        ]
    );
    let ends: Vec<_> = turn.iter().map(|op| op.replaces_filter(&desired)).collect();
    assert_eq!(ends, [true, false, true]);
}

#[test]
fn links_are_guarded_before_programs_are_attached_and_are_named_if_they_are_others() {
    let mut desired = desired(&[], &[2], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    let links = |links: &guard::Links| guard_links(links, &LinkTable::default());
    let mut of_links = guard::Links::default();
    of_links.guarded.insert(7, "eth0".to_owned());
    desired.guarded.clone_from(&of_links.guarded);
    desired.guard = links(&of_links);
    observed.guard = Some(BTreeMap::new());
    assert_eq!(
        texts(&plan(&desired, &observed)),
        [
            "guard eth0",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
        ]
    );
    observed.guard = Some(desired.guard.clone());
    of_links.tagged.insert(9);
    desired.guard = links(&of_links);
    assert_eq!(
        texts(&plan(&desired, &observed))[0],
        "update the guard's map of links"
    );
    of_links.guarded.clear();
    desired.guarded.clear();
    desired.guard = links(&of_links);
    assert_eq!(texts(&plan(&desired, &observed))[0], "guard no link");
    // What could not be read is not touched.
    observed.guard = None;
    assert!(!texts(&plan(&desired, &observed))[0].contains("guard"));
}

#[test]
fn a_map_is_pinned_again_unless_its_pin_could_not_be_read() {
    let desired = desired(&[], &[], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    observed.maps = BTreeMap::from([("SERVICES", None)]);
    assert_eq!(
        texts(&plan(&desired, &observed)),
        ["pin the map SERVICES: its pin is missing"]
    );
    observed.maps = BTreeMap::from([("SERVICES", Some(MAP + 1))]);
    assert_eq!(
        texts(&plan(&desired, &observed)),
        ["pin the map SERVICES: another map is pinned there"]
    );
    observed.maps = BTreeMap::new();
    assert_eq!(texts(&plan(&desired, &observed)), Vec::<String>::new());
}

#[test]
fn a_table_that_could_not_be_read_is_left_alone() {
    let desired = desired(&["10.96.0.2", "fd00:96::2"], &[], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    observed.tables.remove("ip proxy-agent");
    assert_eq!(
        texts(&plan(&desired, &observed)),
        ["install nf_tables table ip6 proxy-agent (it is missing)"]
    );
}

/// A connection with two decisions is decided; one without, in between, is tracked.
#[test]
fn the_other_way_of_attaching_goes_when_ours_is_there() {
    let mut desired = desired(&[], &[2, 3], AttachMode::Clsact);
    desired.hooks.insert(Hook::Egress, Some(EGRESS));
    let mut observed = nothing(&desired);
    observed
        .pins
        .extend([2, 3, 4].map(|index| (Hook::Ingress, index)));
    observed.pins.insert((Hook::Egress, 2));
    assert_eq!(
        texts(&plan(&desired, &observed)),
        [
            "attach vip_egress to link veth2 (ifindex 2) by clsact: it is not attached",
            "attach vip_egress to link veth3 (ifindex 3) by clsact: it is not attached",
            "attach vip_ingress to link veth2 (ifindex 2) by clsact: it is not attached",
            "attach vip_ingress to link veth3 (ifindex 3) by clsact: it is not attached",
            "remove the pinned tcx link of vip_ingress, ifindex 2",
            "remove the pinned tcx link of vip_ingress, ifindex 3",
            "remove the pinned tcx link of vip_ingress, ifindex 4",
            "remove the pinned tcx link of vip_egress, ifindex 2",
        ]
    );
}

/// Beside an `ingress` qdisc of others there can be no clsact, and a program for egress would run at ingress.
#[test]
fn a_link_with_an_ingress_qdisc_gets_no_program_for_egress() {
    let mut desired = desired(&[], &[2, 3], AttachMode::Clsact);
    desired.hooks.insert(Hook::Egress, Some(EGRESS));
    let mut observed = nothing(&desired);
    observed.ingress_only.insert(2);
    assert_eq!(
        texts(&plan(&desired, &observed)),
        [
            "attach vip_egress to link veth3 (ifindex 3) by clsact: it is not attached",
            "attach vip_ingress to link veth2 (ifindex 2) by clsact: it is not attached",
            "attach vip_ingress to link veth3 (ifindex 3) by clsact: it is not attached",
        ]
    );
}

fn cluster_ip() -> IpAddr {
    [10, 96, 0, 1].into()
}

#[test]
fn what_a_decided_connection_needs_is_there_before_any_is_decided() {
    let mut desired = desired(&["10.96.0.2"], &[2, 7], AttachMode::Tcx);
    desired.hooks.insert(Hook::Egress, Some(EGRESS));
    desired.sockets = SocketHook::ALL.map(|hook| (hook, Some(SOCKET))).into();
    let source = Some([192, 0, 2, 7].into());
    desired.routes.insert(cluster_ip(), source);
    desired.guarded.insert(7, "veth7".to_owned());
    let mut observed = nothing(&desired);
    for index in [2, 7] {
        observed.programs.insert((Hook::Egress, index), Vec::new());
    }
    observed.routes.insert(cluster_ip(), Found::Missing);
    assert_eq!(
        texts(&plan(&desired, &observed)),
        [
            "install nf_tables table ip proxy-agent (it is missing)",
            "attach vip_steer to the network namespace: it is not attached",
            "add the local route of 10.96.0.1 with source 192.0.2.7: it is missing",
            "attach vip_egress to link veth7 (ifindex 7) by tcx: it is not attached",
            "attach vip_ingress to link veth7 (ifindex 7) by tcx: it is not attached",
            "attach vip_egress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_getpeername4 to the root cgroup: it is not attached",
            "attach vip_getpeername6 to the root cgroup: it is not attached",
            "attach vip_connect4 to the root cgroup: it is not attached",
            "attach vip_connect6 to the root cgroup: it is not attached",
        ]
    );
}

#[test]
fn only_our_own_route_gets_another_source() {
    let mut desired = desired(&[], &[], AttachMode::Tcx);
    let (old, new) = ([192, 0, 2, 7].into(), [192, 0, 2, 8].into());
    desired.routes.insert(cluster_ip(), Some(new));
    let mut observed = nothing(&desired);
    let mut planned = |found: Option<Found>| {
        observed.routes = found
            .map(|found| (cluster_ip(), found))
            .into_iter()
            .collect();
        texts(&plan(&desired, &observed))
    };
    assert_eq!(
        planned(Some(Found::Ours(Some(old)))),
        [
            "remove the local route of 10.96.0.1",
            "add the local route of 10.96.0.1 with source 192.0.2.8: its source differs",
        ]
    );
    for left_alone in [Some(Found::Ours(Some(new))), Some(Found::Foreign), None] {
        assert!(planned(left_alone).is_empty());
    }
}

#[test]
fn what_is_given_up_is_removed_at_the_end() {
    let mut desired = desired(&["10.96.0.2"], &[2], AttachMode::Tcx);
    desired.former_routes.insert(cluster_ip());
    let mut observed = nothing(&desired);
    observed.pins.insert((Hook::Egress, 2));
    observed.sockets.insert(SocketHook::Connect4, SOCKET);
    observed.sockets.insert(SocketHook::Steer, SOCKET);
    assert_eq!(
        texts(&plan(&desired, &observed)),
        [
            "install nf_tables table ip proxy-agent (it is missing)",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "remove the pinned tcx link of vip_egress, ifindex 2",
            "detach vip_steer from the network namespace",
            "detach vip_connect4 from the root cgroup",
            "remove the local route of 10.96.0.1",
        ]
    );
}

#[test]
fn ports_of_a_bridge_are_known_by_their_bridge() {
    let mut bridge = Link::new(3, "br0", LinkKind::Bridge);
    bridge.master = None;
    let mut port = Link::new(4, "veth4", LinkKind::Veth);
    port.master = Some(3);
    let mut slave = Link::new(5, "eth1", LinkKind::Other);
    slave.master = Some(6);
    let bond = Link::new(6, "bond0", LinkKind::Other);
    let table = LinkTable {
        links: vec![bridge, port, slave, bond],
        ..LinkTable::default()
    };
    let links = guard_links(&guard::Links::default(), &table);
    let masters: Vec<_> = links
        .iter()
        .map(|(index, link)| (*index, link.master()))
        .collect();
    assert_eq!(masters, [(4, 3)]);
}
