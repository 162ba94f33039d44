// SPDX-License-Identifier: Apache-2.0

//! `build` and `run`: the agent, optimised. Its build script compiles the eBPF programs into it.

use std::ffi::OsString;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::Workspace;

/// The agent's package and program.
pub const AGENT: &str = "proxy-agent";

/// Builds the agent and says where it is and how large.
///
/// # Errors
/// When something the build needs is missing, or the build fails.
pub fn build(workspace: &Workspace) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Scope::Build)?;
    compile(workspace)?;
    let agent = workspace.program(AGENT);
    let meta = fs::metadata(&agent).with_context(|| {
        format!(
            "cargo built {AGENT}, but {} cannot be read",
            agent.display()
        )
    })?;
    println!(
        "{}: {}, built in {}",
        workspace.relative(&agent).display(),
        sh::size(meta.len()),
        sh::duration(start.elapsed())
    );
    Ok(())
}

/// Builds the agent and becomes it.
///
/// # Errors
/// As [`build`], and when the agent cannot be started.
pub fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::ensure(Scope::Build)?;
    compile(workspace)?;
    sh::exec(sh::command(workspace.program(AGENT)).args(args))
}

fn compile(workspace: &Workspace) -> Result<()> {
    sh::run(
        workspace
            .cargo("build")
            .args(["--release", "--locked", "--package", AGENT]),
    )
}
