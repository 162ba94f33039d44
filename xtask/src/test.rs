// SPDX-License-Identifier: Apache-2.0

//! `test`, `demo`, `soak` and `bench`: what runs the agent on this machine's kernel.
//!
//! Topologies, traffic and assertions live in the crate `tests`; this module builds its programs,
//! tells them where the agent is and sums up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::behaviour;
use crate::build::{self, AGENT};
use crate::fuzz;
use crate::image;
use crate::kernels::Kernels;
use crate::nodes::{self, Nodes};
use crate::peers;
use crate::previous;
use crate::setup::{self, Scope};
use crate::sh;
use crate::vm;
use crate::workspace::Workspace;

/// Tells tests and demo which agent to run.
pub const AGENT_VARIABLE: &str = "PROXY_AGENT_BIN";

/// Tells the tests of upgrades where the agent of the previous release is.
pub const PREVIOUS_VARIABLE: &str = "PROXY_AGENT_PREVIOUS_BIN";

/// Tells the tests what their kernel must support, as JSON.
pub const KERNEL_VARIABLE: &str = "PROXY_AGENT_KERNEL";

/// Tells the tests by how much slower their machine is.
pub const PATIENCE_VARIABLE: &str = "PROXY_AGENT_TEST_PATIENCE";

/// What cargo is told with each of its commands here.
pub const RELEASE: [&str; 2] = ["--release", "--locked"];

/// Tells the tests of the image where it is.
const IMAGE_VARIABLE: &str = "PROXY_AGENT_IMAGE";

/// What cargo builds and tests: everything that runs in user space. Commands that need one program only select all
/// packages too: with another selection the dependencies have other features, and are built again.
pub const USER_SPACE: &[&str] = &[
    "--workspace",
    "--exclude",
    "proxy-ebpf",
    "--exclude",
    "fuzz",
];

/// What is asked for.
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
    setup::ensure(Scope::Everything)?;
    // The agent and the sweeper are programs beside the tests: `cargo test` alone would build the
    // first without its final name and the second not at all.
    build(workspace)?;
    // A run that was killed leaves namespaces and mounts behind.
    sh::run(&mut sh::command(workspace.program("sweep")))?;
    let skipped = workspace.target.join("skipped");
    forget(&skipped)?;

    let start = Instant::now();
    let mut cargo = workspace.cargo("test");
    cargo.args(RELEASE).arg("--no-fail-fast");
    let variables = variables(workspace)?;
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

/// What all tests are told: where the programs under test are, and what this kernel must support. What cannot be had is
/// reported, and the tests that need it are skipped.
fn variables(workspace: &Workspace) -> Result<BTreeMap<&'static str, OsString>> {
    let mut variables = BTreeMap::from([(AGENT_VARIABLE, workspace.program(AGENT).into())]);
    if let Some(support) = support(workspace)? {
        variables.insert(KERNEL_VARIABLE, support.into());
    }
    match previous::build(workspace)? {
        Ok(program) => {
            variables.insert(PREVIOUS_VARIABLE, program.into());
        }
        Err(reason) => eprintln!("no build of the previous release: {reason}"),
    }
    match image::for_tests(workspace)? {
        Ok(image) => {
            variables.insert(IMAGE_VARIABLE, image.into());
        }
        Err(reason) => eprintln!("no image: {reason}"),
    }
    match peers::ensure(workspace) {
        Ok(directory) => {
            variables.insert(peers::VARIABLE, directory.into());
        }
        Err(reason) => eprintln!("no peers of the tunnel: {reason:#}"),
    }
    if let Some(packages) = setup::python::find() {
        variables.insert(setup::python::VARIABLE, packages.into());
    }
    Ok(variables)
}

/// Builds what tests run and people use: the agent, the demo, the programs beside the tests.
///
/// # Errors
/// When it cannot be built.
pub fn build(workspace: &Workspace) -> Result<()> {
    build::agent(workspace)?;
    sh::run(
        workspace
            .cargo("build")
            .args(RELEASE)
            .args(USER_SPACE)
            .args(["--bins", "--examples"]),
    )
}

/// What this machine's kernel must support.
fn support(workspace: &Workspace) -> Result<Option<String>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read the release of this kernel")?;
    let kernels = Kernels::read(workspace)?;
    let support = kernels.of_release(&vm::numbers(&release));
    support
        .map(|kernel| Ok(serde_json::to_string(&kernel.supports)?))
        .transpose()
}

/// Builds the demo and becomes it, so that signals and its exit status are its own.
///
/// # Errors
/// Without root, when something it needs cannot be had, or when it cannot be built or started.
pub fn demo(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    sh::require_root(
        "demo",
        "it makes network namespaces and loads eBPF programs",
    )?;
    if let Some((first, rest)) = args.split_first()
        && first == "tunnel"
    {
        return sh::exec(tunnel_program(workspace, "tunnel-demo")?.args(rest));
    }
    turn_into(workspace, "demo", args)
}

