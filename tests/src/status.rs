// SPDX-License-Identifier: Apache-2.0

//! Reads the output of `proxy-agent status`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::binary;
use crate::cgroup::Cgroup;
use crate::node::{Node, api_server};
use crate::{Family, cmd};

/// The name of the node itself in the list of links.
pub const THIS_NODE: &str = "(this node)";

/// Runs `proxy-agent status` for a node's agent.
///
/// # Errors
/// Returns an error if the command cannot be run.
pub fn run(node: &Node, args: &[&str]) -> Result<Output> {
    let mut command = node.netns.command(binary()?);
    command
        .arg("status")
        .arg(format!("--run-dir={}", node.run_dir().display()))
        .args(args);
    cmd::output(&mut command, "")
}

/// Returns the status of a node's agent as JSON, and the exit code.
///
/// # Errors
/// Returns an error if there is no status.
pub fn read_with_code(node: &Node) -> Result<(i32, Value)> {
    let output = run(node, &["--output=json"])?;
    let value = serde_json::from_slice(&output.stdout).with_context(|| {
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("exit status {}: {stdout}{stderr}", output.status)
    })?;
    Ok((cmd::exit_code(output.status), value))
}

/// Returns the status of a node's agent.
///
/// # Errors
/// Returns an error if there is no status.
pub fn read(node: &Node) -> Result<Value> {
    Ok(read_with_code(node)?.1)
}

/// Returns the number of packets that were dropped for a cause, for all VIPs together.
///
/// # Errors
/// Returns an error if there is no status.
pub fn dropped(node: &Node, cause: &str) -> Result<u64> {
    let status = read(node)?;
    let vips = status["counters"].as_array().context("counters")?;
    let counts = vips.iter().map(|vip| &vip["total"]["dropped"][cause]);
    Ok(counts.filter_map(Value::as_u64).sum())
}

/// Returns the guarded links with the way in which each is guarded, and the notes about other links.
///
/// # Errors
/// Returns an error if there is no status.
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

/// Returns all counters of a VIP.
fn of_vip(status: &Value, vip: SocketAddr) -> Result<&Value> {
    array(&status["counters"])?
        .iter()
        .find(|of_vip| of_vip["vip"] == vip.to_string().as_str())
        .with_context(|| format!("nothing was counted of {vip}"))
}

/// Returns the counters of a VIP for one link, or for the node itself.
///
/// # Errors
/// Returns an error if the output does not contain it.
pub fn counters(status: &Value, vip: SocketAddr, link: &str) -> Result<Value> {
    let of_vip = of_vip(status, vip)?;
    let is_link = |of_link: &&Value| of_link["link"].as_str().unwrap_or(THIS_NODE) == link;
    let of_link = array(&of_vip["links"])?.iter().find(is_link);
    Ok(of_link.cloned().unwrap_or_default())
}

/// Returns the items of an array.
///
/// # Errors
/// Returns an error if the output does not contain it.
pub fn array(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("no array: {value}"))
}

/// Returns the value of a number.
///
/// # Errors
/// Returns an error if the output does not contain it.
pub fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("no number: {value}"))
}

/// The maximum time until the agent has adapted to a change of the proxy, with a margin for a loaded machine.
const FOLLOWED: Duration = Duration::from_secs(10);

/// Returns the reason why the proxy's own connections to the API server of IPv4 are tracked, which is empty if they are
/// not, and the proxy's cgroups.
///
/// # Errors
/// Returns an error if there is no status, or if it does not contain this.
pub fn upstream(node: &Node) -> Result<(String, Vec<String>)> {
    let status = read(node)?;
    let upstream = &status["upstream"];
    let four = api_server(Family::V4).to_string();
    let endpoints = upstream["endpoints"].as_array().context("endpoints")?;
    let known = endpoints
        .iter()
        .find(|known| known["endpoint"] == four.as_str())
        .with_context(|| format!("no {four} in {upstream}"))?;
    let reason = known["reason"].as_str().unwrap_or_default().to_owned();
    ensure!(
        known["untracked"].as_bool() == Some(reason.is_empty()),
        "{known}"
    );
    let cgroups = upstream["cgroups"].as_array().context("cgroups")?;
    let cgroups = cgroups.iter().filter_map(Value::as_str);
    Ok((reason, cgroups.map(str::to_owned).collect()))
}

/// Waits until [`upstream`] returns this reason and this cgroup.
///
/// # Errors
/// Returns an error if this does not happen in time.
pub fn wait_until_upstream(node: &Node, reason: &str, cgroup: &Cgroup) -> Result<()> {
    let expected = (reason.to_owned(), vec![cgroup.path()]);
    let mut last = None;
    cmd::wait_until(FOLLOWED, "the agent to follow the proxy", || {
        let now = upstream(node)?;
        let is_so = now == expected;
        last = Some(now);
        Ok(is_so.then_some(()))
    })
    .with_context(|| format!("{expected:?} is expected, {last:?} is what status has"))
}

/// Returns, for each known endpoint, the reason why the proxy's own connections to it are tracked, which is empty if
/// they are not.
///
/// # Errors
/// Returns an error if there is no status, or if it does not contain this.
pub fn endpoints(node: &Node) -> Result<BTreeMap<SocketAddr, String>> {
    let status = read(node)?;
    let known = array(&status["upstream"]["endpoints"])?.iter();
    known
        .map(|known| {
            let endpoint = known["endpoint"].as_str().context("an endpoint")?;
            let reason = known["reason"].as_str().unwrap_or_default();
            Ok((endpoint.parse()?, reason.to_owned()))
        })
        .collect()
}

/// Waits until an endpoint is known, with that reason.
///
/// # Errors
/// Returns an error if this does not happen in time.
pub fn wait_until_known(node: &Node, endpoint: SocketAddr, reason: &str) -> Result<()> {
    let mut last = BTreeMap::new();
    cmd::wait_until(FOLLOWED, "the agent to know an endpoint", || {
        last = endpoints(node)?;
        let is_so = last.get(&endpoint).is_some_and(|of| of == reason);
        Ok(is_so.then_some(()))
    })
    .with_context(|| format!("{endpoint} is expected with {reason:?}, known are {last:?}"))
}

/// Waits until the agent learns endpoints from the connections of a proxy that has just been started.
///
/// # Errors
/// Returns an error if this does not happen in time.
pub fn wait_until_learning(node: &Node) -> Result<()> {
    cmd::wait_until(FOLLOWED, "the agent to learn from the proxy", || {
        Ok(learns_not(node)?.is_empty().then_some(()))
    })
}

/// Returns the reason why the agent learns no endpoints now, which is empty if it would learn the next one.
///
/// # Errors
/// Returns an error if there is no status.
pub fn learns_not(node: &Node) -> Result<String> {
    let reason = read(node)?["upstream"]["reason"].clone();
    Ok(reason.as_str().unwrap_or_default().to_owned())
}
