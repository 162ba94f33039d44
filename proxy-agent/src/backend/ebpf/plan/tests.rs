// SPDX-License-Identifier: Apache-2.0

//! Plans as text, and the property that they converge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::backend::ebpf::{Settings, ruleset};
use crate::config::TcAttach;

const INGRESS: u32 = 7;

fn settings(vips: &[&str]) -> Settings {
    Settings {
        vips: vips
            .iter()
            .map(|vip| vip.parse::<IpAddr>().unwrap())
            .collect(),
        ports: vec![443],
        bpffs: PathBuf::new(),
        run_dir: PathBuf::new(),
        max_connections: 1024,
        tc_attach: TcAttach::Auto,
        debug: false,
    }
}

fn desired(vips: &[&str], links: &[u32], mode: AttachMode) -> Desired {
    Desired {
        tables: ruleset::tables(&settings(vips), None),
        links: links
            .iter()
            .map(|index| (*index, format!("veth{index}")))
            .collect(),
        mode,
        ingress: Some(INGRESS),
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
            .map(|index| (*index, Vec::new()))
            .collect(),
        ..Observed::default()
    }
}

fn filter(index: u32, program: u32) -> Filter {
    Filter {
        link: Target {
            index,
            name: format!("veth{index}"),
        },
        priority: 1,
        program,
    }
}

/// What the kernel does with an operation.
fn carry_out(op: &Op, observed: &mut Observed) {
    match op {
        Op::InstallTables { tables, .. } => {
            for (table, _) in tables {
                let outline = Some(table.outline());
                observed.tables.insert(table.title(), outline);
            }
        }
        Op::DeleteTable { table } => {
            observed.tables.insert(table.title(), None);
        }
        Op::Attach {
            link,
            mode: AttachMode::Tcx,
            ..
        } => {
            let programs = observed.programs.entry(link.index).or_default();
            programs.retain(|program| *program >= 1000);
            programs.push(INGRESS);
            observed.pins.insert(link.index);
        }
        Op::Attach { link, .. } => {
            observed
                .filters
                .insert(link.index, filter(link.index, INGRESS));
        }
        Op::RemovePin { index } => {
            observed.pins.remove(index);
        }
        Op::RemoveFilter { filter } => {
            observed.filters.remove(&filter.link.index);
        }
    }
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
        [Op::InstallTables { forget, .. }] => Some(*forget),
        _ => None,
    };
    assert_eq!(forgets(&observed), Some(true), "it was missing");

    // The same rules with the programs of an older agent.
    let mut older = ruleset::tables(&settings, None).remove(0);
    for rule in older.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        rule.program = 99;
    }
    observed.tables.insert(older.title(), Some(older.outline()));
    assert_eq!(forgets(&observed), Some(false));

    older.chains[1].rules.pop();
    observed.tables.insert(older.title(), Some(older.outline()));
    assert_eq!(forgets(&observed), Some(true), "a rule was removed");
}

#[test]
fn the_other_way_of_attaching_is_removed_after_the_new_one_stands() {
    let desired = desired(&[], &[2], AttachMode::Clsact);
    let mut observed = nothing(&desired);
    observed.pins.insert(2);
    assert_eq!(
        told(&plan(&desired, &observed)),
        [
            "attach vip_ingress to link veth2 (ifindex 2) by clsact: it is not attached",
            "remove the pinned tcx link of ifindex 2",
        ]
    );
}

proptest! {
    /// Whatever is there, one plan leads to what is desired, a second one is empty, and the
    /// programs of others stay where they are.
    #[test]
    fn converges_in_one_step_and_then_does_nothing(
        v4: bool,
        v6: bool,
        tcx: bool,
        wanted in prop::collection::btree_set(2_u32..12, 0..6),
        attached in prop::collection::btree_map(2_u32..12, prop::collection::vec(5_u32..9, 0..3), 0..8),
        foreign in prop::collection::btree_set(2_u32..12, 0..6),
        pins in prop::collection::btree_set(2_u32..12, 0..8),
        filters in prop::collection::btree_map(2_u32..12, 5_u32..9, 0..8),
        tables in prop::collection::vec(prop::option::of(any::<bool>()), 2),
    ) {
        let mut vips = Vec::new();
        if v4 { vips.push("10.96.0.2"); }
        if v6 { vips.push("fd00:96::2"); }
        let mode = if tcx { AttachMode::Tcx } else { AttachMode::Clsact };
        let wanted: Vec<_> = wanted.into_iter().collect();
        let desired = desired(&vips, &wanted, mode);
        let full = ruleset::tables(&settings(&["10.96.0.2", "fd00:96::2"]), None);
        let mut observed = Observed {
            tables: full.iter().zip(tables).map(|(table, state)| {
                let outline = state.map(|intact| {
                    let mut table = table.clone();
                    if !intact { table.chains[0].rules.clear(); }
                    table.outline()
                });
                (table.title(), outline)
            }).collect(),
            programs: wanted.iter().map(|index| {
                let mut programs = attached.get(index).cloned().unwrap_or_default();
                if foreign.contains(index) { programs.push(1000); }
                (*index, programs)
            }).collect(),
            pins,
            filters: filters.into_iter().map(|(index, program)| (index, filter(index, program))).collect(),
        };
        for op in plan(&desired, &observed) {
            carry_out(&op, &mut observed);
        }
        prop_assert_eq!(told(&plan(&desired, &observed)), Vec::<String>::new());
        for table in &desired.tables {
            let outline = (!table.chains.is_empty()).then(|| table.outline());
            prop_assert_eq!(&observed.tables[&table.title()], &outline);
        }
        let links: BTreeSet<u32> = wanted.iter().copied().collect();
        let filters: BTreeMap<u32, u32> =
            observed.filters.iter().map(|(index, filter)| (*index, filter.program)).collect();
        if tcx {
            prop_assert!(wanted.iter().all(|index| observed.programs[index].contains(&INGRESS)));
            prop_assert_eq!(observed.pins, links);
            prop_assert!(filters.is_empty());
        } else {
            prop_assert_eq!(filters, links.into_iter().map(|index| (index, INGRESS)).collect());
            prop_assert!(observed.pins.is_empty());
        }
        for index in foreign.iter().filter(|index| wanted.contains(index)) {
            prop_assert!(observed.programs[index].contains(&1000));
        }
    }
}
