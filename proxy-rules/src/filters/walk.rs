// SPDX-License-Identifier: Apache-2.0

//! Simulates the path of a packet through the chains of a table, as far as it can be known.

use std::collections::BTreeMap;

/// The depth to which jumps are followed. It exceeds the kernel's limit (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 17;

/// The result of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// The rule certainly does not match.
    No,
    /// The result depends on an unknown property.
    Maybe,
    /// The result depends only on the link or on the client's address, which some packets may well have.
    Likely,
    /// The rule certainly matches.
    Yes,
}

/// The effect of a rule on packets that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Evaluation continues with the next rule.
    Nothing,
    /// The packet is accepted, and evaluation of the table ends.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Evaluation of the chain ends.
    Return,
    /// Evaluation continues in another chain and then returns.
    Jump(String),
    /// Evaluation continues in another chain and does not return.
    Goto(String),
    /// The effect is unknown.
    Unknown,
}

/// A rule, evaluated for one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The result of the match.
    pub matches: Truth,
    /// The effect.
    pub action: Action,
}

/// Chains by name.
pub type Chains = BTreeMap<String, Vec<Step>>;

/// The result of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The packet passes.
    Passes,
    /// The packet passes, unless a rule drops it because of its link or the client's address.
    MayDrop,
    /// The packet is dropped, unless a rule that may match lets it pass.
    MayPass,
    /// The packet is dropped.
    Dropped,
}

/// Returns the result for a packet in a base chain, and the chain whose rule causes it: the one that drops the packet, or
/// that may, if a rule does and not the policy. Of the rules that only may drop it, those count that drop packets of a link
/// or a client in a chain that the packet certainly reaches. Others, such as those of Calico for the links of pods or of
/// kube-proxy for a mark, rarely concern the VIP.
pub fn walk<'a>(chains: &'a Chains, base: &str, drops_by_policy: bool) -> (Fate, Option<&'a str>) {
    let mut walker = Walker {
        chains,
        known: BTreeMap::new(),
    };
    let course = walker.follow(base, DEPTH);
    let dropped = match course.end {
        Some(End::Accepted) => false,
        Some(End::Dropped) => true,
        None => drops_by_policy,
    };
    match (dropped, course.may_pass) {
        (false, _) if course.may_drop_in.is_some() => (Fate::MayDrop, course.may_drop_in),
        (false, _) => (Fate::Passes, None),
        (true, true) => (Fate::MayPass, course.dropped_in),
        (true, false) => (Fate::Dropped, course.dropped_in),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
}

/// The effect of a chain on a packet.
#[derive(Debug, Clone, Copy, Default)]
struct Course<'a> {
    /// The verdict, or `None` if the chain ends and evaluation returns to the calling chain.
    end: Option<End>,
    /// True if a rule that may match lets the packet pass or returns.
    may_pass: bool,
    /// The chain of the first rule that drops packets of a link or a client.
    may_drop_in: Option<&'a str>,
    /// The chain whose rule drops the packet.
    dropped_in: Option<&'a str>,
}

struct Walker<'a> {
    chains: &'a Chains,
    /// The results by chain and remaining depth. Without them, chains that are reached on several paths would be
    /// evaluated once for each combination of paths.
    known: BTreeMap<(&'a str, usize), Course<'a>>,
}

