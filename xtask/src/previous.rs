// SPDX-License-Identifier: Apache-2.0

//! The agent of the previous release, for the tests of upgrades. It is built once from its commit, in a git worktree
//! below the target directory.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::sh;
use crate::workspace::{AGENT, Workspace};

/// The commit of the previous release, which is the first one with the present data plane. The release before it
/// rewrote packets, and its connections to a Service do not survive a change of release.
const COMMIT: &str = "201038633ac425f42f3278f102e5f2f8ce75c41e";

/// Builds the agent unless an earlier run has built it. Returns its path, or the reason if its commit is not available.
///
/// # Errors
/// Returns an error if git or the build fails.
pub fn build(workspace: &Workspace) -> Result<Result<PathBuf, String>> {
    let directory = workspace.target.join("previous");
    let program = directory.join(format!("{AGENT}-{}", &COMMIT[..12]));
    if sh::is_executable(&program) {
        return Ok(Ok(program));
    }
    let object = format!("{COMMIT}^{{commit}}");
    if let Err(error) = sh::read(git(workspace).args(["cat-file", "-e", &object])) {
        return Ok(Err(format!(
            "its commit is not in this clone (`git fetch --unshallow`): {error}"
        )));
    }
    let tree = directory.join("tree");
    if !tree.exists() {
        // git still lists a worktree that was removed by hand.
        sh::run(git(workspace).args(["worktree", "prune"]))?;
        sh::run(
            git(workspace)
                .args(["worktree", "add", "--detach"])
                .arg(&tree)
                .arg(COMMIT),
        )?;
    }
    // The target directory is separate: in a shared one, cargo would use the eBPF programs of one checkout for the
    // other, because the files have the same names and are older than the last build.
    let target = directory.join("target");
    sh::run(
        workspace
            .cargo("build")
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", &target)
            .args(["--release", "--locked", "--package", AGENT])
            // Its speed does not matter. The setting is not an environment variable, which would also affect the build
            // of the eBPF programs.
            .args(["--config", "profile.release.opt-level=0"]),
    )?;
    let built = target.join("release").join(AGENT);
    fs::copy(&built, &program)
        .with_context(|| format!("cannot copy {} to {}", built.display(), program.display()))?;
    fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    // Only the program is kept.
    sh::run(
        git(workspace)
            .args(["worktree", "remove", "--force"])
            .arg(&tree),
    )?;
    Ok(Ok(program))
}

fn git(workspace: &Workspace) -> std::process::Command {
    let mut command = sh::command("git");
    command.current_dir(&workspace.root);
    command
}
