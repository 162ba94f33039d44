// SPDX-License-Identifier: Apache-2.0

//! `build` and `run`: the agent and the webhook, optimised. The agent's build script compiles the eBPF
//! programs into it.

use std::ffi::OsString;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::Workspace;

/// The agent's package and program.
pub const AGENT: &str = "proxy-agent";

/// The packages that are shipped, each with its program.
pub const SHIPPED: [(&str, &str); 2] = [
    (AGENT, AGENT),
    ("proxy-webhook", "apiserver-proxy-pod-webhook"),
];

/// Builds agent and webhook, and says where they are and how large.
///
/// # Errors
/// When something the build needs is missing, or the build fails.
pub fn build(workspace: &Workspace) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Scope::Build)?;
    compile(workspace, &SHIPPED.map(|(package, _)| package))?;
    for (_, name) in SHIPPED {
        let program = workspace.program(name);
        let meta = fs::metadata(&program).with_context(|| {
            format!(
                "cargo built {name}, but {} cannot be read",
                program.display()
            )
        })?;
        println!(
            "{}: {}",
            workspace.relative(&program).display(),
            sh::size(meta.len())
        );
    }
    println!("built in {}", sh::duration(start.elapsed()));
    Ok(())
}

/// Builds the agent and becomes it.
///
/// # Errors
/// As [`build`], and when the agent cannot be started.
pub fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::ensure(Scope::Build)?;
    compile(workspace, &[AGENT])?;
    sh::exec(sh::command(workspace.program(AGENT)).args(args))
}

fn compile(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let packages = packages.iter().flat_map(|package| ["--package", *package]);
    sh::run(
        workspace
            .cargo("build")
            .args(["--release", "--locked"])
            .args(packages),
    )
}
