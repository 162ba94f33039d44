// SPDX-License-Identifier: Apache-2.0

//! `tidy`: checks that no other tool makes.
//!
//! [`text`] checks single files, [`links`] the links between them, [`licences`] the dependencies, and [`modules`] the
//! imports of our crates' modules. It checks only files that git tracks or would track. Every finding is printed as
//! `path:line: what` before the command fails.

mod licences;
mod links;
mod modules;
mod text;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::kernels;
use crate::sh;
use crate::tests_map;
use crate::workspace::Workspace;

/// A finding that must be corrected.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the top.
    pub path: String,
    /// The line, from 1; `None` if the finding is about the whole file.
    pub line: Option<usize>,
    /// The fault, and the correct form.
    pub what: String,
}

impl Finding {
    fn file(path: &str, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            what: what.into(),
        }
    }

    fn line(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: Some(line),
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.what),
            None => write!(f, "{}: {}", self.path, self.what),
        }
    }
}

/// Checks every file.
///
/// # Errors
/// Returns an error if there is a finding, or if git, cargo or a file cannot be read.
pub fn tidy(workspace: &Workspace) -> Result<()> {
    let root = &workspace.root;
    let mut findings = Vec::new();
    let mut notes = Vec::new();
    let files = files(root)?;
    for path in &files {
        let bytes = fs::read(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        // Binary files, such as captured packets, have no lines to check.
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        findings.extend(text::findings(path, &text));
        notes.extend(text::note(path, &text));
        if Path::new(path)
            .extension()
            .is_some_and(|extension| extension == "md")
        {
            findings.extend(links::findings(path, &text, |target| {
                root.join(target).exists()
            }));
        }
    }
    if !files.iter().any(|path| path == "CHANGELOG.md") {
        findings.push(Finding::file(
            "CHANGELOG.md",
            "is missing: changes are told there",
        ));
    }
    findings.extend(licences::findings(workspace)?);
    findings.extend(modules::findings(workspace)?);
    for (document, table) in kernels::stale(workspace)? {
        let what = format!(
            "the table of {table} is not what {} says: `{}`",
            kernels::FILE,
            kernels::REMAKE
        );
        findings.push(Finding::file(document, what));
    }
    if tests_map::is_stale(workspace)? {
        let what = format!(
            "is not what the files of tests say: `{}`",
            tests_map::REMAKE
        );
        findings.push(Finding::file(tests_map::FILE, what));
    }

    for note in notes {
        println!("note: {note}");
    }
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: {} files, nothing to put right", files.len());
            Ok(())
        }
        1 => bail!("tidy found 1 thing to put right, listed above"),
        count => bail!("tidy found {count} things to put right, listed above"),
    }
}

/// Returns the files that git tracks or would add, without links and without deleted files.
fn files(root: &Path) -> Result<Vec<String>> {
    let list = sh::read(
        Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
                "--deduplicate",
            ])
            .current_dir(root),
    )
    .context("tidy asks git which files belong to the project")?;
    let is_file =
        |path: &&str| fs::symlink_metadata(root.join(path)).is_ok_and(|meta| meta.is_file());
    let mut files: Vec<String> = list
        .split_terminator('\0')
        .filter(is_file)
        .map(str::to_owned)
        .collect();
    files.sort();
    Ok(files)
}
