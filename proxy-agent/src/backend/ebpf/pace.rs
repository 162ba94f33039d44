// SPDX-License-Identifier: Apache-2.0

//! Limits the number of links that get their first tcx program in one pass.
//!
//! For each first attachment by tcx the kernel waits for an RCU grace period, about 12 ms, and holds the RTNL lock meanwhile
//! (docs/kernel-facts.md). A clsact filter takes 0.2 ms. On a node with very many links, most of them therefore get a filter in
//! the first pass and their tcx program in later ones, a few at a time: all links are attached soon, and other programs that
//! change links do not wait for seconds.

use std::time::Duration;

use super::attachment::AttachMode;
use crate::config::{Config, TcAttach};
use crate::reconcile::Mode;

/// Number of links per pass.
const AT_ONCE: usize = 16;
/// Delay between two such passes.
pub const BETWEEN: Duration = Duration::from_secs(1);

/// The limit of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Number of links that may get their first tcx program.
    pub at_once: usize,
    /// Whether links without an attachment get a filter. Only at the start: a qdisc on a new link may conflict with the program
    /// that sets up the link.
    pub is_first: bool,
}

impl Pace {
    /// The limit of this pass; none if all links get their tcx program in it, because tcx was requested by name or no pass will
    /// follow. `is_first`: no pass was before. A dry run accepts the state of links that a running agent defers.
    pub fn of(config: &Config, mode: AttachMode, is_first: bool, run: Mode) -> Option<Self> {
        if config.tc_attach != TcAttach::Auto || mode != AttachMode::Tcx {
            return None;
        }
        match run {
            Mode::Apply => config.daemon.then_some(Self {
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
