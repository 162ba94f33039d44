// SPDX-License-Identifier: Apache-2.0

//! `tests/kernels.toml`: the features that each kernel must support, and the tables that are
//! generated from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workspace::Workspace;

/// The path of the file.
pub const FILE: &str = "tests/kernels.toml";

/// The documents with generated tables, and the function that generates each table.
const TABLES: [(&str, &str, Make); 3] = [
    ("docs/agent.md", "kernels", Kernels::table),
    ("docs/kernel-support.md", "kernels", Kernels::table),
    ("docs/kernel-support.md", "fallbacks", Kernels::fallbacks),
];

/// A function that generates a table.
type Make = fn(&Kernels) -> String;

/// The command that generates the tables again.
pub const REMAKE: &str = "cargo xtask kernels";

/// The contents of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernels {
    /// The maximum number of instructions that the verifier may process for one program, on any
    /// kernel.
    pub verifier_limit: u32,
    /// The test files that no guest runs, with the reason.
    #[serde(default)]
    pub left_out: BTreeMap<String, String>,
    /// The tests that are skipped in every guest, by the name in their record, with the reason.
    #[serde(default)]
    pub skips: BTreeMap<String, String>,
    /// The tests that CI runs on each kernel.
    pub ci: Vec<Selection>,
    /// The kernels, oldest first.
    pub kernel: Vec<Kernel>,
}

/// Tests of one file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// The file, without directory and ending.
    pub file: String,
    /// The names of the tests; empty for all tests.
    #[serde(default)]
    pub tests: Vec<String>,
    /// The reason for this selection.
    pub why: String,
}

/// A kernel of the matrix.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// The prefix of its version, or `newest`.
    pub name: String,
    /// The files of `ci` that `vm --ci` does not run on this kernel.
    #[serde(default)]
    pub ci_leaves_out: Vec<String>,
    /// The features that it must support.
    pub supports: Support,
    /// The tests that are skipped on this kernel, by the name in their record, with the reason.
    #[serde(default)]
    pub skips: BTreeMap<String, String>,
    /// The same kernel with features removed.
    #[serde(default)]
    pub without: Vec<Without>,
}

/// A kernel with features removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Without {
    /// The missing features, in words.
    pub what: String,
    /// The words on its command line that remove the features.
    pub append: String,
    /// The features that it must still support.
    pub supports: Support,
}

/// The exact features of a kernel. The tests receive them as JSON.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Support {
    /// The backend that `auto` selects.
    pub backend: String,
    /// The method that attaches programs to links, if there is one.
    #[serde(default)]
    pub tc: Option<String>,
    /// Whether ClusterIPs are translated.
    pub translation: bool,
    /// Whether a process on the node sees the ClusterIP as its peer.
    pub getpeername: bool,
    /// The method that guards an uplink with `--guard-mode=tc`, and then with `--guard-mode=xdp`.
    pub guards: [String; 2],
}

impl Kernels {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns an error if the file is missing or malformed.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        workspace.read_toml(FILE)
    }

    /// Returns the entry for a kernel of this release: the newest one of the file that is not newer
    /// than the release.
    pub fn of_release(&self, release: &[u32]) -> Option<&Kernel> {
        let not_newer =
            |kernel: &&Kernel| version(&kernel.name).is_some_and(|own| *own <= *release);
        self.kernel.iter().rfind(not_newer)
    }

    /// Returns the table of the features of each kernel.
    fn table(&self) -> String {
        let mut text = String::from(
            "| Linux | `--backend=auto` takes | on links by | translates | process on the node sees as its peer | guards, and with `--guard-mode=xdp` |\n\
             |---|---|---|---|---|---|\n",
        );
        for kernel in &self.kernel {
            let Support {
                backend,
                tc,
                translation,
                getpeername,
                guards: [guard, guard_by_xdp],
            } = &kernel.supports;
            let name = match kernel.name.as_str() {
                "newest" => "newest in Debian",
                name => name,
            };
            let tc = tc.as_deref().unwrap_or("–");
            let translates = if *translation { "yes" } else { "no" };
            let peer = match (*translation, *getpeername) {
                (true, true) => "the ClusterIP",
                (true, false) => "the VIP",
                (false, _) => "–",
            };
            let _ = writeln!(
                text,
                "| {name} | `{backend}` | {tc} | {translates} | {peer} | {guard}; {guard_by_xdp} |"
            );
        }
        text
    }

    /// Returns the table of the backends that `auto` selects if features are missing.
    fn fallbacks(&self) -> String {
        let mut text = String::from(
            "| Linux | without | command line | `--backend=auto` takes | translates |\n|---|---|---|---|---|\n",
        );
        for kernel in &self.kernel {
            for without in &kernel.without {
                let translates = if without.supports.translation {
                    "yes"
                } else {
                    "no"
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | `{}` | `{}` | {translates} |",
                    kernel.name, without.what, without.append, without.supports.backend
                );
            }
        }
        text
    }
}

