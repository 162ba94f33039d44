// SPDX-License-Identifier: Apache-2.0

//! What `proxy-agent status` tells of the guard of a node.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::agent::binary;
use crate::cmd;
use crate::node::Node;

/// The status of a node's agent.
///
/// # Errors
/// When there is none.
pub fn read(node: &Node) -> Result<Value> {
    let mut command = node.netns.command(binary()?);
    command
        .args(["status", "--output=json"])
        .arg(format!("--run-dir={}", node.run_dir().display()));
    let output = cmd::output(&mut command, "")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// How many packets were dropped for a cause, of all VIPs.
///
/// # Errors
/// When there is no status.
pub fn dropped(node: &Node, cause: &str) -> Result<u64> {
    let status = read(node)?;
    let vips = status["counters"].as_array().context("counters")?;
    let counts = vips.iter().map(|vip| &vip["total"]["dropped"][cause]);
    Ok(counts.filter_map(Value::as_u64).sum())
}

/// The guarded links with how, and what is told of others.
///
/// # Errors
/// When there is no status.
pub fn guarded(node: &Node) -> Result<(Vec<String>, Vec<String>)> {
    let status = read(node)?;
    let list = |field: &str| {
        status["guard"][field]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let links = list("links");
    let links = links
        .iter()
        .map(|link| format!("{}: {}", word(&link["link"]), word(&link["how"])));
    Ok((links.collect(), list("notes").iter().map(word).collect()))
}
