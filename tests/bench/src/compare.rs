// SPDX-License-Identifier: Apache-2.0

//! Compares two runs.
//!
//! Traffic is compared by its ratio to a node without hooks in the same run, else two machines, or one
//! machine on two days, would be compared.

use std::fmt::Write as _;

use super::result::{Cell, Clock, Results};
use super::statistics::Summary;
use super::variant::Variant;

/// A change is reported if at least this fraction remains after subtracting the spreads of both
/// runs.
const NOTABLE: f64 = 0.02;

/// The changes that are more than the spread of both, those for the worse first.
#[must_use]
pub fn table(old: &Results, new: &Results) -> String {
    let mut changes: Vec<(String, Summary, Summary)> = Vec::new();
    let (clock, new_clock) = (old.clock(), new.clock());
    for (old_cells, new_cells) in [(&old.paths, &new.paths), (&old.scale, &new.scale)] {
        for cell in new_cells {
            let before = Results::beside(old_cells, cell, &cell.variant);
            let before = before.and_then(|before| relative(old_cells, before, clock));
            if let (Some(before), Some(after)) = (before, relative(new_cells, cell, new_clock)) {
                changes.push((name(cell), before, after));
            }
        }
    }
    for program in &new.programs {
        let is_same = |other: &&super::result::Program| {
            other.name == program.name && other.packet == program.packet
        };
        let before = old.programs.iter().find(is_same);
        let before = before.and_then(|before| Summary::of(&before.nanoseconds));
        if let (Some(before), Some(after)) = (before, Summary::of(&program.nanoseconds)) {
            let name = format!("{}, {}, ns", program.name, program.packet);
            changes.push((name, before, after));
        }
    }
    for cost in &new.costs {
        let after = Summary::of(&cost.samples);
        if let (Some(before), Some(after)) = (old.cost(&cost.what), after) {
            changes.push((format!("{}, {}", cost.what, cost.unit), before, after));
        }
    }
    let compared = changes.len();
    changes.retain(|(_, before, after)| is_notable(before, after));
    let factor = |(_, before, after): &(String, Summary, Summary)| after.median / before.median;
    changes.sort_by(|a, b| factor(b).total_cmp(&factor(a)));
    let mut text = format!(
        "{compared} compared, {} changed by more than their spread\n",
        changes.len()
    );
    if changes.is_empty() {
        return text;
    }
    text.push_str("\n| what | before | after | × |\n|---|---|---|---|\n");
    for change in &changes {
        let (what, before, after) = change;
        let _ = writeln!(
            text,
            "| {what} | {:.3} | {:.3} | {:.2} |",
            before.median,
            after.median,
            factor(change)
        );
    }
    text
}

/// To no hooks in the same run; where that is not there, in µs.
fn relative(cells: &[Cell], cell: &Cell, clock: Clock) -> Option<Summary> {
    if let Some(other) = Results::beside(cells, cell, Variant::NoHooks.name()) {
        return Summary::of_ratio(cell.by(clock), other.by(clock));
    }
    let us: Vec<f64> = cell.by(clock).iter().map(|time| time / 1000.0).collect();
    Summary::of(&us)
}

fn name(cell: &Cell) -> String {
    let size = if cell.of.is_empty() {
        String::new()
    } else {
        format!(", {} {}", cell.size, cell.of)
    };
    format!(
        "{}, {}, {} IPv{}{size}",
        cell.variant, cell.work, cell.way, cell.family
    )
}

fn is_notable(before: &Summary, after: &Summary) -> bool {
    let apart = (after.low - before.high).max(before.low - after.high);
    apart > NOTABLE * before.median
}

#[cfg(test)]
mod tests {
    use super::super::Effort;
    use super::super::result::Cost;
    use super::*;

    #[test]
    fn only_changes_are_reported() {
        let mut old = Results::begin(Effort::SHORT).expect("procfs");
        for (what, samples) in [
            ("start", [100.0, 101.0, 99.0]),
            ("repair", [10.0, 20.0, 30.0]),
        ] {
            old.costs.push(Cost {
                what: what.to_owned(),
                unit: "ms".to_owned(),
                samples: samples.to_vec(),
            });
        }
        let mut new = old.clone();
        assert_eq!(
            table(&old, &new),
            "2 compared, 0 changed by more than their spread\n"
        );
        for cost in &mut new.costs {
            for sample in &mut cost.samples {
                *sample *= 1.2;
            }
        }
        let text = table(&old, &new);
        assert!(
            text.contains("| start, ms | 100.000 | 120.000 | 1.20 |"),
            "{text}"
        );
        assert!(!text.contains("repair"), "{text}");
    }
}
