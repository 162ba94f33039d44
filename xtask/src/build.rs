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

/// A program that is shipped.
pub struct Shipped {
    /// Its package.
    pub package: &'static str,
    /// Its name.
    pub program: &'static str,
    /// The profile in Cargo.toml that it is built by, and the directory of the target directory.
    pub profile: &'static str,
}

/// All that is shipped.
pub const SHIPPED: [Shipped; 2] = [
    Shipped {
        package: AGENT,
        program: AGENT,
        profile: "dist",
    },
    Shipped {
        package: "proxy-webhook",
        program: "apiserver-proxy-pod-webhook",
        profile: "release",
    },
];

/// Builds agent and webhook, and says where they are and how large.
///
/// # Errors
/// When something the build needs is missing, or the build fails.
pub fn build(workspace: &Workspace) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Scope::Build)?;
    for shipped in &SHIPPED {
        shipped.compile(workspace)?;
    }
    for Shipped { program: name, .. } in SHIPPED {
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
    agent(workspace)?;
    sh::exec(sh::command(workspace.program(AGENT)).args(args))
}

/// Builds the agent alone.
///
/// # Errors
/// When the build fails.
pub fn agent(workspace: &Workspace) -> Result<()> {
    let mut agents = SHIPPED.iter().filter(|shipped| shipped.program == AGENT);
    agents.try_for_each(|agent| agent.compile(workspace))
}

impl Shipped {
    /// What tells cargo to build it.
    pub fn arguments(&self) -> [&'static str; 6] {
        let Self {
            package,
            program,
            profile,
        } = self;
        ["--profile", profile, "--package", package, "--bin", program]
    }

    fn compile(&self, workspace: &Workspace) -> Result<()> {
        sh::run(
            workspace
                .cargo("build")
                .arg("--locked")
                .args(self.arguments()),
        )
    }
}
