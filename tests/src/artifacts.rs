// SPDX-License-Identifier: Apache-2.0

//! Everything that an agent with any backend creates on a node, as text that can be compared: it is the same after each
//! start, and empty after a clean-up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use crate::node::Node;
use crate::{Family, snapshot};

/// Returns the links with the VIPs and the data plane.
///
/// # Errors
/// Returns an error if a tool fails.
pub fn everything(node: &Node) -> Result<String> {
    Ok(vips(node)? + &data_plane(node)?)
}

/// Returns the links that carry the VIPs.
///
/// # Errors
/// Returns an error if ip(8) fails.
pub fn vips(node: &Node) -> Result<String> {
    let mut text = String::new();
    for family in Family::ALL {
        let vip = family.vip().to_string();
        let addresses = node.netns.exec(&format!("ip -o address show to {vip}"))?;
        for line in addresses.lines() {
            let words: Vec<_> = line.split_whitespace().skip(1).take(3).collect();
            writeln!(text, "{}", words.join(" "))?;
        }
    }
    Ok(text)
}

/// Returns everything else: tables, rules, sets and pins, without IDs and handles.
///
/// # Errors
/// Returns an error if a tool fails.
pub fn data_plane(node: &Node) -> Result<String> {
    let mut text = String::new();
    let tables = snapshot::nf_tables(&node.netns)?;
    for table in tables.split_inclusive("\n}\n") {
        if table.contains(" proxy-agent {") || table.contains(" proxy-agent_guard {") {
            text.push_str(table);
        }
    }
    for program in [
        "iptables-nft",
        "ip6tables-nft",
        "iptables-legacy",
        "ip6tables-legacy",
    ] {
        let rules = node.netns.exec(&format!("{program}-save"))?;
        for rule in rules.lines().filter(|rule| rule.contains("proxy-agent")) {
            writeln!(text, "{program}: {rule}")?;
        }
    }
    let sets = node.netns.exec("ipset list -name")?;
    for set in sets.lines().collect::<BTreeSet<_>>() {
        writeln!(text, "set {set}")?;
    }
    text.push_str(&pins(node)?);
    Ok(text)
}

/// Returns the pins; those of links are listed by the names of the links.
fn pins(node: &Node) -> Result<String> {
    let mut pins = BTreeSet::new();
    let root = node.agent_bpffs();
    let shown = node.netns.exec("ip -o link show")?;
    let mut links = BTreeMap::new();
    for line in shown.lines() {
        let mut words = line.split(": ");
        let index = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default();
        links.insert(index, name.split('@').next().unwrap_or_default());
    }
    let mut directories = vec![root];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                directories.push(entry.path());
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = links
                .get(name.as_str())
                .map_or(name.clone(), |link| (*link).to_owned());
            pins.insert(format!("{}/{name}\n", directory.display()));
        }
    }
    Ok(pins.into_iter().collect())
}
