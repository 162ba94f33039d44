// SPDX-License-Identifier: Apache-2.0

//! Every variant on every way, with every kind of work and both families.

use anyhow::{Context as _, Result};

use super::Effort;
use super::host::{Host, Way};
use super::result::Cell;
use super::traffic::Work;
use super::variant::Variant;
use tests::Family;

/// The measurements of each variant.
fn plan(effort: Effort) -> Vec<(Work, Way, Family)> {
    let mut plan = Vec::new();
    for work in Work::ALL {
        for way in Way::ALL {
            // Of the node's other packets only small exchanges are measured, where an added cost
            // shows best.
            let is_small = matches!(work, Work::Exchange | Work::Connect);
            if way == Way::Unrelated && !is_small {
                continue;
            }
            if effort.short && (!is_small || way == Way::Bridge) {
                continue;
            }
            let families = if effort.short { 1 } else { 2 };
            let families = Family::ALL.into_iter().take(families);
            plan.extend(families.map(|family| (work, way, family)));
        }
    }
    plan
}

/// Measures.
///
/// # Errors
/// When a variant does not work.
pub fn run(effort: Effort, mut progress: impl FnMut(&str)) -> Result<Vec<Cell>> {
    let variants: &[Variant] = if effort.short {
        &Variant::FEWEST
    } else {
        &Variant::ALL
    };
    let mut hosts = Vec::new();
    for variant in variants {
        progress(&format!("a node: {variant}"));
        hosts.push(Host::new(*variant, &[]).with_context(|| variant.name())?);
    }
    let plan = plan(effort);
    let mut cells = cells(&plan, &hosts);
    // The first round warms caches and neighbour entries up and is not kept.
    for round in 0..=effort.rounds {
        for (n, (work, way, family)) in plan.iter().enumerate() {
            for turn in 0..hosts.len() {
                // Another one begins each time: the first one may find colder caches.
                let turn = (turn + round + n) % hosts.len();
                let sample = hosts[turn].measure(*way, *family, *work, effort)?;
                if round > 0 {
                    cells[n * hosts.len() + turn].push(sample);
                }
            }
        }
        progress(&format!("round {round} of {}", effort.rounds));
    }
    Ok(cells)
}

fn cells(plan: &[(Work, Way, Family)], hosts: &[Host]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (work, way, family) in plan {
        for host in hosts {
            cells.push(empty(host.variant, *way, *family, *work));
        }
    }
    cells
}

/// A cell without a round.
pub(super) fn empty(variant: Variant, way: Way, family: Family, work: Work) -> Cell {
    Cell {
        variant: variant.name().to_owned(),
        way: way.name().to_owned(),
        family: match family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        work: work.name().to_owned(),
        of: String::new(),
        size: 0,
        wall: Vec::new(),
        cpu: Vec::new(),
        instructions: Vec::new(),
    }
}
