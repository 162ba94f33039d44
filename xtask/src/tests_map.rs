// SPDX-License-Identifier: Apache-2.0

//! `tests/README.md`: which file tests which behaviour, made from the first words of the files themselves.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// The map.
pub const FILE: &str = "tests/README.md";

/// The command that makes it again.
pub const REMAKE: &str = "cargo xtask tidy --fix";

/// Where programs of tests lie: as a file, or as a directory with `main.rs`.
const PLACES: [&str; 5] = [
    "tests/tests",
    "tests/webhook/tests",
    "tests/tunnel/tests",
    "tests/docs/tests",
    "proxy-tunnel/tests",
];

const HEAD: &str = "# The tests

`cargo xtask test` runs all of them, `cargo xtask test NAME` those whose names contain NAME. Behaviour tests make network
namespaces of their own, run the agent or the tunnel's programs there, and look from outside: at what connections get, what
the kernel has and what is reported. What they share is the library in `tests/src`. Unit tests stand beside the code, fuzz
targets in `tests/fuzz` ([docs/fuzzing.md](../docs/fuzzing.md)).

Environment: `PROXY_AGENT_TEST_LOAD=full` makes the tests under load as large as promised, which takes many minutes;
`PROXY_AGENT_TEST_PATIENCE=N` is for machines that are N times slower. `tests/nodes.toml` has settings of nodes for
`--node NAME`, `tests/kernels.toml` what `cargo xtask vm` expects of each kernel.

The tables are made from the first words of each file: `cargo xtask tidy --fix`.
";

/// Whether the map is as the files have it.
///
/// # Errors
/// When a file of tests cannot be read or says nothing of itself.
pub fn is_stale(workspace: &Workspace) -> Result<bool> {
    let now = fs::read_to_string(workspace.root.join(FILE)).unwrap_or_default();
    Ok(now != made(&workspace.root)?)
}

/// Makes the map again.
///
/// # Errors
/// As [`is_stale`], and when it cannot be written.
pub fn remake(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join(FILE);
    fs::write(&path, made(&workspace.root)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn made(root: &Path) -> Result<String> {
    let mut text = HEAD.to_owned();
    for place in PLACES {
        let mut single = Vec::new();
        for path in entries(&root.join(place))? {
            let main = path.join("main.rs");
            if main.is_file() {
                let name = path.strip_prefix(root)?.display().to_string();
                let _ = write!(text, "\n## {name}\n\n{}\n", first_words(&main)?);
                table(&mut text, root, &below(&path, &main)?)?;
            } else if is_source(&path) {
                single.push(path);
            }
        }
        if !single.is_empty() {
            let _ = write!(text, "\n## {place}\n");
            table(&mut text, root, &single)?;
        }
    }
    Ok(text)
}

/// The sources below a directory but its `main.rs`.
fn below(directory: &Path, main: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for path in entries(directory)? {
        if path.is_dir() {
            sources.extend(below(&path, main)?);
        } else if is_source(&path) && path != main {
            sources.push(path);
        }
    }
    Ok(sources)
}

fn table(text: &mut String, root: &Path, files: &[PathBuf]) -> Result<()> {
    text.push_str("\n| file | what it tests |\n|---|---|\n");
    for file in files {
        let name = file.strip_prefix(root)?.display().to_string();
        let short = name.rsplit('/').next().unwrap_or(&name);
        let _ = writeln!(text, "| [{short}](../{name}) | {} |", first_words(file)?);
    }
    Ok(())
}

/// The first paragraph of a file's documentation, on one line.
fn first_words(path: &Path) -> Result<String> {
    let source =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let words: Vec<&str> = source
        .lines()
        .skip_while(|line| !line.starts_with("//!"))
        .map_while(|line| line.strip_prefix("//! "))
        .map(str::trim)
        .collect();
    if words.is_empty() {
        bail!("{} does not begin with what it tests", path.display());
    }
    Ok(words.join(" ").replace('|', "\\|"))
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// The entries of a directory, by name.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot list {}", directory.display());
    let entries = fs::read_dir(directory).with_context(cannot)?;
    let mut paths = entries
        .map(|entry| Ok(entry.with_context(cannot)?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_described_by_its_first_paragraph() {
        let path = std::env::temp_dir().join(format!("xtask-map-{}.rs", std::process::id()));
        let written = "// SPDX\n\n//! One thing,\n//! and `a|b`.\n//!\n//! More.\n\nuse a;\n";
        fs::write(&path, written).unwrap();
        let described = first_words(&path);
        fs::write(&path, "use a;\n").unwrap();
        let silent = first_words(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(described.unwrap(), "One thing, and `a\\|b`.");
        assert!(silent.is_err());
    }

    #[test]
    fn each_file_of_tests_is_in_the_map() {
        let workspace = Workspace::locate().unwrap();
        let map = made(&workspace.root).unwrap();
        for file in [
            "traffic/paths.rs",
            "full_table/upstream.rs",
            "pairs/interop.rs",
        ] {
            assert!(map.contains(file), "{file}: {map}");
        }
    }
}
