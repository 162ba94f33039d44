// SPDX-License-Identifier: Apache-2.0

//! Puts results into a document that people write: between marks, the text around them stays.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::plot;
use super::result::Results;
use super::table;

/// A part of the document: its name in the marks, and the text between them.
type Part = (&'static str, fn(&Results) -> String);

const PARTS: [Part; 7] = [
    ("machine", table::machine),
    ("bars", table::bars),
    ("paths", table::paths),
    ("scale", table::scale),
    ("upstream", table::upstream),
    ("programs", table::programs),
    ("costs", table::costs),
];

/// The file with the results, in the directory of the plots.
pub const RESULTS: &str = "results.json";

/// Writes tables into the document, plots and the results themselves into a directory.
///
/// # Errors
/// When a file cannot be written, or the document lacks a mark.
pub fn write(results: &Results, document: &Path, directory: &Path) -> Result<()> {
    let parts = PARTS.map(|(name, part)| (name, part(results)));
    let text = renewed(document, parts)?;
    results.write(&directory.join(RESULTS))?;
    for (name, picture) in plot::all(results) {
        let path = directory.join(format!("{name}.svg"));
        fs::write(&path, picture).with_context(|| format!("writing {}", path.display()))?;
    }
    fs::write(document, text).with_context(|| format!("writing {}", document.display()))
}

/// The document's text with these parts, each named in the marks, in the place of earlier ones.
///
/// # Errors
/// When it cannot be read, or lacks a mark.
pub fn renewed<'a>(
    document: &Path,
    parts: impl IntoIterator<Item = (&'a str, String)>,
) -> Result<String> {
    let mut text =
        fs::read_to_string(document).with_context(|| format!("reading {}", document.display()))?;
    for (name, content) in parts {
        text = replace(&text, name, content.trim_end())
            .with_context(|| format!("{} has no marks for {name}", document.display()))?;
    }
    Ok(text)
}

/// The text with other content between the marks of this name; none without such marks.
fn replace(text: &str, name: &str, content: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- bench: {name} -->\n"),
        format!("\n<!-- bench: end of {name} -->"),
    );
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{content}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_stays() {
        let text = "a\n<!-- bench: x -->\nold\n<!-- bench: end of x -->\nb\n";
        let new = replace(text, "x", "new\nlines").expect("marks");
        assert_eq!(new, text.replace("old", "new\nlines"));
        assert_eq!(replace(&new, "x", "old").as_deref(), Some(text));
        assert_eq!(replace(text, "y", ""), None);
    }
}
