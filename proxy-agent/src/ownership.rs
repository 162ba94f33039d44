// SPDX-License-Identifier: Apache-2.0

//! Which packet rules are an agent's: its tables and chains by their names, rules in the tables of iptables by
//! their comments.

use proxy_rules::Marks;
use proxy_rules::xtables::SavedRule;

use crate::instance::{self, Instance, tables};

/// The marks of every instance.
pub const MARKS: Marks = Marks {
    word: instance::PROGRAM,
    is_own_name: tables::is_owned,
    is_own_comment: |comment| owner(comment).is_some(),
};

/// The instance whose rule has this comment; none if it is foreign. An agent's comments are its mark alone,
/// or begin with it and a colon.
pub fn owner(comment: &str) -> Option<Instance> {
    let mark = comment.split(':').next()?;
    Instance::of_mark(mark)
}

/// What may be an agent's.
pub trait Owned {
    /// The instance that it belongs to; none if it is foreign.
    fn owner(&self) -> Option<Instance>;
}

impl Owned for SavedRule {
    fn owner(&self) -> Option<Instance> {
        let comments = self.comments_with(instance::PROGRAM);
        comments.iter().find_map(|comment| owner(comment))
    }
}
