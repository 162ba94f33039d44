// SPDX-License-Identifier: Apache-2.0

//! Walks the chains of a table as a packet would, as far as it is known where it goes.

use std::collections::BTreeMap;

/// How deep jumps are followed: more than the kernel allows (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 17;

/// Whether a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// Certainly not.
    No,
    /// It depends on what is not known.
    Maybe,
    /// Certainly.
    Yes,
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Goes on with the next rule.
    Nothing,
    /// Ends the table.
    Accept,
    /// Ends the packet.
    Drop,
    /// Ends the chain.
    Return,
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Goes on in another chain.
    Goto(String),
    /// Something that is not known.
    Unknown,
}

/// A rule for one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Whether it matches.
    pub matches: Truth,
    /// What it does.
    pub action: Action,
}

/// Chains by name.
pub type Chains = BTreeMap<String, Vec<Step>>;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It passes.
    Passes,
    /// It is dropped unless a rule lets it pass that may match.
    MayPass,
    /// It is dropped.
    Dropped,
}

/// What becomes of a packet in a base chain. What may drop it is not counted: most of that is not
/// meant for the VIP.
pub fn walk(chains: &Chains, base: &str, drops_by_policy: bool) -> Fate {
    let mut may_pass = false;
    let dropped = match follow(chains, base, &mut may_pass, DEPTH) {
        Some(End::Accepted) => false,
        Some(End::Dropped) => true,
        None => drops_by_policy,
    };
    match (dropped, may_pass) {
        (false, _) => Fate::Passes,
        (true, true) => Fate::MayPass,
        (true, false) => Fate::Dropped,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
}

fn follow(chains: &Chains, name: &str, may_pass: &mut bool, depth: usize) -> Option<End> {
    let depth = depth.checked_sub(1)?;
    for step in chains.get(name)? {
        let certain = match step.matches {
            Truth::No => continue,
            Truth::Maybe => false,
            Truth::Yes => true,
        };
        match &step.action {
            Action::Accept if certain => return Some(End::Accepted),
            Action::Drop if certain => return Some(End::Dropped),
            Action::Return if certain => return None,
            // What may drop it is not counted.
            Action::Nothing | Action::Drop => {}
            // It may come back before the drop that follows.
            Action::Accept | Action::Return | Action::Unknown => *may_pass = true,
            Action::Jump(target) | Action::Goto(target) => {
                let mut there = false;
                let end = follow(chains, target, &mut there, depth);
                *may_pass |= there || (!certain && end == Some(End::Accepted));
                let leaves = matches!(step.action, Action::Goto(_));
                if certain && (leaves || end.is_some()) {
                    return end;
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(matches: Truth, action: Action) -> Step {
        Step { matches, action }
    }

    fn chains(list: &[(&str, Vec<Step>)]) -> Chains {
        list.iter()
            .map(|(name, steps)| ((*name).to_owned(), steps.clone()))
            .collect()
    }

    #[test]
    fn the_first_certain_end_counts() {
        use Action::{Accept, Drop, Goto, Jump, Return};
        use Truth::{Maybe, No, Yes};
        let to = || "other".to_owned();
        for (base, other, drops, fate) in [
            (vec![], vec![], false, Fate::Passes),
            (vec![], vec![], true, Fate::Dropped),
            (vec![step(No, Accept)], vec![], true, Fate::Dropped),
            (vec![step(Maybe, Accept)], vec![], true, Fate::MayPass),
            (
                vec![step(Yes, Accept), step(Yes, Drop)],
                vec![],
                true,
                Fate::Passes,
            ),
            (vec![step(Maybe, Drop)], vec![], false, Fate::Passes),
            (vec![step(Yes, Drop)], vec![], false, Fate::Dropped),
            (
                vec![step(Yes, Jump(to()))],
                vec![step(Yes, Accept)],
                true,
                Fate::Passes,
            ),
            (
                vec![step(Maybe, Jump(to()))],
                vec![step(Yes, Accept)],
                true,
                Fate::MayPass,
            ),
            (
                vec![step(Yes, Jump(to()))],
                vec![step(Yes, Return)],
                true,
                Fate::Dropped,
            ),
            (
                vec![step(Yes, Goto(to())), step(Yes, Accept)],
                vec![],
                true,
                Fate::Dropped,
            ),
            (
                vec![step(Yes, Jump(to())), step(Yes, Accept)],
                vec![],
                true,
                Fate::Passes,
            ),
            (
                vec![step(Yes, Jump("base".to_owned()))],
                vec![],
                true,
                Fate::Dropped,
            ),
        ] {
            let chains = chains(&[("base", base.clone()), ("other", other)]);
            assert_eq!(walk(&chains, "base", drops), fate, "{base:?}");
        }
    }

    proptest! {
        #[test]
        fn any_tangle_ends(steps in prop::collection::vec((0_usize..3, 0_usize..3, 0_u8..3), 0..12)) {
            let mut chains = Chains::new();
            for (from, to, kind) in steps {
                let matches = [Truth::No, Truth::Maybe, Truth::Yes][usize::from(kind)];
                let action = Action::Jump(to.to_string());
                let chain = chains.entry(from.to_string()).or_default();
                if chain.len() < 2 {
                    chain.push(step(matches, action));
                }
            }
            let _ = walk(&chains, "0", true);
        }
    }
}
