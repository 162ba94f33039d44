// SPDX-License-Identifier: Apache-2.0

//! How many links get their first tcx program in one pass.
//!
//! The kernel waits for an RCU grace period in each first attachment by tcx, some 12 ms, and holds the lock of all links
//! (RTNL) meanwhile (docs/kernel-facts.md). A clsact filter takes 0.2 ms. So on a node with very many links most of them
//! get a filter at the first pass, and their tcx program in later ones, a few at a time: the node is attached at once,
//! and others that change links do not wait for seconds.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Settings;
use super::attach::AttachMode;
use super::hook::Hook;
use super::observe::Observed;
use super::plan::Desired;
use crate::config::TcAttach;
use crate::reconcile::Mode;

/// How many links at once.
const AT_ONCE: usize = 16;
/// How long after one pass the next few links have their turn.
pub const BETWEEN: Duration = Duration::from_secs(1);

/// The pace of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How many links may get their first tcx program.
    pub at_once: usize,
    /// Whether links that have nothing of ours get a filter. Only at the start: a qdisc on a link that has just come
    /// may be in the way of whoever sets it up.
    pub is_first: bool,
}

impl Pace {
    /// The pace of this pass; none where all links get their tcx program in it: it is asked for by name, or no pass will
    /// follow. `is_first`: no pass was before. A dry run lets those links wait that the agent lets wait.
    pub fn of(settings: &Settings, mode: AttachMode, is_first: bool, run: Mode) -> Option<Self> {
        if settings.tc_attach != TcAttach::Auto || mode != AttachMode::Tcx {
            return None;
        }
        match run {
            Mode::Apply => settings.goes_on.then_some(Self {
                at_once: AT_ONCE,
                is_first,
            }),
            Mode::DryRun => Some(Self {
                at_once: 0,
                is_first: false,
            }),
        }
    }
}

/// The links whose turn comes in a later pass: until then a filter stands in for their tcx program. Guarded links never
/// wait.
pub fn waiting(desired: &Desired, observed: &Observed) -> BTreeSet<u32> {
    let Some(pace) = desired.pace else {
        return BTreeSet::new();
    };
    let is_missing =
        |hook: &Hook, index| observed.by_tcx(*hook, index, desired) == Some((false, false));
    let has_filter = |index| {
        Hook::ALL
            .iter()
            .any(|hook| observed.filters.contains_key(&(*hook, index)))
    };
    let unguarded = desired.links.keys().copied();
    unguarded
        .filter(|index| !desired.guarded.contains_key(index))
        .filter(|index| pace.is_first || has_filter(*index))
        .filter(|index| desired.hooks.keys().any(|hook| is_missing(hook, *index)))
        .skip(pace.at_once)
        .collect()
}
