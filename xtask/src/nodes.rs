// SPDX-License-Identifier: Apache-2.0

//! `tests/nodes.toml`: settings of nodes, and the behaviour tests that `cargo xtask test` runs on each of them.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::behaviour::Files;
use crate::kernels::Selection;
use crate::sh;
use crate::workspace::Workspace;

/// The variable with the setting's name for the tests.
pub const VARIABLE: &str = "PROXY_AGENT_TEST_NODE";

const FILE: &str = "tests/nodes.toml";

/// The contents of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    node: Vec<Node>,
    /// The reduced set of tests.
    ci: Vec<Selection>,
}

/// A setting of a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    what: String,
}

impl Nodes {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error if the file is missing or malformed.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        workspace.read_toml(FILE)
    }

    /// Checks that there is a setting with this name.
    ///
    /// # Errors
    /// Returns an error that lists the settings if there is none with this name.
    pub fn ensure_known(&self, name: &str) -> Result<()> {
        if self.node.iter().any(|node| node.name == name) {
            return Ok(());
        }
        let names: Vec<&str> = self.node.iter().map(|node| node.name.as_str()).collect();
        bail!("no node {name:?} in {FILE}; there are {}", names.join(", "))
    }

    /// Runs the reduced set on each node. `prepare` sets on each test program the options that all of them need.
    ///
    /// # Errors
    /// Returns an error if a test does not exist or fails; the other tests run nevertheless.
    pub fn run(
        &self,
        workspace: &Workspace,
        files: &Files,
        prepare: impl Fn(&mut Command),
    ) -> Result<()> {
        let calls = files.calls(FILE, &self.ci)?;
        let mut failed = Vec::new();
        for node in &self.node {
            println!("\nnode {}: {}", node.name, node.what);
            let start = Instant::now();
            for call in &calls {
                let mut command = sh::command(&call.program);
                prepare(&mut command);
                command
                    .args(&call.arguments)
                    .env(VARIABLE, &node.name)
                    // cargo uses the same directory.
                    .current_dir(workspace.root.join("tests"));
                if let Err(error) = sh::run(&mut command) {
                    eprintln!("error: {error:#}");
                    failed.push(format!("{} on {}", call.files.join(" or "), node.name));
                }
            }
            println!("node {}: {}", node.name, sh::duration(start.elapsed()));
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_understood() {
        let workspace = Workspace::locate().unwrap();
        let nodes = Nodes::read(&workspace).unwrap();
        nodes.ensure_known("strict-conntrack").unwrap();
        let error = nodes.ensure_known("strict").unwrap_err().to_string();
        assert!(error.contains("there are strict-conntrack, "), "{error}");
    }
}
