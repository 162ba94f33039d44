// SPDX-License-Identifier: Apache-2.0

//! `fuzz`: builds the fuzzer with all targets and runs it, for as long as wanted or, in the tests,
//! briefly. What the targets are is the package `fuzz`'s business (`tests/fuzz`).
//!
//! Two directories hold inputs: `tests/fuzz/cases/TARGET` those that are kept in the repository, seeds and former
//! findings, and `target/fuzz/TARGET` inputs that a run has found.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::parallel;
use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::{QUICK, Workspace, by};

/// The package and its program.
const FUZZER: &str = "fuzz";

/// With this variable the agent's build script leaves out the eBPF programs.
pub const WITHOUT_PROGRAMS: (&str, &str) = ("PROXY_AGENT_WITHOUT_PROGRAMS", "1");

/// Longest input in bytes: more holds nothing new and takes longer.
const LONGEST: u32 = 1024;

/// How many inputs each target gets in the tests.
const BRIEF: u64 = 20_000;

/// Runs one target, or all of them, or lists them.
///
/// # Errors
/// When the fuzzer cannot be built, there is no such target, or an input shows a fault.
pub fn fuzz(
    workspace: &Workspace,
    target: Option<&str>,
    runs: u64,
    args: &[OsString],
) -> Result<()> {
    build(workspace)?;
    let targets = targets(workspace)?;
    let Some(wanted) = target else {
        println!(
            "{}\n\n`all` runs every one of these, one after the other",
            targets.trim_end()
        );
        return Ok(());
    };
    let names = names(&targets).filter(|name| wanted == "all" || *name == wanted);
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        bail!("there is no target `{wanted}`; `cargo xtask fuzz` lists them");
    }
    // Single inputs are run once each, and nothing else is.
    let is_option = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
    let is_replay = !args.iter().all(is_option);
    for name in names {
        let found = directory(workspace, name);
        let corpus = found.join("corpus");
        make(&corpus)?;
        let mut fuzzer = fuzzer(workspace, name, runs);
        fuzzer.arg("-print_final_stats=1").args(args);
        if !is_replay {
            fuzzer.arg(corpus).args(kept(workspace, name));
        }
        sh::run(&mut fuzzer).with_context(|| {
            format!(
                "target {name} failed on an input below {}; it belongs into {} when it is dealt with",
                workspace.relative(&found).display(),
                workspace.relative(&cases(workspace, name)).display()
            )
        })?;
    }
    Ok(())
}

/// Runs every target on the kept inputs, and on some thousand inputs made from that, the same each time.
///
/// # Errors
/// When the fuzzer cannot be built, or an input shows a fault; the error then holds the fuzzer's output.
pub fn briefly(workspace: &Workspace) -> Result<()> {
    build(workspace)?;
    let start = Instant::now();
    let targets = targets(workspace)?;
    let names: Vec<&str> = names(&targets).collect();
    // A fuzzer takes one processor.
    let outcomes = parallel::each(&names, parallel::processors(), |name| {
        one_briefly(workspace, name)
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    println!(
        "fuzz: {} targets, {BRIEF} inputs each, in {}",
        names.len(),
        sh::duration(start.elapsed())
    );
    Ok(())
}

fn one_briefly(workspace: &Workspace, target: &str) -> Result<()> {
    // It would go on with inputs that earlier runs have found.
    let corpus = directory(workspace, target).join("brief");
    match fs::remove_dir_all(&corpus) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", corpus.display()));
        }
        _ => make(&corpus)?,
    }
    let mut fuzzer = fuzzer(workspace, target, BRIEF);
    fuzzer.args(["-seed=1", "-verbosity=0"]).arg(corpus);
    sh::read(fuzzer.args(kept(workspace, target))).map(drop)
}

/// Builds it in the directory of everything else. Only our own crates are instrumented, and the packages selected are those
/// of `cargo xtask test`, so all others are there already.
fn build(workspace: &Workspace) -> Result<()> {
    setup::ensure(Scope::Programs)?;
    sh::run(
        workspace
            .cargo("build")
            .args(by(QUICK))
            .args([
                "--workspace",
                "--exclude",
                "proxy-ebpf",
                "--features",
                "fuzz/libfuzzer",
                "--bin",
                FUZZER,
            ])
            .env(WITHOUT_PROGRAMS.0, WITHOUT_PROGRAMS.1)
            .env(
                "RUSTC_WORKSPACE_WRAPPER",
                package(workspace).join("instrument.sh"),
            ),
    )
}

/// A line for each target that begins with its name.
fn targets(workspace: &Workspace) -> Result<String> {
    sh::read(&mut sh::command(workspace.program(FUZZER)))
}

fn names(targets: &str) -> impl Iterator<Item = &str> {
    targets.lines().filter_map(|line| line.split(' ').next())
}

/// The fuzzer for a target, without directories.
fn fuzzer(workspace: &Workspace, target: &str, runs: u64) -> Command {
    let mut prefix = directory(workspace, target).into_os_string();
    prefix.push("/");
    let mut artifacts = OsString::from("-artifact_prefix=");
    artifacts.push(prefix);
    let mut command = sh::command(workspace.program(FUZZER));
    command
        .env("FUZZ_TARGET", target)
        .arg(format!("-runs={runs}"))
        .arg(format!("-max_len={LONGEST}"))
        .args(["-timeout=60", "-rss_limit_mb=1024"])
        .arg(artifacts);
    command
}

fn package(workspace: &Workspace) -> PathBuf {
    workspace.root.join("tests/fuzz")
}

/// The files that are kept of a target.
fn cases(workspace: &Workspace, target: &str) -> PathBuf {
    package(workspace).join("cases").join(target)
}

fn kept(workspace: &Workspace, target: &str) -> Option<PathBuf> {
    Some(cases(workspace, target)).filter(|cases| cases.is_dir())
}

/// The directory for the findings of a target's run.
fn directory(workspace: &Workspace, target: &str) -> PathBuf {
    workspace.target.join("fuzz").join(target)
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}
