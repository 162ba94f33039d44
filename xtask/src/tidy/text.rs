// SPDX-License-Identifier: Apache-2.0

//! Checks single files: the head, the length, leftovers, white space, and names of machines.

use super::Finding;

/// The maximum number of lines of a file.
const HARD_LIMIT: usize = 600;

/// The number of lines above which a note is printed.
const SOFT_LIMIT: usize = 400;

/// The number of lines at the top that must contain the licence.
const HEAD: usize = 5;

/// Marks of unfinished code, and attributes that hide a lint without a reason. They are split, so
/// that this file does not find itself.
const LEFTOVERS: &[(&str, &str)] = &[
    (concat!("to", "do!("), "finish it"),
    (concat!("un", "implemented!("), "finish it"),
    (concat!("db", "g!("), "take it out"),
    (
        concat!("#[ig", "nore"),
        "a test runs, or says at run time why it cannot",
    ),
    (concat!("#[al", "low("), "use #[expect(…, reason = \"…\")]"),
    (
        concat!("#![al", "low("),
        "use #![expect(…, reason = \"…\")]",
    ),
];

/// Marks of unfinished code that are found as whole words, in comments as well.
const UNFINISHED: &[&str] = &[
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("TO", "DO"),
];

/// Directories that exist only on one person's machine.
const PRIVATE: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
];

/// The suffixes of host names that only one network can resolve.
const INTERNAL: &[&str] = &[".internal", ".corp", ".lan", ".intranet"];

/// The prefixes of labels in the host names of mirrors of public registries.
const MIRRORS: &[&str] = &["artifactory", "nexus", "mirror"];

/// The registry that a lock file may name.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The kind of a file, which selects the checks for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rust,
    Script,
    /// Other files that are written by hand: Markdown, TOML, YAML.
    Prose,
    /// Files that are generated, or copied from other programs: lock files, expected output of
    /// tests.
    Data,
}

fn kind(path: &str, text: &str) -> Kind {
    match path.rsplit('.').next().unwrap_or_default() {
        "rs" => Kind::Rust,
        "sh" => Kind::Script,
        _ if text.starts_with("#!") => Kind::Script,
        "md" | "toml" | "yaml" | "yml" => Kind::Prose,
        _ => Kind::Data,
    }
}

/// Returns all findings that must be corrected in this file.
pub fn findings(path: &str, text: &str) -> Vec<Finding> {
    let kind = kind(path, text);
    let mut findings = Vec::new();
    if matches!(kind, Kind::Rust | Kind::Script) {
        if !text
            .lines()
            .take(HEAD)
            .any(|line| line.contains("SPDX-License-Identifier: Apache-2.0"))
        {
            let what =
                format!("no `SPDX-License-Identifier: Apache-2.0` in the first {HEAD} lines");
            findings.push(Finding::file(path, what));
        }
        let lines = text.lines().count();
        if lines > HARD_LIMIT {
            let what =
                format!("{lines} lines, at most {HARD_LIMIT}: split it where its parts have names");
            findings.push(Finding::file(path, what));
        }
    }
    if kind == Kind::Rust && !has_module_docs(text) {
        findings.push(Finding::file(
            path,
            "does not start with `//!`: say what lives here and what does not",
        ));
    }
    if kind != Kind::Data && !text.is_empty() && !text.ends_with('\n') {
        findings.push(Finding::file(path, "no newline at the end"));
    }
    for (number, line) in (1..).zip(text.split_terminator('\n')) {
        let whats = in_line(kind, line);
        findings.extend(
            whats
                .into_iter()
                .map(|what| Finding::line(path, number, what)),
        );
    }
    findings
}

/// Returns a note about a file that is not an error.
pub fn note(path: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    let ours = matches!(kind(path, text), Kind::Rust | Kind::Script);
    (ours && (SOFT_LIMIT + 1..=HARD_LIMIT).contains(&lines))
        .then(|| Finding::file(path, format!("{lines} lines, more than {SOFT_LIMIT}")))
}

fn in_line(kind: Kind, line: &str) -> Vec<String> {
    let mut whats = Vec::new();
    if kind == Kind::Rust {
        for (leftover, advice) in LEFTOVERS {
            if line.contains(leftover) {
                whats.push(format!("`{leftover}`: {advice}"));
            }
        }
        if line.contains('\t') {
            whats.push("a tab: indent with spaces, write \\t in strings".to_owned());
        }
    }
    if kind != Kind::Data {
        for word in UNFINISHED {
            if has_word(line, word) {
                whats.push(format!("`{word}`: finish it, or open an issue"));
            }
        }
        if line.ends_with(char::is_whitespace) {
            whats.push("white space at the end of the line".to_owned());
        }
    }
    for directory in PRIVATE {
        if has_path(line, directory) {
            whats.push(format!("`{directory}…` exists on one machine only"));
        }
    }
    if let Some(host) = hosts(line).find(|host| is_private(host)) {
        whats.push(format!(
            "the host `{host}` means nothing outside one network"
        ));
    }
    if line.contains("registry+") && line.starts_with("source = ") && !line.contains(REGISTRY) {
        whats.push("a crate from a registry other than crates.io".to_owned());
    }
    whats
}

/// Returns whether `//!` comes first, after plain comments and attributes of the module.
fn has_module_docs(text: &str) -> bool {
    let plain = |line: &&str| {
        let comment = line.starts_with("//") && !line.starts_with("//!");
        !(line.is_empty() || comment || line.starts_with("#!"))
    };
    text.lines()
        .map(str::trim)
        .find(plain)
        .is_some_and(|line| line.starts_with("//!"))
}

/// Returns whether the line contains `word` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        ![before, after]
            .into_iter()
            .flatten()
            .any(|c| c.is_alphanumeric() || c == '_')
    })
}

/// Returns whether the line contains an absolute path below `directory`, which is not the middle of
/// another path.
fn has_path(line: &str, directory: &str) -> bool {
    line.match_indices(directory).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "-_.~*}>/".contains(c))
    })
}

/// Returns the hosts of all URLs in a line.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").filter_map(|(at, separator)| {
        let rest = &line[at + separator.len()..];
        let end = |c: char| !(c.is_ascii_alphanumeric() || "-.".contains(c));
        rest.split(end).next().filter(|host| !host.is_empty())
    })
}

fn is_private(host: &str) -> bool {
    INTERNAL.iter().any(|end| host.ends_with(end))
        || host
            .split('.')
            .any(|label| MIRRORS.iter().any(|mirror| label.starts_with(mirror)))
}

#[cfg(test)]
mod tests;
