// SPDX-License-Identifier: Apache-2.0

//! What `vm` shows of the guests, which run at the same time: each line names its guest.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Result, bail};

use super::qemu::Outcome;
use super::tail;
use crate::sh;

/// How much of a console is shown.
const SHOWN: usize = 400;

/// The result of one boot.
pub struct Verdict {
    /// The kernel's name in the matrix, with what is taken away from it.
    pub name: String,
    /// Its release.
    pub release: String,
    /// The errors; none: it passed.
    pub problems: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

/// A file whose tests ran: `tests <name> <status> <seconds>`.
pub struct Ran<'a> {
    /// The file.
    pub name: &'a str,
    /// Its exit status.
    pub status: i32,
    /// How long it took, in seconds.
    pub seconds: u64,
}

impl<'a> Ran<'a> {
    /// Reads a line of a report; none if it is about something else.
    pub fn read(line: &'a str) -> Option<Self> {
        let mut words = line.strip_prefix("tests ")?.split(' ');
        Some(Self {
            name: words.next()?,
            status: words.next()?.parse().ok()?,
            seconds: words.next()?.parse().ok()?,
        })
    }
}

/// Shows a line of a guest's report.
pub fn show_line(guest: &str, line: &str) {
    if let Some(ran) = Ran::read(line) {
        let verdict = if ran.status == 0 { "ok" } else { "FAILED" };
        println!("{guest}: {:<24} {verdict}, {} s", ran.name, ran.seconds);
    } else if let Some(skipped) = line.strip_prefix("skipped ") {
        println!("{guest}: skipped: {skipped}");
    }
}

/// Shows what a guest printed that has failed.
pub fn show_failure(guest: &str, outcome: &Outcome) {
    // Other guests have no line in between.
    let _stdout = io::stdout().lock();
    println!("{guest}: failed");
    show(outcome);
}

/// Shows the output of failed programs; where none did, the end of the console.
fn show(outcome: &Outcome) {
    let bytes = fs::read(&outcome.console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    let failed = outcome
        .report
        .iter()
        .filter_map(|line| Ran::read(line))
        .filter(|ran| ran.status != 0);
    let mut shown = false;
    for ran in failed {
        let begin = format!("==== {}\n", ran.name);
        let end = format!("==== end of {}\n", ran.name);
        let part = text
            .split_once(&begin)
            .map(|(_, rest)| rest.split_once(&end).map_or(rest, |(part, _)| part));
        if let Some(part) = part {
            let lines: Vec<&str> = part.lines().collect();
            let from = lines.len().saturating_sub(SHOWN);
            println!(
                "---- {} of the guest:\n{}",
                ran.name,
                lines[from..].join("\n")
            );
            shown = true;
        }
    }
    if !shown || outcome.trouble.is_some() {
        println!(
            "---- the end of the guest's console:\n{}",
            tail(&outcome.console, SHOWN)
        );
    }
    println!("---- all of it: {}", outcome.console.display());
}

/// Shows each guest's result.
pub fn verdicts(verdicts: &[Verdict]) {
    for verdict in verdicts {
        let Verdict {
            name,
            release,
            problems,
            time,
        } = verdict;
        let word = if problems.is_empty() {
            "passed"
        } else {
            "FAILED"
        };
        println!("{word}  {name} (Linux {release}), {}", sh::duration(*time));
        for problem in problems {
            println!("        {problem}");
        }
    }
}

/// An error that names the guests that have failed, if any.
///
/// # Errors
/// When one has failed.
pub fn ensure_passed(verdicts: &[Verdict]) -> Result<()> {
    let failed: Vec<&str> = verdicts
        .iter()
        .filter(|verdict| !verdict.problems.is_empty())
        .map(|verdict| verdict.name.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
