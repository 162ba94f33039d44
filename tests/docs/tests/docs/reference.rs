// SPDX-License-Identifier: Apache-2.0

//! `docs/reference` has the programs' command lines, and nothing about programs that no longer exist.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, ensure};
use docs_tests::reference::{DIRECTORY, pages};
use tests::manifests::repository;

const REMAKE: &str = "`cargo xtask reference` makes it again";

#[test]
fn the_reference_is_as_the_programs_have_it() -> Result<()> {
    let pages = pages()?;
    for (path, text) in &pages {
        let found = fs::read_to_string(repository().join(path)).unwrap_or_default();
        ensure!(
            found == *text,
            "{path} is not as the program has it: {REMAKE}"
        );
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(repository().join(DIRECTORY))? {
        found.insert(format!(
            "{DIRECTORY}/{}",
            entry?.file_name().to_string_lossy()
        ));
    }
    let left: Vec<&String> = found
        .iter()
        .filter(|path| !pages.contains_key(*path))
        .collect();
    ensure!(left.is_empty(), "{left:?} belong to no program");
    Ok(())
}
