// SPDX-License-Identifier: Apache-2.0

//! `test`: all tests on this machine's kernel.
//!
//! Topologies, traffic and assertions live in the crate `tests`; this module builds its programs, passes the path of
//! the agent to them and sums up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::behaviour;
use crate::build;
use crate::fuzz;
use crate::image;
use crate::kernels::Kernels;
use crate::nodes::{self, Nodes};
use crate::parallel;
use crate::peers;
use crate::previous;
use crate::setup::{self, Scope};
use crate::sh;
use crate::variables::{KERNEL_VARIABLE, PREVIOUS_VARIABLE};
use crate::vm;
use crate::workspace::{QUICK, USER_SPACE, Workspace, by};

/// The options of `test`.
#[derive(Debug)]
pub struct Options {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// Only behaviour tests, on nodes with this setting of `tests/nodes.toml`.
    pub node: Option<String>,
    /// Arguments for the test programs.
    pub args: Vec<OsString>,
}

/// Runs all tests, and then the reduced set on each node of `tests/nodes.toml`; or those that are asked for.
///
/// # Errors
/// Without root, when something they need cannot be had, or when a test fails.
pub fn test(workspace: &Workspace, options: &Options) -> Result<()> {
    sh::require_root(
        "test",
        "the tests make network namespaces and load eBPF programs",
    )?;
    let nodes = Nodes::read(workspace)?;
    if let Some(node) = &options.node {
        nodes.ensure_known(node)?;
    }
    setup::ensure(Scope::Programs)?;
    let variables = build_everything(workspace)?;
    // A run that was killed leaves namespaces and mounts behind.
    sh::run(&mut sh::command(workspace.program("remove-leftovers")))?;
    let skipped = workspace.target.join("skipped");
    forget(&skipped)?;

    let start = Instant::now();
    let mut cargo = workspace.cargo("test");
    cargo.args(by(QUICK)).arg("--no-fail-fast");
    cargo.envs(&variables);
    match &options.node {
        Some(node) => cargo
            .args(["--package", "tests"])
            .env(nodes::VARIABLE, node),
        None => cargo.args(USER_SPACE),
    };
    cargo.args(&options.filter);
    if !options.args.is_empty() {
        cargo.arg("--").args(&options.args);
    }
    let mut outcome = sh::run(&mut cargo);
    if options.filter.is_none() && options.node.is_none() {
        let on_nodes = behaviour::Files::build(workspace).and_then(|files| {
            nodes.run(workspace, &files, |command| {
                command.envs(&variables);
            })
        });
        for further in [on_nodes, fuzz::briefly(workspace)] {
            if let Err(error) = &further {
                eprintln!("error: {error:#}");
            }
            outcome = outcome.and(further);
        }
    }
    let verdict = if outcome.is_ok() { "passed" } else { "FAILED" };
    println!("\ntests {verdict} in {}", sh::duration(start.elapsed()));
    for line in skips(&skipped)? {
        println!("{line}");
    }
    outcome
}

/// Builds what the tests need, and returns the variables for all of them: the paths of programs that are not beside the
/// tests, and the features that this kernel must support. A program that cannot be built or fetched is reported, and the
/// tests that need it are skipped.
fn build_everything(workspace: &Workspace) -> Result<BTreeMap<&'static str, OsString>> {
    let start = Instant::now();
    // Set-up, the previous release and upstream's programs wait for the network and for single large crates: all are built
    // in parallel with ours.
    let (ours, others, previous, peers) = thread::scope(|scope| {
        let peers = scope.spawn(|| peers::ensure(workspace));
        let others = scope.spawn(|| {
            let others = setup::ensure(Scope::Everything);
            (others, previous::build(workspace))
        });
        let ours = build::tests(workspace);
        let (others, previous) = parallel::result(others);
        let peers = parallel::result(peers);
        (ours, others, previous, peers)
    });
    ours?;
    others?;
    let mut variables = BTreeMap::new();
    if let Some(support) = support(workspace)? {
        variables.insert(KERNEL_VARIABLE, support.into());
    }
    match previous? {
        Ok(program) => {
            variables.insert(PREVIOUS_VARIABLE, program.into());
        }
        Err(reason) => eprintln!("no build of the previous release: {reason}"),
    }
    match image::for_tests(workspace)? {
        Ok(images) => {
            let images = images.into_iter();
            variables.extend(images.map(|(variable, image)| (variable, image.into())));
        }
        Err(reason) => eprintln!("no images: {reason}"),
    }
    match peers {
        Ok(directory) => {
            variables.insert(peers::VARIABLE, directory.into());
        }
        Err(reason) => eprintln!("no peers of the tunnel: {reason:#}"),
    }
    if let Some(packages) = setup::python::find() {
        variables.insert(setup::python::VARIABLE, packages.into());
    }
    println!(
        "built what the tests need in {}",
        sh::duration(start.elapsed())
    );
    Ok(variables)
}

/// The features that this machine's kernel must support.
fn support(workspace: &Workspace) -> Result<Option<String>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read the release of this kernel")?;
    let kernels = Kernels::read(workspace)?;
    let support = kernels.of_release(&vm::numbers(&release));
    support
        .map(|kernel| Ok(serde_json::to_string(&kernel.supports)?))
        .transpose()
}

/// Removes the notes of an earlier run.
fn forget(skipped: &Path) -> Result<()> {
    match fs::remove_dir_all(skipped) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove {} of an earlier run", skipped.display())),
        _ => Ok(()),
    }
}

/// The report on skipped tests. A test that cannot run here writes the reason to `<target>/skipped/<test>.txt`.
fn skips(skipped: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(skipped) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(vec!["no test skipped".to_owned()]);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot list {}", skipped.display()));
        }
    };
    let mut notes: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", skipped.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            notes.push(path);
        }
    }
    if notes.is_empty() {
        return Ok(vec!["no test skipped".to_owned()]);
    }
    notes.sort();
    let mut lines = vec![format!("{} skipped:", notes.len())];
    for note in notes {
        let reason =
            fs::read_to_string(&note).with_context(|| format!("cannot read {}", note.display()))?;
        let test = note.file_stem().unwrap_or_default().to_string_lossy();
        lines.push(format!("  {test}: {}", reason.trim()));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_listed_with_their_reasons() {
        let directory = std::env::temp_dir().join(format!("xtask-skips-{}", std::process::id()));
        forget(&directory).unwrap();
        assert_eq!(skips(&directory).unwrap(), ["no test skipped"]);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("b.txt"), "no br_netfilter\n").unwrap();
        fs::write(directory.join("a.txt"), "no IPv6").unwrap();
        let lines = skips(&directory);
        forget(&directory).unwrap();
        assert_eq!(
            lines.unwrap(),
            ["2 skipped:", "  a: no IPv6", "  b: no br_netfilter"]
        );
    }
}
