// SPDX-License-Identifier: Apache-2.0

//! Every flag of upstream's programs exists in ours, accepts upstream's default as its value, and has the same default.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tests::cmd;
use tunnel_tests::program::{Make, Part, lacks_peers};

/// The flags whose default differs on purpose, or is random.
const DIFFERENT: [&str; 3] = ["agent-id", "backend-dial-timeout", "server-id"];

fn help(program: &Path) -> Result<String> {
    let output = cmd::output(Command::new(program).arg("--help"), "")?;
    let printed = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8(printed)?)
}

/// Returns the flag that a line of a help text describes, and the rest of the line.
fn flag(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let long = line.strip_prefix("-v, ").unwrap_or(line);
    let name = long.strip_prefix("--")?;
    let end = name
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .unwrap_or(name.len());
    Some(name.split_at(end))
}

/// Returns the text between two marks.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

/// Returns the flags of a program of upstream with their defaults, written as values.
fn upstreams(help: &str) -> BTreeMap<String, String> {
    let flags = help.lines().filter_map(flag);
    let valued = flags.map(|(name, rest)| {
        let kind = rest.split_whitespace().next().unwrap_or_default();
        let zero = match kind {
            "string" | "strings" | "moduleSpec" => "",
            "int" | "uint" | "float32" | "severity" | "Level" => "0",
            "duration" => "0s",
            _ => "false",
        };
        // Some descriptions mention a default in words; pflag's own default is at the end.
        let stated = rest.rsplit_once("(default ");
        let stated = stated.and_then(|(_, rest)| rest.trim_end().strip_suffix(')'));
        let default = stated.unwrap_or(zero).trim_matches('"');
        (name.to_owned(), default.to_owned())
    });
    valued.filter(|(name, _)| name != "help").collect()
}

/// Returns the flags of one of our programs with their defaults.
fn ours(help: &str) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    let mut current: Option<(String, String)> = None;
    for line in help.lines() {
        // A continuation line of a description is indented further, and may begin with the name of a flag.
        let is_text = line.starts_with("        ");
        if let Some((name, rest)) = flag(line).filter(|_| !is_text) {
            flags.extend(current.replace((name.to_owned(), rest.to_owned())));
        } else if let Some((_, text)) = &mut current {
            text.push(' ');
            text.push_str(line.trim());
        }
    }
    flags.extend(current);
    for text in flags.values_mut() {
        let default = between(text, "[default: ", "]").unwrap_or_default();
        *text = default.trim_matches('"').to_owned();
    }
    flags
}

/// Returns the default, or an empty text for zero values, which neither help text shows.
fn without_zero(default: &str) -> &str {
    match default {
        "0" | "0s" | "false" | ":0" => "",
        other => other,
    }
}

fn same_flags(part: Part) -> Result<()> {
    let name = format!("tunnel-flags-{part:?}");
    if lacks_peers(&name)? {
        return Ok(());
    }
    let theirs = upstreams(&help(&part.of(Make::Upstream)?)?);
    ensure!(theirs.contains_key("vmodule"), "no flags: {theirs:?}");
    let program = part.of(Make::Ours)?;
    let mut command = Command::new(&program);
    for (name, default) in &theirs {
        command.arg(format!("--{name}={default}"));
    }
    // The program prints its help only if it accepts all flags before this one.
    cmd::run(command.arg("--help"), "").context("a flag of upstream's is refused")?;
    let ours = ours(&help(&program)?);
    for (name, default) in theirs {
        // A hidden flag has no default to compare.
        let Some(own) = ours.get(&name) else { continue };
        let is_same = without_zero(own) == without_zero(&default);
        ensure!(
            is_same || DIFFERENT.contains(&name.as_str()),
            "--{name} has the default {own:?}, upstream's {default:?}"
        );
    }
    Ok(())
}

#[test]
fn server() -> Result<()> {
    same_flags(Part::Server)
}

#[test]
fn agent() -> Result<()> {
    same_flags(Part::Agent)
}

#[test]
fn test_client() -> Result<()> {
    same_flags(Part::TestClient)
}

#[test]
fn test_server() -> Result<()> {
    same_flags(Part::TestServer)
}
