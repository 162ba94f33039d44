// SPDX-License-Identifier: Apache-2.0

//! Everything in a namespace that an agent could change, as text that can be compared.

use std::fmt::Write as _;

use anyhow::Result;

use crate::netns::Netns;

/// The commands whose output forms a snapshot.
const COMMANDS: [&str; 13] = [
    "ip -o link show",
    "ip -o address show",
    "ip route show table all",
    "ip -6 route show table all",
    "ip rule show",
    "nft -a -s list ruleset",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "ipset save",
    "tc -d qdisc show",
    // On a kernel with modules, these files do not exist before the first table does.
    "find /proc/thread-self/net/ -maxdepth 1 -name ip*_tables_names -exec cat {} +",
];

/// Returns the state of a namespace: links, addresses, routes, rules of every kind, qdiscs and filters.
///
/// Packet counters, timers and other values that the kernel changes by itself are left out.
///
/// # Errors
/// Returns an error if a tool fails.
pub fn take(netns: &Netns) -> Result<String> {
    let mut snapshot = String::new();
    for line in COMMANDS {
        section(&mut snapshot, line, &netns.exec(line)?)?;
    }
    for link in links_with_clsact(netns)? {
        for hook in ["ingress", "egress"] {
            let line = format!("tc filter show dev {link} {hook}");
            section(&mut snapshot, &line, &netns.exec(&line)?)?;
        }
    }
    Ok(snapshot)
}

/// Returns the part of the snapshot that survives a restart of the agent: without handles and the IDs of programs,
/// which are new after each start, and without members of sets that packets add.
///
/// # Errors
/// Returns an error if a tool fails.
pub fn lasting(netns: &Netns) -> Result<String> {
    let mut snapshot = nf_tables(netns)?;
    let others = |line: &&str| !line.starts_with("nft ") && !line.starts_with("ipset ");
    for line in COMMANDS.into_iter().filter(others) {
        section(&mut snapshot, line, &netns.exec(line)?)?;
    }
    let sets = netns.exec("ipset list -terse")?;
    let changing = ["Size in memory", "Number of entries"];
    let sets = sets
        .lines()
        .filter(|line| !changing.iter().any(|start| line.starts_with(start)))
        .fold(String::new(), |text, line| text + line + "\n");
    section(&mut snapshot, "ipset list", &sets)?;
    for link in links_with_clsact(netns)? {
        for hook in ["ingress", "egress"] {
            let line = format!("tc filter show dev {link} {hook}");
            let filters = without_filter_ids(&netns.exec(&line)?);
            section(&mut snapshot, &line, &filters)?;
        }
    }
    Ok(snapshot)
}

/// Removes `id 4711`.
fn without_filter_ids(filters: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for word in filters.split(' ') {
        if kept.last() == Some(&"id") {
            kept.pop();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Returns the links that can have filters.
fn links_with_clsact(netns: &Netns) -> Result<Vec<String>> {
    Ok(netns
        .exec("tc qdisc show")?
        .lines()
        .filter(|line| line.starts_with("qdisc clsact"))
        // `qdisc clsact ffff: dev pod0 parent ffff:fff1`
        .filter_map(|line| line.split_whitespace().nth(4))
        .map(str::to_owned)
        .collect())
}

/// Returns the tables of nf_tables by family and name, in an order that does not depend on when they were created, and
/// without values that change by themselves: the IDs of BPF programs, which are new after each load, and members of
/// sets that packets add.
///
/// # Errors
/// Returns an error if nft(8) fails.
pub fn nf_tables(netns: &Netns) -> Result<String> {
    let ruleset = netns.exec("nft -s list ruleset")?;
    let mut tables: Vec<String> = Vec::new();
    let lasting = without_learned_members(&ruleset);
    for line in lasting.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with("table ") || tables.is_empty() {
            tables.push(String::new());
        }
        if let Some(table) = tables.last_mut() {
            table.push_str(&without_program_id(line));
            table.push('\n');
        }
    }
    tables.sort_unstable();
    Ok(tables.concat())
}

/// Removes `elements = { … }` of sets to which packets add members; it may span several lines.
fn without_learned_members(ruleset: &str) -> String {
    const BEGIN: &str = "\t\telements = {";
    let mut text = String::new();
    for set in ruleset.split_inclusive("\n\t}\n") {
        let members = set.find(BEGIN).filter(|_| set.contains("flags dynamic"));
        match members.and_then(|begin| Some((begin, begin + set[begin..].find("}\n")? + 2))) {
            Some((begin, end)) => {
                text.push_str(&set[..begin]);
                text.push_str(&set[end..]);
            }
            None => text.push_str(set),
        }
    }
    text
}

fn without_program_id(line: &str) -> String {
    match line.split_once("(program ") {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}(program{rest}")
        }
        None => line.to_owned(),
    }
}

/// Returns true if every line of `part` is in `whole`, in the same order.
#[must_use]
pub fn contains(whole: &str, part: &str) -> bool {
    let mut whole = whole.lines();
    part.lines().all(|line| whole.any(|other| other == line))
}

/// Returns the lines in which two snapshots differ, or `None`.
#[must_use]
pub fn difference(before: &str, after: &str) -> Option<String> {
    if before == after {
        return None;
    }
    let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let mut text = String::new();
    for (sign, lines, others) in [('-', &old, &new), ('+', &new, &old)] {
        for line in lines.iter().filter(|line| !others.contains(line)) {
            let _ = writeln!(text, "{sign} {line}");
        }
    }
    if text.is_empty() {
        text.push_str("the same lines in another order");
        let mut pairs = old.iter().zip(&new);
        if let Some((old, new)) = pairs.find(|(old, new)| old != new) {
            let _ = write!(text, ": first {new}, where before was {old}");
        }
    }
    Some(text)
}

fn section(snapshot: &mut String, title: &str, text: &str) -> Result<()> {
    writeln!(snapshot, "==== {title}")?;
    for line in text.lines() {
        // `# Generated by iptables-save v1.8 on DATE`, and link-local addresses with their routes, which the kernel
        // creates asynchronously.
        if line.starts_with('#') || line.contains("fe80:") || line.contains("ff00::/8") {
            continue;
        }
        // `:INPUT ACCEPT [12:3456]`
        let line = line.split(" [").next().unwrap_or_default();
        writeln!(snapshot, "{}", without_volatile_fields(line))?;
    }
    Ok(())
}

/// Returns a line without the fields that the kernel changes by itself: lifetimes, carrier and operational state, and
/// the part of an ipset's line from the hashes on.
fn without_volatile_fields(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "state" || word == "initval" {
            words.next();
        } else if word.starts_with('<') {
            kept.push(word.replace(",LOWER_UP", "").replace("NO-CARRIER,", ""));
        } else if word != "linkdown" && !word.ends_with("sec") {
            kept.push(word.to_owned());
        }
    }
    kept.join(" ")
}
