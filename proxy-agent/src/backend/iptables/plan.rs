// SPDX-License-Identifier: Apache-2.0

//! Computes the operations from observed to desired rules. Pure.
//!
//! Missing rules are inserted at the top of their chains and then kept where they are: otherwise the agent and a CNI that keeps its
//! own jumps on top would move their rules forever.

use std::fmt::{self, Display, Write as _};

use proxy_rules::xtables::{Family, Flavour, SavedRule, SavedTable, words};

use super::rules::{Rule, Table};
use crate::backend::tables;
use crate::instance::Instance;
use crate::ownership::Owned as _;

/// All changes of one table, made in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// The flavour.
    pub flavour: Flavour,
    /// The family.
    pub family: Family,
    /// The table.
    pub table: Table,
    /// Rules of the agent to delete, each copy separately, as printed.
    pub deletions: Vec<SavedRule>,
    /// Rules to insert at the top of their chains, in their final order.
    pub insertions: Vec<Rule>,
    /// Chains of the agent to create before.
    pub new_chains: Vec<String>,
    /// Chains of the agent to delete afterwards.
    pub old_chains: Vec<String>,
}

/// The changes of `owner` in one table; none if it is as desired. They never concern rules of others.
pub fn plan(
    owner: Instance,
    flavour: Flavour,
    family: Family,
    table: Table,
    desired: &[Rule],
    observed: &SavedTable,
) -> Option<Op> {
    let mut present = owned(table, observed);
    present.retain(|(saved, _)| saved.owner() == Some(owner));
    // A deletion removes the topmost copy, and a copy below may be after a foreign DROP. So all duplicates are deleted and one rule
    // is inserted at the top, in the same transaction. Likewise for rules that depend on each other's order.
    let kept = |rule: &Rule| {
        let group = |other: &&Rule| other.group() == rule.group();
        let there = present.iter().filter_map(|(_, rule)| rule.as_ref());
        desired.contains(rule) && there.filter(group).eq(desired.iter().filter(group))
    };
    let own_chain = tables::guard_name(owner);
    let is_there = observed.has_chain(&own_chain);
    let is_wanted = desired.iter().any(|rule| rule.kind.is_in_own_chain());
    let chain = |when: bool| Vec::from_iter(when.then(|| own_chain.clone()));
    let op = Op {
        new_chains: chain(table == Table::Raw && is_wanted && !is_there),
        old_chains: chain(table == Table::Raw && !is_wanted && is_there),
        flavour,
        family,
        table,
        deletions: present
            .iter()
            .filter(|(_, rule)| !rule.is_some_and(|rule| kept(&rule)))
            .map(|(saved, _)| (*saved).clone())
            .collect(),
        insertions: desired.iter().filter(|rule| !kept(rule)).copied().collect(),
    };
    let is_empty = op.deletions.is_empty() && op.insertions.is_empty() && op.old_chains.is_empty();
    (!is_empty).then_some(op)
}

/// Orders operations so that no packet is untracked while a rule that must see it is missing: ACCEPT rules and those that see DNAT
/// are inserted before NOTRACK rules and deleted after them.
pub fn order(ops: &mut [Op]) {
    ops.sort_by_key(|op| match (op.insertions.is_empty(), op.table) {
        (false, Table::Filter) => 0,
        (false, Table::Mangle) => 1,
        (false, Table::Raw) => 2,
        (true, Table::Raw) => 3,
        (true, Table::Mangle) => 4,
        (true, Table::Filter) => 5,
    });
}

/// The rules of agents in a table, each with its meaning; none if its owner would not write such a rule.
fn owned(table: Table, observed: &SavedTable) -> Vec<(&SavedRule, Option<Rule>)> {
    let owned = |saved: &'_ SavedRule| {
        let owner = saved.owner()?;
        let words = words(&saved.spec);
        Some(words.and_then(|words| Rule::recognise(owner, table, &saved.chain, &words)))
    };
    let rules = observed.rules.iter();
    rules
        .filter_map(|saved| Some((saved, owned(saved)?)))
        .collect()
}

fn copies(owned: &[(&SavedRule, Option<Rule>)], wanted: &Rule) -> usize {
    let same = owned.iter().filter(|(_, rule)| *rule == Some(*wanted));
    same.count()
}

impl Op {
    /// The input of `iptables-restore --noflush` for this operation: one transaction.
    pub fn restore_input(&self) -> String {
        let mut input = format!("*{}\n", self.table);
        self.write_chains(&mut input);
        for rule in &self.deletions {
            let _ = writeln!(input, "-D {} {}", rule.chain, rule.spec);
        }
        self.write_insertions(&mut input);
        for chain in &self.old_chains {
            let _ = writeln!(input, "-X {chain}");
        }
        input.push_str("COMMIT\n");
        input
    }

    /// The input that only inserts the rules, to test whether iptables and the kernel support them.
    pub fn trial_input(&self) -> String {
        let mut input = format!("*{}\n", self.table);
        self.write_chains(&mut input);
        self.write_insertions(&mut input);
        input.push_str("COMMIT\n");
        input
    }

    fn write_chains(&self, input: &mut String) {
        for chain in &self.new_chains {
            let _ = writeln!(input, ":{chain} - [0:0]");
        }
    }

    fn write_insertions(&self, input: &mut String) {
        // Each insertion is at the top, so the last one is inserted first.
        for rule in self.insertions.iter().rev() {
            let _ = writeln!(input, "-I {} 1 {}", rule.chain(), rule.spec());
        }
    }

    /// True if it inserts rules that use the sets.
    pub fn learns(&self) -> bool {
        self.insertions.iter().any(|rule| rule.kind.is_learning())
    }

    /// The first inserted rule that a table does not contain exactly once.
    pub fn missing_in(&self, observed: &SavedTable) -> Option<&Rule> {
        let owned = owned(self.table, observed);
        let mut insertions = self.insertions.iter();
        insertions.find(|rule| copies(&owned, rule) != 1)
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, flavour) = (self.family.program(), self.flavour);
        write!(f, "{family}-{flavour} {}:", self.table)?;
        let mut separator = " ";
        for rule in &self.deletions {
            write!(f, "{separator}delete {} {}", rule.chain, rule.spec)?;
            separator = "; ";
        }
        for rule in &self.insertions {
            let (chain, spec) = (rule.chain(), rule.spec());
            write!(f, "{separator}insert {chain} {spec}")?;
            separator = "; ";
        }
        for chain in &self.old_chains {
            write!(f, "{separator}delete chain {chain}")?;
            separator = "; ";
        }
        Ok(())
    }
}
