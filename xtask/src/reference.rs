// SPDX-License-Identifier: Apache-2.0

//! `reference`: writes `docs/reference` with a program that links the programs' own command lines.

use anyhow::Result;

use crate::programs;
use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::{QUICK, Workspace};

/// The name of the program that writes it.
const PROGRAM: &str = "reference";

/// Generates `docs/reference` again.
///
/// # Errors
/// Returns an error if the program cannot be built or fails.
pub fn remake(workspace: &Workspace) -> Result<()> {
    // The program links the agent, whose build compiles the eBPF programs.
    setup::ensure(Scope::Build)?;
    programs::compile(workspace, QUICK, &[PROGRAM])?;
    sh::run(sh::command(workspace.program(PROGRAM)).current_dir(&workspace.root))
}
