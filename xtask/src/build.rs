// SPDX-License-Identifier: Apache-2.0

//! `build` and `run`: the agent, the webhook and the tunnel, optimised. The agent's build script compiles the eBPF
//! programs into it.

use std::ffi::OsString;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::{AGENT, QUICK, SHIPPED, Shipped, USER_SPACE, Workspace, by};

/// Builds agent, webhook and tunnel, or only the program of this name, and reports where they are and how large.
///
/// # Errors
/// When something the build needs is missing, or the build fails.
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

/// Builds the agent and becomes it.
///
/// # Errors
/// As [`build`], and when the agent cannot be started.
pub fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::ensure(Scope::Build)?;
    let agent = Shipped::named(AGENT)?;
    agent.compile(workspace)?;
    sh::exec(sh::command(workspace.shipped(agent)).args(args))
}

impl Shipped {
    /// The one of this name.
    ///
    /// # Errors
    /// When no program of this name is shipped.
    pub fn named(program: &str) -> Result<&'static Self> {
        let mut all = SHIPPED.iter();
        all.find(|shipped| shipped.program == program)
            .with_context(|| format!("{program} is not shipped"))
    }

    /// The arguments with which cargo builds it by a profile.
    pub fn arguments(&self, profile: &'static str) -> [&'static str; 6] {
        let Self {
            package, program, ..
        } = self;
        ["--profile", profile, "--package", package, "--bin", program]
    }

    /// Builds it as it is shipped.
    ///
    /// # Errors
    /// When the build fails.
    pub fn compile(&self, workspace: &Workspace) -> Result<()> {
        sh::run(
            workspace
                .cargo("build")
                .arg("--locked")
                .args(self.arguments(self.profile)),
        )
    }
}

/// Builds the tests and the programs that they run, by their profile. `cargo test` alone would leave out programs of
/// packages without tests of their own.
///
/// # Errors
/// When one cannot be built.
pub fn tests(workspace: &Workspace) -> Result<()> {
    targets(workspace, &["--bins", "--examples", "--tests"])
}

/// Builds the programs that tests and people run, by the tests' profile.
///
/// # Errors
/// When one cannot be built.
pub fn beside_tests(workspace: &Workspace) -> Result<()> {
    targets(workspace, &["--bins", "--examples"])
}

fn targets(workspace: &Workspace, kinds: &[&str]) -> Result<()> {
    let mut cargo = workspace.cargo("build");
    sh::run(cargo.args(by(QUICK)).args(USER_SPACE).args(kinds))
}
