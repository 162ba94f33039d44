// SPDX-License-Identifier: Apache-2.0

//! Results as Markdown tables.

use std::fmt::Write as _;

use super::bars::{self, thousands};
use super::result::{Cell, Clock, Results};
use super::statistics::Summary;
use super::traffic::Work;
use super::upstream;
use super::variant::Variant;

/// The machine and the method of measurement.
#[must_use]
pub fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let by = match results.clock() {
        Clock::Wall => "wall time",
        Clock::Processor => "processor time of client and server",
    };
    format!(
        "Linux {}, {} × {}; {} rounds of {} ms for each variant. At the start {:.1} other processes wanted \
         to run. Ratios are of {by}.\n",
        machine.kernel,
        machine.processors,
        machine.processor,
        results.rounds,
        results.slot,
        machine.load
    )
}

/// The targets.
#[must_use]
pub fn bars(results: &Results) -> String {
    let mut text = String::from(
        "| what | at most | worst median (quartiles) | where | reached by | verdict |\n|---|---|---|---|---|---|\n",
    );
    for bar in bars::bars(results) {
        let Some((place, worst)) = bar.worst() else {
            continue;
        };
        let unit = if bar.unit.is_empty() { " ×" } else { bar.unit };
        let number = |value: f64| number(value, bar.unit);
        let _ = writeln!(
            text,
            "| {} | {}{}{unit} | {} ({} to {}) | {place} | {} of {} | {} |",
            bar.what,
            number(bar.most),
            if bar.unit.is_empty() { "" } else { " " },
            number(worst.median),
            number(worst.low),
            number(worst.high),
            bar.reached(),
            bar.measured.len(),
            bar.verdict()
        );
    }
    text
}

fn number(value: f64, unit: &str) -> String {
    match unit {
        "" | "MiB" => format!("{value:.2}"),
        "%" => format!("{value:.3}"),
        _ => format!("{value:.0}"),
    }
}

/// A table for each kind of work: variants down, ways across.
#[must_use]
pub fn paths(results: &Results) -> String {
    let names: Vec<&str> = Variant::ALL.map(Variant::name).to_vec();
    let to = [Variant::NoHooks.name(), Variant::Native.name()];
    of_works(&results.paths, results.clock(), &names, &to)
}

/// The same through a proxy. The work of the proxy is in wall time only.
#[must_use]
pub fn upstream(results: &Results) -> String {
    let names: Vec<&str> = upstream::names().collect();
    let to = [Variant::Tracked.name()];
    of_works(&results.upstream, Clock::Wall, &names, &to)
}

fn of_works(cells: &[Cell], clock: Clock, variants: &[&str], to: &[&str]) -> String {
    let mut text = String::new();
    for work in Work::ALL {
        let of_work: Vec<&Cell> = cells
            .iter()
            .filter(|cell| cell.work == work.name())
            .collect();
        if of_work.is_empty() {
            continue;
        }
        let _ = writeln!(text, "### {work}\n");
        let mut ways: Vec<(&str, u8)> = Vec::new();
        for cell in &of_work {
            if !ways.contains(&(&cell.way, cell.family)) {
                ways.push((&cell.way, cell.family));
            }
        }
        text.push('|');
        for (way, family) in &ways {
            let _ = write!(text, " | {way} IPv{family}");
        }
        let _ = writeln!(text, " |\n|---|{}", "---|".repeat(ways.len()));
        for variant in variants {
            let cell = |(way, family): &(&str, u8)| {
                of_work.iter().find(|cell| {
                    cell.variant == *variant && cell.way == *way && cell.family == *family
                })
            };
            if ways.iter().all(|way| cell(way).is_none()) {
                continue;
            }
            let _ = write!(text, "| {variant}");
            for way in &ways {
                let shown = cell(way).map_or(String::new(), |one| in_table(cells, clock, one, to));
                let _ = write!(text, " | {shown}");
            }
            text.push_str(" |\n");
        }
        text.push('\n');
    }
    text
}

