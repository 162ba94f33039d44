// SPDX-License-Identifier: Apache-2.0

//! From desired and observed sets to operations. Pure.

use std::fmt::{self, Display};

use super::super::rules::Family;
use super::{SavedSet, Set};

/// One change of the sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes a set that is not there, and fills it.
    Create(Set),
    /// Makes and fills a set and puts it in the place of the one that is there, under the rules
    /// that use it.
    Replace(Set),
    /// Removes a set.
    Destroy(String),
}

/// What has to change: before the rules are set, and once no rule is left that should not be there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the rules need.
    pub before: Vec<Op>,
    /// What no rule needs any more.
    pub after: Vec<Op>,
}

/// Plans the changes. Sets of the families `refilled` are replaced in any case: while rules were
/// missing, connections have come and gone that the sets do not know of.
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
        // Left by an agent that was killed.
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
