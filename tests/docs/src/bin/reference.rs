// SPDX-License-Identifier: Apache-2.0

//! Writes `docs/reference`: `cargo xtask reference` runs it.

use std::fs;

use anyhow::{Context as _, Result};
use docs_tests::reference;
use tests::manifests::repository;

fn main() -> Result<()> {
    for (path, text) in reference::pages()? {
        let file = repository().join(&path);
        fs::write(&file, text).with_context(|| format!("cannot write {path}"))?;
        println!("{path}");
    }
    Ok(())
}