impl<'a> Walker<'a> {
    fn follow(&mut self, name: &str, depth: usize) -> Course<'a> {
        let Some(depth) = depth.checked_sub(1) else {
            return Course::default();
        };
        let Some((name, steps)) = self.chains.get_key_value(name) else {
            return Course::default();
        };
        if let Some(known) = self.known.get(&(name.as_str(), depth)) {
            return *known;
        }
        let course = self.walk(name, steps, depth);
        self.known.insert((name.as_str(), depth), course);
        course
    }

    fn walk(&mut self, name: &'a str, steps: &[Step], depth: usize) -> Course<'a> {
        let mut may_pass = false;
        let mut dropped_in = None;
        let mut may_drop_in = None;
        for step in steps {
            let certain = match step.matches {
                Truth::No => continue,
                Truth::Maybe | Truth::Likely => false,
                Truth::Yes => true,
            };
            let end = match &step.action {
                Action::Accept if certain => Some(End::Accepted),
                Action::Drop if certain => {
                    dropped_in = Some(name);
                    Some(End::Dropped)
                }
                Action::Return if certain => None,
                Action::Drop if step.matches == Truth::Likely => {
                    may_drop_in = may_drop_in.or(Some(name));
                    continue;
                }
                Action::Nothing | Action::Drop => continue,
                // The packet may return or be accepted before a later rule drops it.
                Action::Accept | Action::Return | Action::Unknown => {
                    may_pass = true;
                    continue;
                }
                Action::Jump(target) | Action::Goto(target) => {
                    let there = self.follow(target, depth);
                    may_pass |= there.may_pass || (!certain && there.end == Some(End::Accepted));
                    if certain {
                        may_drop_in = may_drop_in.or(there.may_drop_in);
                    }
                    let leaves = matches!(step.action, Action::Goto(_));
                    if !certain || !(leaves || there.end.is_some()) {
                        continue;
                    }
                    dropped_in = there.dropped_in;
                    there.end
                }
            };
            return Course {
                end,
                may_pass,
                may_drop_in,
                dropped_in,
            };
        }
        Course {
            end: None,
            may_pass,
            may_drop_in,
            dropped_in: None,
        }
    }
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
        use Truth::{Likely, Maybe, No, Yes};
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
            (vec![step(Likely, Drop)], vec![], false, Fate::MayDrop),
            (vec![step(Likely, Drop)], vec![], true, Fate::Dropped),
            (vec![step(Likely, Accept)], vec![], true, Fate::MayPass),
            (
                vec![step(Yes, Accept), step(Likely, Drop)],
                vec![],
                false,
                Fate::Passes,
            ),
            (
                vec![step(Yes, Jump(to()))],
                vec![step(Likely, Drop), step(Yes, Accept)],
                true,
                Fate::MayDrop,
            ),
            // Calico's chains for the links of pods.
            (
                vec![step(Likely, Goto(to()))],
                vec![step(Likely, Drop), step(Yes, Drop)],
                false,
                Fate::Passes,
            ),
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
            assert_eq!(walk(&chains, "base", drops).0, fate, "{base:?}");
        }
    }

    #[test]
    fn the_chain_that_drops_is_named() {
        let jump = step(Truth::Yes, Action::Jump("check".to_owned()));
        let one = |matches| {
            let check = vec![
                step(Truth::Maybe, Action::Drop),
                step(matches, Action::Drop),
            ];
            let chains = chains(&[("output", vec![jump.clone()]), ("check", check)]);
            walk(&chains, "output", false).1.map(str::to_owned)
        };
        assert_eq!(one(Truth::Yes).as_deref(), Some("check"));
        assert_eq!(one(Truth::No), None);
        assert_eq!(one(Truth::Maybe), None);
        let own = chains(&[("output", vec![step(Truth::Yes, Action::Drop)])]);
        assert_eq!(walk(&own, "output", false).1, Some("output"));
        assert_eq!(walk(&own, "none", false).1, None);
    }

    /// Sixteen chains, each of which jumps ten times to the next one.
    #[test]
    fn chains_that_are_reached_in_many_ways_are_walked_once() {
        let level = |at: usize| {
            let to = Action::Jump((at + 1).to_string());
            (at.to_string(), vec![step(Truth::Yes, to); 10])
        };
        let mut chains: Chains = (0..15).map(level).collect();
        chains.insert("15".to_owned(), vec![step(Truth::Maybe, Action::Accept)]);
        assert_eq!(walk(&chains, "0", true).0, Fate::MayPass);
    }

    proptest! {
        #[test]
        fn any_tangle_ends(steps in prop::collection::vec((0_usize..3, 0_usize..3, 0_u8..3), 0..12)) {
            let mut chains = Chains::new();
            for (from, to, kind) in steps {
                let matches = [Truth::No, Truth::Maybe, Truth::Yes][usize::from(kind)];
                let action = Action::Jump(to.to_string());
                let chain = chains.entry(from.to_string()).or_default();
                chain.push(step(matches, action));
            }
            let _ = walk(&chains, "0", true);
        }
    }
}
