// SPDX-License-Identifier: Apache-2.0

//! Plans as text; `tests/model.rs` has the property that they converge.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use super::*;
use crate::backend::ebpf::load::Ids;
use crate::backend::ebpf::{Settings, ruleset};
use crate::config::{GuardMode, TcAttach};
use crate::instance::Instance;

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

fn settings(vips: &[&str]) -> Settings {
    Settings {
        instance: Instance::default(),
        vips: vips
            .iter()
            .map(|vip| vip.parse::<IpAddr>().unwrap())
            .collect(),
        ports: vec![443],
        services: Vec::new(),
        bpffs: PathBuf::new(),
        run_dir: PathBuf::new(),
        max_connections: 1024,
        tc_attach: TcAttach::Auto,
        guard: true,
        guard_mode: GuardMode::Tc,
        allow_from: Vec::new(),
        debug: false,
    }
}

fn desired(vips: &[&str], links: &[u32], mode: AttachMode) -> Desired {
    Desired {
        tables: ruleset::tables(&settings(vips), &ruleset::known(&Ids::new())),
        links: links
            .iter()
            .map(|index| (*index, format!("veth{index}")))
            .collect(),
        mode,
        maps: BTreeMap::from([("CONNECTIONS", Some(MAP))]),
        hooks: BTreeMap::from([(Hook::Ingress, Some(INGRESS))]),
        sockets: BTreeMap::new(),
        guard: guard::Links::default(),
        given_up: Vec::new(),
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
        maps: BTreeMap::from([("CONNECTIONS", Some(MAP))]),
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

/// Rules and hooks by the ids that another agent has told.
#[test]
fn known_programs_are_recognised() {
    let ids = Ids::from([("vip_prerouting".to_owned(), 7)]);
    let with =
        |ids: &Ids| ruleset::tables(&settings(&["10.96.0.2"]), &ruleset::known(ids)).remove(0);
    assert_ne!(with(&ids).outline(), with(&Ids::new()).outline());
    assert_eq!(with(&ids).outline(), with(&ids).outline());
}

fn told(ops: &[Op]) -> Vec<String> {
    ops.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_node_gets_verdicts_first_and_then_programs() {
    let desired = desired(&["10.96.0.2"], &[2, 5], AttachMode::Tcx);
    assert_eq!(
        told(&plan(&desired, &nothing(&desired))),
        [
            "install nf_tables table ip proxy-agent (it is missing)",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_ingress to link veth5 (ifindex 5) by tcx: it is not attached",
        ]
    );
}

#[test]
fn links_are_guarded_before_programs_are_attached_and_are_named_if_they_are_others() {
    let mut desired = desired(&[], &[2], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    desired.guard.guarded.insert(7, "eth0".to_owned());
    observed.guard = Some(BTreeMap::new());
    assert_eq!(
        told(&plan(&desired, &observed)),
        [
            "guard eth0",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
        ]
    );
    observed.guard = Some(guard_links(&desired.guard));
    desired.guard.tagged.insert(9);
    assert_eq!(
        told(&plan(&desired, &observed))[0],
        "note which links lead where"
    );
    desired.guard.guarded.clear();
    assert_eq!(told(&plan(&desired, &observed))[0], "guard no link");
    // What could not be read is not touched.
    observed.guard = None;
    assert!(!told(&plan(&desired, &observed))[0].contains("guard"));
}

#[test]
fn a_map_is_pinned_again_unless_its_pin_could_not_be_read() {
    let desired = desired(&[], &[], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    observed.maps = BTreeMap::from([("CONNECTIONS", None)]);
    assert_eq!(
        told(&plan(&desired, &observed)),
        ["pin the map CONNECTIONS: its pin is missing"]
    );
    observed.maps = BTreeMap::from([("CONNECTIONS", Some(MAP + 1))]);
    assert_eq!(
        told(&plan(&desired, &observed)),
        ["pin the map CONNECTIONS: another map is pinned there"]
    );
    observed.maps = BTreeMap::new();
    assert_eq!(told(&plan(&desired, &observed)), Vec::<String>::new());
}

#[test]
fn a_table_that_could_not_be_read_is_left_alone() {
    let desired = desired(&["10.96.0.2", "fd00:96::2"], &[], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    observed.tables.remove("ip proxy-agent");
    assert_eq!(
        told(&plan(&desired, &observed)),
        ["install nf_tables table ip6 proxy-agent (it is missing)"]
    );
}

#[test]
fn decisions_are_forgotten_only_if_replies_went_by_unverified() {
    let settings = settings(&["10.96.0.2"]);
    let desired = desired(&["10.96.0.2"], &[], AttachMode::Tcx);
    let mut observed = nothing(&desired);
    let forgets = |observed: &Observed| match &plan(&desired, observed)[..] {
        [Op::InstallTables { unguarded, .. }] => Some(*unguarded),
        _ => None,
    };
    assert_eq!(forgets(&observed), Some(true), "it was missing");

    // The same rules with the programs of an older agent.
    let mut older = ruleset::tables(&settings, &ruleset::known(&Ids::new())).remove(0);
    for rule in older.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        rule.program = Some(99);
    }
    observed.tables.insert(older.title(), Some(older.outline()));
    assert_eq!(forgets(&observed), Some(false));

    older.chains[1].rules.pop();
    observed.tables.insert(older.title(), Some(older.outline()));
    assert_eq!(forgets(&observed), Some(true), "a rule was removed");
}

/// Where both stood on a link, each SYN would be decided twice; a reply that is translated is not
/// translated again.
#[test]
fn the_other_way_of_deciding_gives_way_link_by_link_and_that_of_replies_at_the_end() {
    let mut desired = desired(&[], &[2, 3], AttachMode::Clsact);
    desired.hooks.insert(Hook::Egress, Some(EGRESS));
    let mut observed = nothing(&desired);
    observed
        .pins
        .extend([2, 3, 4].map(|index| (Hook::Ingress, index)));
    observed.pins.insert((Hook::Egress, 2));
    assert_eq!(
        told(&plan(&desired, &observed)),
        [
            "remove the pinned tcx link of vip_ingress, ifindex 4",
            "attach vip_egress to link veth2 (ifindex 2) by clsact: it is not attached",
            "attach vip_egress to link veth3 (ifindex 3) by clsact: it is not attached",
            "remove the pinned tcx link of vip_ingress, ifindex 2",
            "attach vip_ingress to link veth2 (ifindex 2) by clsact: it is not attached",
            "remove the pinned tcx link of vip_ingress, ifindex 3",
            "attach vip_ingress to link veth3 (ifindex 3) by clsact: it is not attached",
            "remove the pinned tcx link of vip_egress, ifindex 2",
        ]
    );
}

fn service() -> Service {
    Service {
        cluster_ip: "10.96.0.1:443".parse().unwrap(),
        vip: "10.96.0.2:443".parse().unwrap(),
    }
}

#[test]
fn replies_are_translated_before_requests_are() {
    let mut desired = desired(&["10.96.0.2"], &[2], AttachMode::Tcx);
    desired.hooks.insert(Hook::Egress, Some(EGRESS));
    desired.sockets = SocketHook::ALL.map(|hook| (hook, Some(SOCKET))).into();
    let mut observed = nothing(&desired);
    observed.programs.insert((Hook::Egress, 2), Vec::new());
    assert_eq!(
        told(&plan(&desired, &observed)),
        [
            "install nf_tables table ip proxy-agent (it is missing)",
            "attach vip_egress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "attach vip_getpeername4 to the root cgroup: it is not attached",
            "attach vip_getpeername6 to the root cgroup: it is not attached",
            "attach vip_connect4 to the root cgroup: it is not attached",
            "attach vip_connect6 to the root cgroup: it is not attached",
        ]
    );
}

/// Before the rules and programs that translate are gone, and once more after that.
#[test]
fn a_service_that_is_given_up_is_handed_over() {
    let mut desired = desired(&["10.96.0.2"], &[2], AttachMode::Tcx);
    desired.given_up = vec![service()];
    let mut observed = nothing(&desired);
    observed.pins.insert((Hook::Egress, 2));
    observed.sockets.insert(SocketHook::Connect4, SOCKET);
    assert_eq!(
        told(&plan(&desired, &observed)),
        [
            "hand translated connections to 10.96.0.1:443 over to conntrack",
            "install nf_tables table ip proxy-agent (it is missing)",
            "attach vip_ingress to link veth2 (ifindex 2) by tcx: it is not attached",
            "hand translated connections to 10.96.0.1:443 over to conntrack",
            "remove the pinned tcx link of vip_egress, ifindex 2",
            "detach vip_connect4 from the root cgroup",
        ]
    );
}
