// SPDX-License-Identifier: Apache-2.0

//! Checks the imports of each crate's modules: there must be no circle, and no import against the
//! layers in [`layers`].
//!
//! [`source`] parses the files of a crate. It uses `syn`, because a path may span lines, may be in
//! a `use` with braces or in the arguments of a macro, and a text search would have to handle all
//! of these. [`graph`] resolves paths to modules and finds circles. Tests, the packages that only
//! tests need, and fuzz targets are not checked: they may import whatever they test.

mod graph;
mod layers;
mod source;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use self::graph::Graph;
use self::source::Tree;
use super::Finding;
use crate::sh;
use crate::workspace::Workspace;

/// The directory of the packages that only tests need.
const TESTS: &str = "tests";

/// Checks the libraries and programs of all packages, and the dependencies between packages.
///
/// # Errors
/// Returns an error if cargo cannot list the packages, or if a file cannot be read or parsed.
pub fn findings(workspace: &Workspace) -> Result<Vec<Finding>> {
    let json = sh::read(workspace.cargo("metadata").args([
        "--locked",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&json).context("cargo metadata printed something else than JSON")?;
    let packages = list(&metadata["packages"]);
    let mut findings = layers::packages(packages, &workspace.root);
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        if workspace.relative(manifest).starts_with(TESTS) {
            continue;
        }
        for target in list(&package["targets"]) {
            let is_kind = |wanted: &str| list(&target["kind"]).iter().any(|kind| kind == wanted);
            let root = target["src_path"].as_str().map(Path::new);
            let (true, Some(root)) = (is_kind("lib") || is_kind("bin"), root) else {
                continue;
            };
            let root = workspace.relative(root).to_owned();
            let read = |file: &Path| fs::read_to_string(workspace.root.join(file)).ok();
            let tree = Tree::parse(&root, &read)
                .with_context(|| format!("cannot read the modules of {name}"))?;
            let graph = Graph::new(&tree);
            findings.extend(graph.circles());
            if is_kind("lib") {
                findings.extend(layers::modules(name, &graph));
            }
        }
    }
    Ok(findings)
}

fn list(value: &serde_json::Value) -> &[serde_json::Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
