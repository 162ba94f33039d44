// SPDX-License-Identifier: Apache-2.0

//! The property that plans converge, against a model of the kernel.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{EGRESS, MAP, SOCKET, desired, id_of, plan, tables, texts};
use crate::backend::ebpf::pace::Pace;
use crate::backend::ebpf::plan::*;

fn filter(hook: Hook, index: u32, program: u32) -> Filter {
    Filter {
        hook,
        link: Target {
            index,
            name: format!("veth{index}"),
        },
        priority: 1,
        program,
    }
}

/// Models the effect of an operation in the kernel.
pub fn carry_out(op: &Op, observed: &mut Observed) {
    match op {
        Op::PinMap { map, .. } => {
            observed.maps.insert(map, Some(MAP));
        }
        Op::Tables(tables::Op::Install(tables)) => {
            for (table, _) in tables {
                let outline = Some(table.outline());
                observed.tables.insert(table.title(), outline);
            }
        }
        Op::Tables(tables::Op::Rewrite(table)) => {
            let outline = Some(table.outline());
            observed.tables.insert(table.title(), outline);
        }
        Op::Tables(tables::Op::Delete(table)) => {
            observed.tables.insert(table.title(), None);
        }
        Op::Attach {
            hook,
            link,
            mode: AttachMode::Tcx,
            ..
        } => {
            let at = (*hook, link.index);
            let programs = observed.programs.entry(at).or_default();
            programs.retain(|program| *program >= 1000);
            programs.push(id_of(*hook));
            observed.pins.insert(at);
        }
        Op::Attach { hook, link, .. } => {
            let new = filter(*hook, link.index, id_of(*hook));
            observed.filters.insert((*hook, link.index), new);
        }
        Op::AttachSocket { hook, .. } => {
            observed.sockets.insert(*hook, SOCKET);
        }
        Op::DetachSocket { hook } => {
            observed.sockets.remove(hook);
        }
        Op::Guard { links, .. } => observed.guard = Some(links.clone()),
        Op::AddRoute {
            address, source, ..
        } => {
            observed.routes.insert(*address, Found::Ours(*source));
        }
        Op::RemoveRoute { address } => {
            observed.routes.insert(*address, Found::Missing);
        }
        Op::RemovePins { .. } | Op::RemoveXdp { .. } => {}
        Op::RemovePin { hook, index } => {
            observed.pins.remove(&(*hook, *index));
        }
        Op::RemoveFilter { filter } => {
            observed.filters.remove(&(filter.hook, filter.link.index));
        }
    }
}

fn hooks() -> impl Strategy<Value = Hook> {
    prop::sample::select(Hook::ALL.to_vec())
}