/// Builds the program that writes the tunnel's certificates, and becomes it.
///
/// # Errors
/// When it cannot be built or started.
pub fn certs(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    compile(workspace, &["certs"])?;
    sh::exec(sh::command(workspace.program("certs")).args(args))
}

/// Builds the soak, of the agent or of the tunnel, and becomes it.
///
/// # Errors
/// As [`demo`].
pub fn soak(workspace: &Workspace, minutes: u64, is_tunnel: bool) -> Result<()> {
    sh::require_root(
        "soak",
        "it makes network namespaces and loads eBPF programs",
    )?;
    let args = ["--minutes".into(), minutes.to_string().into()];
    if is_tunnel {
        return sh::exec(tunnel_program(workspace, "tunnel-soak")?.args(args));
    }
    turn_into(workspace, "soak", &args)
}

/// Builds the benchmark and becomes it, at the top of the checkout.
///
/// # Errors
/// As [`demo`].
pub fn bench(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    sh::require_root(
        "bench",
        "it makes network namespaces and loads eBPF programs",
    )?;
    match tunnel_part(args) {
        Some((program, args)) => sh::exec(tunnel_program(workspace, program)?.args(args)),
        None => turn_into(workspace, "bench", args),
    }
}

/// The tunnel's parts of the benchmark, each a program of its own.
const TUNNEL_PARTS: [(&str, &str); 2] =
    [("tunnel", "tunnel-bench"), ("tunnel-scale", "tunnel-scale")];

/// The program and the other arguments, if these ask for one of the tunnel's parts.
fn tunnel_part(args: &[OsString]) -> Option<(&'static str, Vec<OsString>)> {
    TUNNEL_PARTS.iter().find_map(|(part, program)| {
        let is_one = |pair: &[OsString]| pair[0] == "--part" && pair[1] == *part;
        let joined = format!("--part={part}");
        let (at, length) = match args.iter().position(|arg| *arg == *joined) {
            Some(at) => (at, 1),
            None => (args.windows(2).position(is_one)?, 2),
        };
        Some((*program, [&args[..at], &args[at + length..]].concat()))
    })
}

/// The tunnel's programs, which those that try them start.
const TUNNEL_PROGRAMS: [&str; 5] = [
    "konnectivity-server",
    "konnectivity-agent",
    "konnectivity-sidecar",
    "konnectivity-test-client",
    "http-test-server",
];

/// Builds programs as `cargo xtask test` does.
fn compile(workspace: &Workspace, programs: &[&str]) -> Result<()> {
    let mut cargo = workspace.cargo("build");
    cargo.args(RELEASE).args(USER_SPACE);
    for program in programs {
        cargo.args(["--bin", program]);
    }
    sh::run(&mut cargo)
}

/// Builds the tunnel's programs and those that try them; one of the latter, at the top of the checkout.
fn tunnel_program(workspace: &Workspace, name: &str) -> Result<Command> {
    setup::ensure(Scope::Everything)?;
    compile(workspace, &[&TUNNEL_PROGRAMS[..], &[name]].concat())?;
    let mut command = sh::command(workspace.program(name));
    command.current_dir(&workspace.root);
    Ok(command)
}

/// Builds the agent and a program of the crate `tests`, and becomes that.
fn turn_into(workspace: &Workspace, program: &str, args: &[OsString]) -> Result<()> {
    setup::ensure(Scope::Everything)?;
    build::agent(workspace)?;
    compile(workspace, &[program])?;
    sh::exec(
        sh::command(workspace.program(program))
            .args(args)
            .current_dir(&workspace.root)
            .env(AGENT_VARIABLE, workspace.program(AGENT)),
    )
}

/// Removes the notes of an earlier run.
fn forget(skipped: &Path) -> Result<()> {
    match fs::remove_dir_all(skipped) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove {} of an earlier run", skipped.display())),
        _ => Ok(()),
    }
}

/// What to say about skipped tests. A test that cannot run here writes the reason to
/// `<target>/skipped/<test>.txt`.
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
    fn the_tunnels_part_of_the_benchmark_is_recognised() {
        let args = |text: &str| -> Vec<OsString> { text.split(' ').map(Into::into).collect() };
        let part = |text| {
            let (program, rest) = tunnel_part(&args(text))?;
            Some((
                program,
                rest.join(&OsString::from(" ")).into_string().unwrap(),
            ))
        };
        assert_eq!(part("--short --part costs"), None);
        for (text, program, rest) in [
            (
                "--short --part tunnel --peer",
                "tunnel-bench",
                "--short --peer",
            ),
            ("--part=tunnel --short", "tunnel-bench", "--short"),
            ("--part=tunnel-scale --short", "tunnel-scale", "--short"),
            ("--short --part tunnel-scale", "tunnel-scale", "--short"),
        ] {
            assert_eq!(part(text).unwrap(), (program, rest.to_owned()), "{text}");
        }
    }

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
