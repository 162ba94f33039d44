// SPDX-License-Identifier: Apache-2.0

//! Runs `proxy-agent doctor` on a node, and the commands that it prints as remedies.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::node::Node;
use crate::{agent, cmd};

/// The maximum number of remedies that may follow from one another: a link that is up again still lacks its address.
const ROUNDS: usize = 4;

/// The exit code if nothing is wrong.
pub const GOOD: i32 = 0;
/// The exit code if everything works, but is degraded or at risk.
pub const WARNINGS: i32 = 3;
/// The exit code if something does not work.
pub const BROKEN: i32 = 4;

/// The JSON output of `doctor`.
#[derive(Debug)]
pub struct Findings {
    /// The exit code of `doctor`.
    pub code: i32,
    /// The findings.
    pub checks: Vec<Value>,
}

impl Findings {
    /// Returns the findings of a check that are faults: neither fine nor not applicable.
    #[must_use]
    pub fn faults(&self, id: &str) -> Vec<&Value> {
        let is_fault = |check: &&Value| {
            check["id"] == id && !["ok", "not-applicable"].contains(&text(check, "verdict"))
        };
        self.checks.iter().filter(is_fault).collect()
    }

    /// Returns the faults of all checks.
    #[must_use]
    pub fn all_faults(&self) -> Vec<&Value> {
        let fine = ["ok", "not-applicable"];
        let is_fault = |check: &&Value| !fine.contains(&text(check, "verdict"));
        self.checks.iter().filter(is_fault).collect()
    }
}

/// Returns a field of a finding, or an empty string if the field does not exist.
#[must_use]
pub fn text<'a>(check: &'a Value, field: &str) -> &'a str {
    check[field].as_str().unwrap_or_default()
}

/// Returns a command that runs the doctor in a node's namespace.
///
/// # Errors
/// Returns an error if there is no executable of the agent.
pub fn command(node: &Node, args: &[&str]) -> Result<Command> {
    let mut command = node.netns.command(agent::binary()?);
    command.arg("doctor").args(args);
    if !args.iter().any(|arg| arg.starts_with("--run-dir")) {
        command.arg(format!("--run-dir={}", node.run_dir().display()));
    }
    Ok(command)
}

/// Runs the command, which prints JSON.
///
/// # Errors
/// Returns an error if the command cannot be run or prints something else.
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

/// Returns the findings of `doctor` on a node.
///
/// # Errors
/// Returns the same errors as [`run`].
pub fn doctor(node: &Node) -> Result<Findings> {
    run(node, command(node, &[])?)
}

/// Checks that `doctor` finds no fault.
///
/// # Errors
/// Returns an error if it does, and the same errors as [`run`].
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

/// Returns the findings of `doctor`, which must contain this check with this verdict and a remedy.
///
/// # Errors
/// Returns an error if they do not, and the same errors as [`run`].
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
/// Returns an error if a command fails, if a fault has none, or if the commands do not help.
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

/// Plants a fault that a printed command repairs.
///
/// # Errors
/// Returns an error if the fault is not found or not repaired.
pub fn plant(node: &Node, id: &str, verdict: &str, fault: &str) -> Result<()> {
    cmd::run(node.netns.command("sh").args(["-c", fault]), "").context("planting")?;
    found(node, id, verdict).with_context(|| format!("after: {fault}"))?;
    cure(node).with_context(|| format!("curing {id} after: {fault}"))
}
