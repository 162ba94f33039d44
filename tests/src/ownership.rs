// SPDX-License-Identifier: Apache-2.0

//! Assigns objects on a node to the agents that own them, for nodes with several agents.

use anyhow::Result;

use crate::node::Node;
use crate::snapshot;

/// One of the two agents: its mark, the handle of its filters and the common part of its addresses.
#[derive(Debug)]
pub struct Instance {
    mark: &'static str,
    handle: &'static str,
    address: [&'static str; 2],
}

/// The instance that every node of a test has.
pub const FIRST: Instance = Instance {
    mark: "proxy-agent",
    handle: "handle 0x707861",
    address: ["10.96.0.2/", "fd00:96::2/"],
};
/// `--instance=b`.
pub const SECOND: Instance = Instance {
    mark: "proxy-agent-b",
    handle: "handle 0xc2d02",
    address: ["172.20.0.7/", "fd00:172::7/"],
};

/// Returns every object on the node that belongs to one agent. The text contains handles, so that a recreated object
/// shows up as a difference.
///
/// # Errors
/// Returns an error if an object cannot be read.
pub fn of(node: &Node, instance: &Instance) -> Result<String> {
    let mut text = String::new();
    let mut lines_with = |line: &str, marks: &[String]| -> Result<()> {
        let found = node.netns.exec(line)?;
        let is_of = |line: &&str| marks.iter().any(|mark| line.contains(mark.as_str()));
        for line in found.lines().filter(is_of) {
            text.push_str(line.split(" [").next().unwrap_or_default().trim());
            text.push('\n');
        }
        Ok(())
    };
    let comment = [format!("\"{}: ", instance.mark)];
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        lines_with(program, &comment)?;
    }
    let sets = ["d", "n", "D", "N"].map(|role| format!("create {}-{role}", instance.mark));
    lines_with("ipset save", &sets)?;
    let address = instance.address.map(|address| format!(" {address}"));
    lines_with("ip -o address show", &address)?;
    let tables = format!(" {} ", instance.mark);
    let all = node.netns.exec("nft -a -s list tables")?;
    for table in all
        .lines()
        .filter(|line| format!("{line} ").contains(&tables))
    {
        let name = table.split(" #").next().unwrap_or_default();
        text.push_str(&node.netns.exec(&format!("nft -a -s -t list {name}"))?);
    }
    let qdiscs = node.netns.exec("tc qdisc show dev pod0")?;
    if qdiscs.contains("clsact") {
        for hook in ["ingress", "egress"] {
            let filters = node
                .netns
                .exec(&format!("tc filter show dev pod0 {hook}"))?;
            for filter in filters
                .lines()
                .filter(|line| line.contains(instance.handle))
            {
                text.push_str(filter);
                text.push('\n');
            }
        }
    }
    Ok(text)
}

/// Returns the lines of rulesets with the mark of either agent, in an order that does not depend on which agent started
/// first. ACCEPT rules are left out: the agent adds them to tables with rules of other programs, and they are lost when
/// those are replaced.
///
/// # Errors
/// Returns an error if an object cannot be read.
pub fn marked(node: &Node) -> Result<Vec<String>> {
    let mut text = snapshot::nf_tables(&node.netns)?;
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        text.push_str(&node.netns.exec(program)?);
    }
    let is_meant = |line: &&str| line.contains("proxy-agent") && !line.contains(": accept ");
    let lines = text.lines().filter(is_meant);
    let mut lines: Vec<_> = lines.map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

/// Checks that the objects of one agent are unchanged.
///
/// # Errors
/// Returns an error if they are not.
pub fn is_unchanged(node: &Node, instance: &Instance, before: &str, when: &str) -> Result<()> {
    let after = of(node, instance)?;
    if let Some(difference) = snapshot::difference(before, &after) {
        anyhow::bail!("{} {when}:\n{difference}", instance.mark);
    }
    Ok(())
}