proptest! {
/// For any observed state, one plan leads to the desired state, a second one is empty, and programs of others stay where they are.
    #[test]
    fn converges_in_one_step_and_then_does_nothing(
        v4: bool,
        v6: bool,
        tcx: bool,
        ends: bool,
        pace in prop::option::of((1_usize..3, any::<bool>())),
        wanted in prop::collection::btree_set(2_u32..12, 0..6),
        attached in prop::collection::btree_map(
            (hooks(), 2_u32..12), prop::collection::vec(5_u32..10, 0..3), 0..8),
        foreign in prop::collection::btree_set((hooks(), 2_u32..12), 0..6),
        pins in prop::collection::btree_set((hooks(), 2_u32..12), 0..8),
        filters in prop::collection::btree_map((hooks(), 2_u32..12), 5_u32..10, 0..8),
        sockets in prop::collection::btree_map(
            prop::sample::select(SocketHook::ALL.to_vec()), 8_u32..11, 0..4),
        map in prop::option::of(9_u32..12),
        states in prop::collection::vec(prop::option::of(any::<bool>()), 2),
        uplinks in prop::collection::btree_set(2_u32..12, 0..3),
        known in prop::option::of(prop::collection::btree_map(2_u32..12, any::<bool>(), 0..4)),
        ingress_only in prop::collection::btree_set(2_u32..12, 0..3),
        routes in prop::collection::vec((0..3_u8, prop::option::of(1..4_u8), 0..4_u8), 0..3),
    ) {
        let mut vips = Vec::new();
        if v4 { vips.push("10.96.0.2"); }
        if v6 { vips.push("fd00:96::2"); }
        let mode = if tcx { AttachMode::Tcx } else { AttachMode::Clsact };
        let wanted: Vec<_> = wanted.into_iter().collect();
        let mut desired = desired(&vips, &wanted, mode);
        if ends {
            desired.hooks.insert(Hook::Egress, Some(EGRESS));
            desired.sockets = SocketHook::ALL.map(|hook| (hook, Some(SOCKET))).into();
        }
        let full = tables(&["10.96.0.2", "fd00:96::2"]);
        let source = |last| IpAddr::from([192, 0, 2, last]);
        let mut found_routes = BTreeMap::new();
        for (last, wanted, found) in routes {
            let address = IpAddr::from([10, 96, 1, last]);
            desired.routes.insert(address, wanted.map(source));
            found_routes.insert(address, match found {
                0 => Found::Missing,
                1 => Found::Foreign,
                2 => Found::Ours(None),
                last => Found::Ours(Some(source(last))),
            });
        }
        let places = || Hook::ALL.into_iter()
            .flat_map(|hook| wanted.iter().map(move |index| (hook, *index)));
        let mut observed = Observed {
            tables: full.iter().zip(states).map(|(table, state)| {
                let outline = state.map(|intact| {
                    let mut table = table.clone();
                    if !intact { table.chains[0].rules.clear(); }
                    table.outline()
                });
                (table.title(), outline)
            }).collect(),
            programs: places().map(|at| {
                let mut programs = attached.get(&at).cloned().unwrap_or_default();
                if foreign.contains(&at) { programs.push(1000); }
                (at, programs)
            }).collect(),
            pins,
            maps: BTreeMap::from([("SERVICES", map)]),
            filters: filters.into_iter()
                .map(|((hook, index), program)| ((hook, index), filter(hook, index, program)))
                .collect(),
            sockets,
            guard: known.map(|known| known.into_iter().map(|(index, inner)| {
                (index, Link::new(!inner, inner, false))
            }).collect()),
            routes: found_routes.clone(),
            ingress_only: if tcx { BTreeSet::new() } else { ingress_only.clone() },
        };
        for index in uplinks {
            desired.guard.insert(index, Link::new(true, false, false));
            desired.guarded.insert(index, format!("veth{index}"));
        }
// With a pace it takes up to as many plans as there are links, and each link has a program of the agent after the first.
        desired.pace = pace
            .filter(|_| tcx)
            .map(|(at_once, is_first)| Pace { at_once, is_first });
        for _ in 0..=desired.links.len() {
            for op in plan(&desired, &observed) {
                carry_out(&op, &mut observed);
            }
            for (hook, index) in places().filter(|(hook, _)| desired.hooks.contains_key(hook)) {
                let at = (hook, index);
                let by_tcx = observed.programs[&at].contains(&id_of(hook));
                let by_filter = observed.filters.get(&at).is_some_and(|filter| filter.program == id_of(hook));
                prop_assert!(by_tcx || by_filter || ingress_only.contains(&index));
            }
            if let Some(pace) = desired.pace.as_mut() {
                pace.is_first = false;
            } else {
                break;
            }
        }
        prop_assert_eq!(texts(&plan(&desired, &observed)), Vec::<String>::new());
        for table in &desired.tables {
            let outline = (!table.chains.is_empty()).then(|| table.outline());
            prop_assert_eq!(&observed.tables[&table.title()], &outline);
        }
        let no_egress = |index| !tcx && ingress_only.contains(&index);
        let mut wanted_places: BTreeSet<_> =
            places().filter(|(hook, _)| desired.hooks.contains_key(hook)).collect();
        if tcx {
            for at in &wanted_places {
                prop_assert!(observed.programs[at].contains(&id_of(at.0)));
            }
            prop_assert_eq!(&observed.pins, &wanted_places);
            prop_assert!(observed.filters.is_empty());
        } else {
            let filters: BTreeMap<_, _> =
                observed.filters.iter().map(|(at, filter)| (*at, filter.program)).collect();
// Existing attachments beside an ingress qdisc are kept.
            wanted_places.retain(|(hook, index)| *hook == Hook::Ingress || !no_egress(*index));
            let filters: BTreeMap<_, _> = filters
                .into_iter()
                .filter(|((hook, index), _)| *hook == Hook::Ingress || !no_egress(*index))
                .collect();
            let expected = wanted_places.iter().map(|at| (*at, id_of(at.0))).collect();
            prop_assert_eq!(filters, expected);
            prop_assert!(observed.pins.is_empty());
        }
        prop_assert_eq!(observed.maps["SERVICES"], Some(MAP));
        for (address, found) in &found_routes {
            let is_foreign = *found == Found::Foreign;
            prop_assert_eq!(observed.routes[address] == Found::Foreign, is_foreign);
            prop_assert_ne!(observed.routes[address], Found::Missing);
        }
        let sockets: Vec<_> = observed.sockets.into_values().collect();
        prop_assert_eq!(sockets, if ends { vec![SOCKET; 5] } else { Vec::new() });
        for at in places().filter(|at| foreign.contains(at)) {
            prop_assert!(observed.programs[&at].contains(&1000));
        }
    }
}
