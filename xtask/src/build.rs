// SPDX-License-Identifier: Apache-2.0

//! `build` and `run`: build the agent, the webhook and the tunnel with optimisation. The agent's build script compiles
//! the eBPF programs into the agent.

use std::ffi::OsString;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::{AGENT, QUICK, SHIPPED, Shipped, USER_SPACE, Workspace, by};

/// Builds agent, webhook and tunnel, or only the program with this name, and reports the path and the size of each.
///
/// # Errors
/// Returns an error if a tool is missing, or if the build fails.
pub fn build(workspace: &Workspace, only: Option<&str>) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Scope::Build)?;
    let wanted = || {
        SHIPPED
            .iter()
            .filter(|shipped| only.is_none_or(|only| only == shipped.program))
    };
    for shipped in wanted() {
        shipped.compile(workspace)?;
    }
    for shipped in wanted() {
        let program = workspace.shipped(shipped);
        let meta = fs::metadata(&program).with_context(|| {
            format!(
                "cargo built {}, but {} cannot be read",
                shipped.program,
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

/// Builds the agent and replaces this process with it.
///
/// # Errors
/// Returns an error if [`build`] does, or if the agent cannot be started.
pub fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::ensure(Scope::Build)?;
    let agent = Shipped::named(AGENT)?;
    agent.compile(workspace)?;
    sh::exec(sh::command(workspace.shipped(agent)).args(args))
}

impl Shipped {
    /// Returns the program with this name.
    ///
    /// # Errors
    /// Returns an error if no shipped program has this name.
    pub fn named(program: &str) -> Result<&'static Self> {
        let mut all = SHIPPED.iter();
        all.find(|shipped| shipped.program == program)
            .with_context(|| format!("{program} is not shipped"))
    }

    /// Returns the arguments with which cargo builds the program in this profile.
    pub fn arguments(&self, profile: &'static str) -> [&'static str; 6] {
        let Self {
            package, program, ..
        } = self;
        ["--profile", profile, "--package", package, "--bin", program]
    }

    /// Builds the program as it is shipped.
    ///
    /// # Errors
    /// Returns an error if the build fails.
    pub fn compile(&self, workspace: &Workspace) -> Result<()> {
        sh::run(
            workspace
                .cargo("build")
                .arg("--locked")
                .args(self.arguments(self.profile)),
        )
    }
}

/// Builds the tests, and the programs that they run, in the tests' profile. `cargo test` alone would omit programs of
/// packages without tests of their own.
///
/// # Errors
/// Returns an error if one of them cannot be built.
pub fn tests(workspace: &Workspace) -> Result<()> {
    targets(workspace, &["--bins", "--examples", "--tests"])
}

/// Builds the programs that tests and people run, in the tests' profile.
///
/// # Errors
/// Returns an error if one of them cannot be built.
pub fn beside_tests(workspace: &Workspace) -> Result<()> {
    targets(workspace, &["--bins", "--examples"])
}

fn targets(workspace: &Workspace, kinds: &[&str]) -> Result<()> {
    let mut cargo = workspace.cargo("build");
    sh::run(cargo.args(by(QUICK)).args(USER_SPACE).args(kinds))
}
