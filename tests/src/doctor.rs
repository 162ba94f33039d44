// SPDX-License-Identifier: Apache-2.0

//! Runs `proxy-agent doctor` in a node, and the commands that it prints as remedies.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::node::Node;
use crate::{agent, cmd};

/// How many remedies may follow from one another: a link that is up again still lacks its address.
const ROUNDS: usize = 4;

/// Exit code: nothing is wrong.
pub const GOOD: i32 = 0;
/// Exit code: it works, but.
pub const WARNINGS: i32 = 3;
/// Exit code: something does not work.
pub const BROKEN: i32 = 4;

/// The JSON output of `doctor`.
#[derive(Debug)]
pub struct Findings {
    /// The exit code.
    pub code: i32,
    /// One for each finding.
    pub checks: Vec<Value>,
}

impl Findings {
    /// The findings of a check that are neither fine nor without meaning.
    #[must_use]
    pub fn faults(&self, id: &str) -> Vec<&Value> {
        let is_fault = |check: &&Value| {
            check["id"] == id && !["ok", "not-applicable"].contains(&text(check, "verdict"))
        };
        self.checks.iter().filter(is_fault).collect()
    }

    /// The faults of all checks.
    #[must_use]
    pub fn all_faults(&self) -> Vec<&Value> {
        let fine = ["ok", "not-applicable"];
        let is_fault = |check: &&Value| !fine.contains(&text(check, "verdict"));
        self.checks.iter().filter(is_fault).collect()
    }
}

/// A field of a finding; empty if it is not there.
#[must_use]
pub fn text<'a>(check: &'a Value, field: &str) -> &'a str {
    check[field].as_str().unwrap_or_default()
}

/// The doctor in a node's namespace.
///
/// # Errors
/// When there is no agent.
pub fn command(node: &Node, args: &[&str]) -> Result<Command> {
    let mut command = node.netns.command(agent::binary()?);
    command.arg("doctor").args(args);
    if !args.iter().any(|arg| arg.starts_with("--run-dir")) {
        command.arg(format!("--run-dir={}", node.run_dir().display()));
    }
    Ok(command)
}

/// Runs it; it prints JSON.
///
/// # Errors
/// When it cannot be run or prints something else.
pub fn run(node: &Node, mut command: Command) -> Result<Findings> {
    command.arg("--output=json");
    let output = node.run(command)?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let document: Value = serde_json::from_str(&printed)
        .with_context(|| format!("{printed}\n{}", String::from_utf8_lossy(&output.stderr)))?;
    let checks = document["checks"].as_array().context("no checks")?.clone();
    Ok(Findings {
        code: cmd::exit_code(output.status),
        checks,
    })
}

/// The findings of `doctor` on a node.
///
/// # Errors
/// As [`run`].
pub fn doctor(node: &Node) -> Result<Findings> {
    run(node, command(node, &[])?)
}

/// Makes sure that it finds nothing.
///
/// # Errors
/// When it does, or as [`run`].
pub fn ensure_good(node: &Node) -> Result<()> {
    let findings = doctor(node)?;
    ensure!(
        findings.code == GOOD,
        "exit code {}: {:#?}",
        findings.code,
        findings.all_faults()
    );
    Ok(())
}

/// The finding of `doctor`, which must have this check and verdict, and a remedy.
///
/// # Errors
/// When it does not, or as [`run`].
pub fn found(node: &Node, id: &str, verdict: &str) -> Result<Vec<Value>> {
    let findings = doctor(node)?;
    let faults: Vec<_> = findings.faults(id).into_iter().cloned().collect();
    ensure!(
        faults.iter().any(|fault| fault["verdict"] == verdict),
        "no fault of {id}, {verdict}; faults: {:#?}",
        findings.all_faults()
    );
    for fault in &faults {
        println!(
            "{id}: {}\n    {}",
            text(fault, "finding"),
            text(fault, "remedy")
        );
        ensure!(!text(fault, "remedy").is_empty(), "no remedy: {fault:#}");
    }
    let worst = if verdict == "broken" {
        BROKEN
    } else {
        WARNINGS
    };
    ensure!(findings.code >= worst, "exit code {}", findings.code);
    Ok(faults)
}

/// Runs the commands that the doctor prints until it prints none.
///
/// # Errors
/// When one fails, has none, or does not help.
pub fn cure(node: &Node) -> Result<()> {
    for _ in 0..ROUNDS {
        let findings = doctor(node)?;
        for fault in findings.all_faults() {
            let line = text(fault, "command");
            ensure!(!line.is_empty(), "no command: {fault:#}");
            println!("    $ {line}");
            cmd::run(node.netns.command("sh").args(["-c", line]), "")?;
        }
    }
    ensure_good(node)
}

/// Plants a fault that a printed command cures.
///
/// # Errors
/// When it is not found or not cured.
pub fn plant(node: &Node, id: &str, verdict: &str, fault: &str) -> Result<()> {
    cmd::run(node.netns.command("sh").args(["-c", fault]), "").context("planting")?;
    found(node, id, verdict).with_context(|| format!("after: {fault}"))?;
    cure(node).with_context(|| format!("curing {id} after: {fault}"))
}
