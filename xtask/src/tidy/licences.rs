// SPDX-License-Identifier: Apache-2.0

//! Compares the licences of all dependencies on the platforms in `deny.toml` with the list there.
//!
//! cargo-deny reads the same list and checks more; this check needs only cargo.

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::Finding;
use crate::sh;
use crate::workspace::Workspace;

/// The file with the list.
const DENY: &str = "deny.toml";

/// Returns the dependencies that cannot be used under any of the licences in `deny.toml`.
///
/// # Errors
/// Returns an error if `deny.toml` has no list, or if cargo cannot resolve the dependencies.
pub fn findings(workspace: &Workspace) -> Result<Vec<Finding>> {
    let text = fs::read_to_string(workspace.root.join(DENY))
        .with_context(|| format!("cannot read {DENY}, which lists the allowed licences"))?;
    let allowed = list(&text, "[licenses]", "allow")?;
    let targets = list(&text, "[graph]", "targets")?;
    let platforms = targets
        .iter()
        .flat_map(|target| ["--filter-platform", target]);
    let json = sh::read(
        workspace
            .cargo("metadata")
            .args(["--locked", "--format-version", "1"])
            .args(platforms),
    )?;
    let metadata: serde_json::Value =
        serde_json::from_str(&json).context("cargo metadata printed something else than JSON")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    Ok(packages
        .iter()
        .filter_map(|package| refused(package, &allowed))
        .collect())
}

fn refused(package: &serde_json::Value, allowed: &[String]) -> Option<Finding> {
    let field = |name: &str| package[name].as_str();
    let what = match field("license") {
        Some(licence) if is_allowed(licence, allowed) => return None,
        Some(licence) => format!("is licensed as `{licence}`, which {DENY} does not allow"),
        None => format!("names no licence, so {DENY} cannot allow it"),
    };
    let name = field("name").unwrap_or("a package without a name");
    let version = field("version").unwrap_or_default();
    Some(Finding::file(
        "Cargo.lock",
        format!("{name} {version} {what}"),
    ))
}

/// Returns the strings of `key = […]` in a section, which is all of TOML that this check needs.
fn list(deny: &str, section: &str, key: &str) -> Result<Vec<String>> {
    let without_comments: String = deny
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let list = without_comments
        .split_once(section)
        .and_then(|(_, rest)| rest.split_once(&format!("{key} = [")))
        .and_then(|(_, list)| list.split_once(']'));
    let Some((list, _)) = list else {
        bail!("{DENY} has no `{key} = […]` in {section}");
    };
    // Every second part is between quotes.
    Ok(list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect())
}

/// Returns whether an SPDX expression has an alternative in which all licences are permitted. `/`
/// is the old form of OR. An expression that cannot be parsed is not permitted.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader {
        words: &words,
        allowed,
    };
    reader.any() == Some(true) && reader.words.is_empty()
}

/// Parses an expression from the left; every method returns `None` if it is malformed.
struct Reader<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Reader<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    /// Parses `all OR all …`.
    fn any(&mut self) -> Option<bool> {
        let mut value = self.all()?;
        while self.take("OR") {
            value |= self.all()?;
        }
        Some(value)
    }

    /// Parses `one AND one …`.
    fn all(&mut self) -> Option<bool> {
        let mut value = self.one()?;
        while self.take("AND") {
            value &= self.one()?;
        }
        Some(value)
    }

    /// Parses a licence, with its exception if it has one, or an expression in parentheses.
    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let value = self.any()?;
            return self.take(")").then_some(value);
        }
        let (&licence, rest) = self.words.split_first()?;
        self.words = rest;
        let mut name = licence.to_owned();
        if self.take("WITH") {
            let (&exception, rest) = self.words.split_first()?;
            self.words = rest;
            name = format!("{licence} WITH {exception}");
        }
        Some(self.allowed.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn licences() -> Vec<String> {
        list("[graph]\nallow = [\"x\"]\n[licenses]\n# of 2026\nallow = [\n  \"MIT\", # short\n  \"Apache-2.0\",\n  \"Apache-2.0 WITH LLVM-exception\",\n]\n[bans]\n", "[licenses]", "allow").unwrap()
    }

    #[test]
    fn the_list_is_read_from_its_section() {
        assert_eq!(
            licences(),
            ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
        );
        assert!(list("[bans]\nallow = [\"x\"]\n", "[licenses]", "allow").is_err());
    }

    #[test]
    fn one_allowed_choice_is_enough() {
        for licence in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-2.0-only OR MIT",
            "(GPL-3.0-only OR MIT) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(is_allowed(licence, &licences()), "{licence}");
        }
    }

    #[test]
    fn every_part_must_be_allowed() {
        for licence in [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MIT OR",
            "(MIT",
            "MIT )",
            "MIT Apache-2.0",
            "Apache-2.0 WITH Autoconf-exception-3.0",
            "MIT AND (GPL-2.0-only OR LGPL-2.1-only)",
        ] {
            assert!(!is_allowed(licence, &licences()), "{licence}");
        }
    }

    #[test]
    fn a_refused_package_is_named_with_its_licence() {
        let package =
            serde_json::json!({"name": "x", "version": "1.2.3", "license": "GPL-3.0-only"});
        assert_eq!(
            refused(&package, &licences()).unwrap().to_string(),
            "Cargo.lock: x 1.2.3 is licensed as `GPL-3.0-only`, which deny.toml does not allow"
        );
        let package = serde_json::json!({"name": "x", "version": "1.2.3", "license": null});
        assert!(
            refused(&package, &licences())
                .unwrap()
                .what
                .contains("names no licence")
        );
    }
}
