// SPDX-License-Identifier: Apache-2.0

//! Checks that the targets of relative links in Markdown exist. Anchors and web links are not
//! checked.

use std::path::{Component, Path, PathBuf};

use super::Finding;

/// Returns the links in the Markdown file `path` for whose target, relative to the top, `exists`
/// returns false.
pub fn findings(path: &str, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<Finding> {
    let directory = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut findings = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in targets(line).filter(|target| is_relative(target)) {
            let file = target.split('#').next().unwrap_or_default();
            let there = inside(&directory.join(file)).is_some_and(|file| exists(&file));
            if !there {
                let what = format!("the link to `{target}` leads nowhere");
                findings.push(Finding::line(path, number, what));
            }
        }
    }
    findings
}

/// Returns the targets of `[text](target "title")` and `[name]: target`, outside of `code`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let definition = line
        .strip_prefix('[')
        .filter(|rest| !rest.starts_with('^'))
        .and_then(|rest| rest.split_once("]: "))
        .map(|(_, target)| target);
    let inline = line.match_indices("](").filter_map(move |(at, bracket)| {
        let code = line[..at].matches('`').count() % 2 == 1;
        let rest = &line[at + bracket.len()..];
        (!code)
            .then(|| rest.split_once(')').map(|(target, _)| target))
            .flatten()
    });
    definition
        .into_iter()
        .chain(inline)
        .filter_map(|target| target.split_whitespace().next())
        .map(|target| target.trim_start_matches('<').trim_end_matches('>'))
}

fn is_relative(target: &str) -> bool {
    !target.starts_with('#') && !target.contains("://") && !target.starts_with("mailto:")
}

/// Returns `path` without `.` and `..`, or `None` if it leaves the checkout.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<String> {
        let there = ["README.md", "docs", "docs/packet-path.md"];
        let exists = |target: &Path| there.iter().any(|&file| Path::new(file) == target);
        findings(path, text, exists)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn targets_are_looked_up_from_the_files_directory() {
        assert_eq!(
            broken(
                "README.md",
                "[a](docs/packet-path.md#top) [b](docs) [c](#here)\n"
            ),
            [""; 0]
        );
        assert_eq!(
            broken(
                "docs/packet-path.md",
                "[a](../README.md) [b](./packet-path.md)\n"
            ),
            [""; 0]
        );
        assert_eq!(
            broken(
                "docs/packet-path.md",
                "fine\n[a](README.md) and [b](../../README.md)\n"
            ),
            [
                "docs/packet-path.md:2: the link to `README.md` leads nowhere",
                "docs/packet-path.md:2: the link to `../../README.md` leads nowhere",
            ]
        );
    }

    #[test]
    fn the_web_and_code_are_left_alone() {
        let text = "[a](https://kernel.org/x) <mailto:a@b.c>\n`[a](gone)`\n```\n[a](gone)\n```\n";
        assert_eq!(broken("README.md", text), [""; 0]);
    }

    #[test]
    fn definitions_and_titles_are_understood() {
        assert_eq!(
            broken(
                "README.md",
                "[a]: docs/packet-path.md \"title\"\n[b](docs 'x')\n"
            ),
            [""; 0]
        );
        assert_eq!(broken("README.md", "[a]: gone.md\n").len(), 1);
    }
}
