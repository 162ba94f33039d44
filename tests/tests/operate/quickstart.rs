// SPDX-License-Identifier: Apache-2.0

//! Runs the commands of `docs/quickstart.md`: each works, and nothing is left at the end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::manifests::repository;
use tests::{agent, cmd, fences};

/// The heading of the page's clean-up.
const CLEAN_UP: &str = "## Clean up";

/// The directory in which the page's commands run. It looks like the repository after a build, with `deploy/` and the
/// agent under test, and with a cargo that does nothing.
struct Checkout(PathBuf);

impl Checkout {
    fn new() -> Result<Self> {
        let top =
            std::env::temp_dir().join(format!("proxy-agent-quickstart-{}", std::process::id()));
        for directory in ["bin", "target/dist"] {
            fs::create_dir_all(top.join(directory))?;
        }
        symlink(repository().join("deploy"), top.join("deploy"))?;
        symlink(agent::binary()?, top.join("target/dist/proxy-agent"))?;
        symlink("/bin/true", top.join("bin/cargo"))?;
        Ok(Self(top))
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_quick_start_works_as_written() -> Result<()> {
    let page = fs::read_to_string(repository().join("docs/quickstart.md"))?;
    let (before, after) = page
        .split_once(CLEAN_UP)
        .context("the page cleans nothing up")?;
    // As readers would do, the script runs the page's clean-up even after a failed command.
    let script = format!(
        "set -euo pipefail\n\
         clean_up() {{\nset +e\n{}\n}}\n\
         trap clean_up EXIT\n\
         trap 'echo \"failed: $BASH_COMMAND\" >&2; cat $dir/*.log >&2' ERR\n\
         {}\n",
        fences::commands(after).concat(),
        fences::commands(before).concat()
    );
    let checkout = Checkout::new()?;
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        checkout.0.join("bin").display(),
        std::env::var("PATH")?
    );
    let mut bash = Command::new("timeout");
    bash.args(["180", "bash", "-s"]);
    bash.current_dir(&checkout.0).env("PATH", path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PROXY_AGENT_") {
            bash.env_remove(name);
        }
    }
    let output = cmd::output(&mut bash, &script)?;
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{}\n{printed}", output.status);
    ensure!(
        printed.contains("no objects of proxy-agent are left"),
        "{printed}"
    );
    ensure!(printed.contains("ends on the proxy at"), "{printed}");
    Ok(())
}

#[test]
fn every_flag_in_the_guides_is_one_of_the_agents() -> Result<()> {
    let (flags, variables) = tests::manifests::flags_and_variables()?;
    for page in [
        "docs/operations.md",
        "docs/troubleshooting.md",
        "docs/migration.md",
        "docs/with-others.md",
        "deploy/README.md",
    ] {
        let text = fs::read_to_string(repository().join(page))?;
        let mut found = 0;
        for flag in tests::manifests::flags_in(&text) {
            // This is a flag of kubectl.
            if flag == "--previous" {
                continue;
            }
            let is_known = flags.contains(&flag);
            ensure!(is_known, "{page}: {flag} is no flag of the agent");
            found += 1;
        }
        for (at, prefix) in text.match_indices("PROXY_AGENT_") {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c == '_'));
            let name = &text[at..at + prefix.len() + end.unwrap_or(rest.len())];
            let is_known = name == prefix || variables.contains(name);
            ensure!(is_known, "{page}: the agent does not read {name}");
            found += 1;
        }
        ensure!(found > 0, "{page} names neither flag nor variable");
    }
    Ok(())
}
