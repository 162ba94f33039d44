// SPDX-License-Identifier: Apache-2.0

//! The workflows in `.github`: they conform to GitHub's schema, xtask accepts their commands, and actions are pinned by
//! commit.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use docs_tests::shell;
use serde_json::Value;
use tests::manifests::{Tool, repository};

/// Collects the values of a key, at any depth.
fn values<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key).and_then(Value::as_str));
            map.values().for_each(|value| values(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| values(value, key, found)),
        _ => {}
    }
}

fn check(workflow: &Value) -> Result<usize> {
    let (mut scripts, mut commands, mut actions) = (Vec::new(), Vec::new(), Vec::new());
    values(workflow, "run", &mut scripts);
    values(workflow, "command", &mut commands);
    values(workflow, "uses", &mut actions);
    let commands = commands
        .into_iter()
        .map(|command| format!("cargo xtask {command}"));
    let scripts = scripts.into_iter().map(str::to_owned);
    let mut parsed = 0;
    for script in scripts.chain(commands) {
        for shell::Command { words, .. } in shell::commands(&script)? {
            let is_xtask = words.starts_with(&["cargo".to_owned(), "xtask".to_owned()]);
            // Of a matrix only the commands themselves are known.
            if is_xtask && !script.contains("${{") {
                let line = xtask::command().try_get_matches_from(&words[1..]);
                line.with_context(|| script.clone())?;
                parsed += 1;
            }
        }
    }
    for action in actions {
        let commit = action.split_once('@').map_or("", |(_, commit)| commit);
        let is_pinned = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
        ensure!(is_pinned || action.starts_with("./"), "{action}");
    }
    Ok(parsed)
}

#[test]
fn workflows_are_valid_and_xtask_takes_their_commands() -> Result<()> {
    let Some(tool) = Tool::find("workflows")? else {
        return Ok(());
    };
    let mut parsed = 0;
    for entry in fs::read_dir(repository().join(".github/workflows"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let workflow = tool
            .workflow(&text)
            .with_context(|| path.display().to_string())?;
        parsed += check(&workflow[0]).with_context(|| path.display().to_string())?;
    }
    ensure!(parsed > 15, "only {parsed} commands");
    let bad = "on: push\njobs: {a: {runs-on: x, stepps: []}}";
    ensure!(tool.workflow(bad).is_err(), "the schema takes everything");
    ensure!(check(&serde_json::json!({"run": "cargo xtask tset"})).is_err());
    ensure!(check(&serde_json::json!({"uses": "actions/checkout@v7"})).is_err());
    Ok(())
}
