// SPDX-License-Identifier: Apache-2.0

//! The benchmark: the ways to keep conntrack out of the path side by side, in one run, on nodes of
//! their own, and what the agent itself costs.
//!
//! Every variant has its node for as long as the run lasts. In each round every variant has its turn, so that other
//! work of the machine affects all alike; the benchmark compares medians and ratios within a round. Parts: [`paths`]
//! the variants on every way, [`scale`] the same with much on the node, [`programs`] each eBPF program alone, [`costs`]
//! the agent, [`upstream`] all the way through a proxy.

pub mod bars;
pub mod clock;
pub mod compare;
pub mod costs;
pub mod document;
pub mod events;
pub mod host;
pub mod paths;
pub mod plot;
pub mod programs;
pub mod result;
pub mod scale;
pub mod statistics;
pub mod table;
pub mod traffic;
pub mod upstream;
pub mod variant;

use std::time::Duration;

/// How long and how often is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds, after one to warm up.
    pub rounds: usize,
    /// How long each variant works in each round.
    pub slot: Duration,
    /// The form for CI: fewer variants, paths and sizes.
    pub short: bool,
}

impl Effort {
    /// The effort of published results.
    pub const FULL: Self = Self {
        rounds: 12,
        slot: Duration::from_millis(40),
        short: false,
    };
    /// The effort of CI.
    pub const SHORT: Self = Self {
        rounds: 10,
        slot: Duration::from_millis(12),
        short: true,
    };
}
