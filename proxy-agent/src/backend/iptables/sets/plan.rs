// SPDX-License-Identifier: Apache-2.0

//! Computes the operations from observed to desired sets. Pure.

use std::fmt::{self, Display};

use proxy_rules::ipset::SavedSet;
use proxy_rules::xtables::Family;

use super::Set;

/// An operation on a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates and fills a set.
    Create(Set),
    /// Creates and fills a set and swaps it with the existing one, while rules use it.
    Replace(Set),
    /// Removes a set.
    Destroy(String),
}

/// Operations before the rules are set, and after undesired rules were removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For sets that rules need.
    pub before: Vec<Op>,
    /// For sets that no rule needs any more.
    pub after: Vec<Op>,
}

/// Plans the operations. Sets of the families `refilled` are always replaced: while rules were missing, connections were opened and
/// closed without them.
pub fn plan(desired: &[Set], observed: &[SavedSet], refilled: &[Family]) -> Plan {
    let mut plan = Plan::default();
    let find = |name: &str| observed.iter().find(|saved| saved.name == name);
    for set in desired {
        let Some(saved) = find(&set.name()) else {
            plan.before.push(Op::Create(*set));
            continue;
        };
        if set.is(saved) && !refilled.contains(&set.family) {
            continue;
        }
        if !set.resembles(saved) {
            plan.before.push(Op::Destroy(set.name()));
            plan.before.push(Op::Create(*set));
            continue;
        }
        // Left by a killed agent.
        let unfinished = set.unfinished();
        if find(&unfinished).is_some() {
            plan.before.push(Op::Destroy(unfinished));
        }
        plan.before.push(Op::Replace(*set));
    }
    let is_desired = |saved: &&SavedSet| desired.iter().any(|set| set.name() == saved.name);
    let destroyed = |name: &String| plan.before.contains(&Op::Destroy(name.clone()));
    plan.after = observed
        .iter()
        .filter(|saved| !is_desired(saved))
        .map(|saved| saved.name.clone())
        .filter(|name| !destroyed(name))
        .map(Op::Destroy)
        .collect();
    plan
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filled = "filled with the proxy's connections";
        match self {
            Self::Create(set) => write!(f, "create set {set}, {filled}"),
            Self::Replace(set) => write!(f, "replace set {set}, {filled}"),
            Self::Destroy(name) => write!(f, "destroy set {name}"),
        }
    }
}