/// `14.2 ±0.3, cpu 14.1 · 1.02 · 0.99`: microseconds, and the ratio to each of the others.
fn in_table(cells: &[Cell], clock: Clock, cell: &Cell, to: &[&str]) -> String {
    let (Some(wall), Some(cpu)) = (Summary::of(&cell.wall), Summary::of(&cell.cpu)) else {
        return String::new();
    };
    let us = |nanoseconds: f64| {
        let us = nanoseconds / 1000.0;
        if us < 100.0 {
            format!("{us:.1}")
        } else {
            format!("{us:.0}")
        }
    };
    let mut text = format!("{} ±{}", us(wall.median), us((wall.high - wall.low) / 2.0));
    if clock == Clock::Processor {
        let _ = write!(text, ", cpu {}", us(cpu.median));
    }
    if let Some(count) = Summary::of(&cell.instructions) {
        let _ = write!(text, ", {:.0} instructions", count.median);
    }
    for to in to {
        let other = Results::beside(cells, cell, to);
        let ratio = other.and_then(|other| Summary::of_ratio(cell.by(clock), other.by(clock)));
        if let Some(ratio) = ratio {
            let _ = write!(text, " · {:.2}", ratio.median);
        }
    }
    text
}

/// The growth of costs with the number of objects.
#[must_use]
pub fn scale(results: &Results) -> String {
    let mut text = String::from(
        "| of what | how many | work | variant | with 1 | with many | × (quartiles) |\n|---|---|---|---|---|---|---|\n",
    );
    for (many, ratio) in bars::growth(results, |_| true) {
        let few = Cell {
            size: 1,
            ..many.clone()
        };
        let few = Results::beside(&results.scale, &few, &many.variant);
        let median = |cell: &Cell| {
            let time = Summary::of(cell.by(results.clock()));
            time.map_or(f64::NAN, |time| time.median / 1000.0)
        };
        let work = Work::ALL.into_iter().find(|work| work.name() == many.work);
        let _ = writeln!(
            text,
            "| {} | {} | {}, {} | {} | {:.1} µs | {:.1} µs | {:.2} ({:.2} to {:.2}) |",
            many.of,
            thousands(many.size),
            work.map_or_else(String::new, |work| work.to_string()),
            many.way,
            many.variant,
            few.map_or(f64::NAN, median),
            median(many),
            ratio.median,
            ratio.low,
            ratio.high
        );
    }
    text
}

/// Each program alone.
#[must_use]
pub fn programs(results: &Results) -> String {
    let counts = results
        .programs
        .iter()
        .any(|one| one.instructions.is_some());
    let mut text =
        String::from("| program | packet | ns (quartiles) | BPF instructions | machine code |");
    text.push_str(if counts {
        " instructions run |\n"
    } else {
        "\n"
    });
    text.push_str(if counts {
        "|---|---|---|---|---|---|\n"
    } else {
        "|---|---|---|---|---|\n"
    });
    for program in &results.programs {
        let Some(time) = Summary::of(&program.nanoseconds) else {
            continue;
        };
        let (name, with) = program.name.split_once(", ").unwrap_or((&program.name, ""));
        let comma = if with.is_empty() { "" } else { ", " };
        let quote = if name.contains(' ') { "" } else { "`" };
        let _ = write!(
            text,
            "| {quote}{name}{quote}{comma}{with} | {} | {:.0} ({:.0} to {:.0}) | {} | {} bytes |",
            program.packet, time.median, time.low, time.high, program.length, program.machine_code
        );
        if let Some(count) = program.instructions {
            let _ = write!(text, " {count:.0} |");
        }
        text.push('\n');
    }
    text
}

/// The agent.
#[must_use]
pub fn costs(results: &Results) -> String {
    let mut text = String::from("| what | median | quartiles | samples |\n|---|---|---|---|\n");
    for cost in &results.costs {
        let Some(summary) = Summary::of(&cost.samples) else {
            continue;
        };
        let number = |value: f64| match cost.unit.as_str() {
            "ms" if value >= 100.0 => format!("{value:.0}"),
            "ms" => format!("{value:.1}"),
            unit => number(value, unit),
        };
        let _ = writeln!(
            text,
            "| {} | {} {} | {} to {} | {} |",
            cost.what,
            number(summary.median),
            cost.unit,
            number(summary.low),
            number(summary.high),
            cost.samples.len()
        );
    }
    text
}

/// All of it, for a terminal.
#[must_use]
pub fn everything(results: &Results) -> String {
    let mut parts = vec![machine(results)];
    if !results.paths.is_empty() {
        parts.push(paths(results));
    }
    if !results.scale.is_empty() {
        parts.push(scale(results));
    }
    if !results.upstream.is_empty() {
        parts.push(format!("## {}\n\n{}", upstream::THROUGH, upstream(results)));
    }
    if !results.programs.is_empty() {
        parts.push(programs(results));
    }
    if !results.costs.is_empty() {
        parts.push(costs(results));
    }
    parts.push(bars(results));
    parts.join("\n")
}
