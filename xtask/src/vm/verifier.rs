// SPDX-License-Identifier: Apache-2.0

//! The verifier's statistics of our programs on each kernel, and their table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::guest::Job;
use super::qemu::{Host, Setting};
use super::{choose, environment, tail, took};
use crate::kernels::{self, Kernels};
use crate::workspace::Workspace;

/// The document that has the table.
const DOCUMENT: &str = "docs/kernel-support.md";

/// How long a guest may take to load each program once.
const LIMIT: Duration = Duration::from_mins(5);

/// The verifier's statistics of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Its name.
    pub program: String,
    /// How many instructions it looked at, on all ways through the program.
    pub instructions: u32,
    /// How many states it kept at once.
    pub states: u32,
}

impl Measure {
    /// Those in a guest's report: `verifier <program> <instructions> <states>`.
    pub fn of_report(report: &[String]) -> Vec<Self> {
        report.iter().filter_map(|line| Self::read(line)).collect()
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("verifier ")?.split(' ');
        Some(Self {
            program: words.next()?.to_owned(),
            instructions: words.next()?.parse().ok()?,
            states: words.next()?.parse().ok()?,
        })
    }
}

/// Asks each kernel of the matrix, and puts the table into its document.
///
/// # Errors
/// When a guest fails or refuses a program.
pub fn remake(workspace: &Workspace, host: &Host, kernels: &Kernels) -> Result<()> {
    let start = Instant::now();
    let mut releases = Vec::new();
    let mut measures = Vec::new();
    for row in &kernels.kernel {
        let kernel = choose(&row.name, host.cache())?;
        let (accelerator, _) = host.accelerator(&kernel)?;
        println!(
            "vm: the verifier of Linux {}, {accelerator:?}",
            kernel.release
        );
        let setting = Setting {
            name: "verifier",
            job: &Job::Verifier,
            environment: &environment(accelerator),
            append: "",
            accelerator,
        };
        let outcome = host.guest(&kernel, &setting)?.watch(LIMIT, |_| ())?;
        if outcome.status != Some(0) {
            let trouble = outcome.trouble.unwrap_or_default();
            bail!(
                "Linux {} refuses a program {trouble}\n{}",
                kernel.release,
                tail(&outcome.console, 100)
            );
        }
        releases.push(kernel.release.clone());
        measures.push(Measure::of_report(&outcome.report));
    }
    kernels::replace(
        workspace,
        DOCUMENT,
        "verifier",
        &table(&releases, &measures),
    )?;
    println!("vm: {}", took(releases.len(), start));
    Ok(())
}

/// A row for each program, a column for each kernel.
fn table(releases: &[String], measures: &[Vec<Measure>]) -> String {
    let mut programs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (column, measures) in measures.iter().enumerate() {
        for measure in measures {
            let cells = programs.entry(&measure.program).or_default();
            cells.resize(column, "–".to_owned());
            cells.push(format!("{} / {}", measure.instructions, measure.states));
        }
    }
    let mut text = format!("| program | {} |\n|---|", releases.join(" | "));
    text.push_str(&"---|".repeat(releases.len()));
    text.push('\n');
    for (program, mut cells) in programs {
        cells.resize(releases.len(), "–".to_owned());
        let _ = writeln!(text, "| `{program}` | {} |", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_cell_for_each_kernel() {
        let report = |lines: &[&str]| -> Vec<Measure> {
            Measure::of_report(&lines.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let old = report(&["up 5.10", "verifier a 10 2"]);
        let new = report(&["verifier a 11 3", "verifier b 7 1", "verifier broken"]);
        assert_eq!(
            table(&["5.10.1".into(), "6.1.2".into()], &[old, new]),
            "| program | 5.10.1 | 6.1.2 |\n|---|---|---|\n| `a` | 10 / 2 | 11 / 3 |\n| `b` | – | 7 / 1 |\n"
        );
    }
}
