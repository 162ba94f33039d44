// SPDX-License-Identifier: Apache-2.0

//! `reference`: writes `docs/reference`, by a program that links the programs' own command lines.

use anyhow::Result;

use crate::programs;
use crate::setup::{self, Scope};
use crate::sh;
use crate::workspace::{QUICK, Workspace};

/// The program that writes it.
const PROGRAM: &str = "reference";

/// Makes `docs/reference` again.
///
/// # Errors
/// When the program cannot be built or fails.
pub fn remake(workspace: &Workspace) -> Result<()> {
    // It links the agent, whose build compiles the eBPF programs.
    setup::ensure(Scope::Build)?;
    programs::compile(workspace, QUICK, &[PROGRAM])?;
    sh::run(sh::command(workspace.program(PROGRAM)).current_dir(&workspace.root))
}