/// Returns the numbers of a kernel's name, or `None` for `newest`.
fn version(name: &str) -> Option<Vec<u32>> {
    name.split('.').map(|part| part.parse().ok()).collect()
}

/// Generates the tables again.
///
/// # Errors
/// Returns an error if a document cannot be read or written, or has no marks for its table.
pub fn remake(workspace: &Workspace) -> Result<()> {
    let kernels = Kernels::read(workspace)?;
    for (document, table, make) in TABLES {
        replace(workspace, document, table, &make(&kernels))?;
    }
    Ok(())
}

/// Returns the tables that differ from the file, as document and name.
///
/// # Errors
/// Returns an error under the same conditions as [`remake`].
pub fn stale(workspace: &Workspace) -> Result<Vec<(&'static str, &'static str)>> {
    let kernels = Kernels::read(workspace)?;
    let mut stale = Vec::new();
    for (document, table, make) in TABLES {
        let text = read(&workspace.root.join(document))?;
        if exchanged(&text, table, &make(&kernels)).as_deref() != Some(text.as_str()) {
            stale.push((document, table));
        }
    }
    Ok(stale)
}

/// Replaces a table in a document, and reports a change.
///
/// # Errors
/// Returns an error under the same conditions as [`remake`].
pub fn replace(workspace: &Workspace, document: &str, table: &str, rows: &str) -> Result<()> {
    let path = workspace.root.join(document);
    let text = read(&path)?;
    let Some(new) = exchanged(&text, table, rows) else {
        bail!(
            "{document} has no place for the table: {} and {}",
            begin(table),
            end(table)
        );
    };
    if new != text {
        fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{document}: the table of {table} is new");
    }
    Ok(())
}

/// Returns the text with another table between its marks, or `None` if there are no marks.
fn exchanged(text: &str, table: &str, rows: &str) -> Option<String> {
    let (before, rest) = text.split_once(&begin(table))?;
    let (_, after) = rest.split_once(&end(table))?;
    Some(format!(
        "{before}{}\n\n{rows}\n{}{after}",
        begin(table),
        end(table)
    ))
}

fn begin(table: &str) -> String {
    format!("<!-- {table}: made by `{REMAKE}` -->")
}

fn end(table: &str) -> String {
    format!("<!-- end of {table} -->")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        verifier-limit = 1
        ci = []
        [[kernel]]
        name = "5.10"
        supports = { backend = "ebpf", tc = "clsact", translation = true, getpeername = true, guards = ["tc", "xdp"] }
        [[kernel.without]]
        what = "xt_bpf"
        append = "module_blacklist=xt_bpf"
        supports = { backend = "nftables", translation = false, getpeername = false, guards = ["tc", "xdp"] }
        [[kernel]]
        name = "6.12"
        supports = { backend = "ebpf", tc = "tcx", translation = true, getpeername = true, guards = ["tc", "xdp"] }
        [[kernel]]
        name = "newest"
        supports = { backend = "ebpf", tc = "tcx", translation = true, getpeername = true, guards = ["tc", "xdp"] }
    "#;

    #[test]
    fn a_release_must_support_what_older_ones_do() {
        let kernels: Kernels = toml::from_str(TEXT).unwrap();
        let name = |release: &[u32]| {
            kernels
                .of_release(release)
                .map(|kernel| kernel.name.as_str())
        };
        assert_eq!(name(&[5, 4, 100]), None);
        assert_eq!(name(&[5, 10]), Some("5.10"));
        assert_eq!(name(&[6, 1, 9]), Some("5.10"));
        assert_eq!(name(&[7, 0, 0]), Some("6.12"));
    }

    #[test]
    fn tables_have_a_row_for_each_kernel() {
        let kernels: Kernels = toml::from_str(TEXT).unwrap();
        let table = kernels.table();
        assert!(table.contains("\n| 6.12 | `ebpf` | tcx | "), "{table}");
        assert_eq!(table.lines().count(), 5, "{table}");
        let fallbacks = kernels.fallbacks();
        let row = "| 5.10 | xt_bpf | `module_blacklist=xt_bpf` | `nftables` | no |";
        assert!(fallbacks.contains(row), "{fallbacks}");
    }

    #[test]
    fn a_table_is_put_between_its_marks() {
        let text = format!("a\n\n{}\n\nold\n{}\n\nb\n", begin("x"), end("x"));
        let new = exchanged(&text, "x", "new\n").unwrap();
        assert_eq!(new, text.replace("old", "new\n"));
        assert_eq!(exchanged(&new, "x", "new\n").unwrap(), new);
        assert_eq!(exchanged(&text, "y", "new\n"), None);
    }
}
