// SPDX-License-Identifier: Apache-2.0

//! Whether the rules use sets, and the sets in a pass: they are created and filled before the rules that use them, and removed after
//! those.

use std::net::{IpAddr, SocketAddr};

use proxy_rules::xtables::{CommandError, Family, Installed};
use tracing::{debug, info};

use super::PART;
use super::plan::Op;
use super::sets::{self, Ipset, Set};
use crate::config;
use crate::instance::Instance;
use crate::reconcile::{Mode, Report, carry_out};

/// Passes with rejected learning rules after which they are given up. A single one may be due to a concurrent change of the table by
/// another program.
const REFUSALS: u32 = 2;
/// The step that may fail, as text for logs.
const LIST: &str = "list the sets";

/// The sets, and whether rules use them.
#[derive(Debug)]
pub struct Learning {
    state: State,
    ipset: Option<Ipset>,
    /// The desired sets.
    sets: Vec<Set>,
    /// Every VIP with every port.
    endpoints: Vec<SocketAddr>,
    /// The kernel is known to support the rules.
    tested: bool,
    refusals: u32,
}

#[derive(Debug)]
enum State {
    On,
    /// With the reason, if learning was wanted.
    Off(Option<String>),
}

impl Learning {
    /// Determines whether the `sets` of `owner` can be created.
    pub async fn open(
        owner: Instance,
        sets: Vec<Set>,
        vips: &[IpAddr],
        ports: &[u16],
        families: &[Family],
        mode: Mode,
    ) -> Self {
        let mut learning = Self::off(owner);
        let Some(ipset) = &learning.ipset else {
            learning.give_up("ipset is not installed".to_owned());
            return learning;
        };
        if let Err(cause) = ipset.probe(families, mode).await {
            learning.give_up(cause.to_string());
            return learning;
        }
        info!(
            part = PART.name(),
            "the rules use ipset to distinguish connections"
        );
        Self {
            state: State::On,
            sets,
            endpoints: config::endpoints(vips, ports).collect(),
            ..learning
        }
    }

    /// Without learning; sets of `owner` are only removed.
    pub fn off(owner: Instance) -> Self {
        Self {
            state: State::Off(None),
            ipset: Ipset::find(owner),
            sets: Vec::new(),
            endpoints: Vec::new(),
            tested: false,
            refusals: 0,
        }
    }

    /// True if the rules use sets.
    pub fn is_on(&self) -> bool {
        matches!(self.state, State::On)
    }

    /// Why they do not, if learning was wanted.
    pub fn why_not(&self) -> Option<&str> {
        match &self.state {
            State::Off(reason) => reason.as_deref(),
            State::On => None,
        }
    }

    /// Turns learning off. The sets become unused.
    pub fn give_up(&mut self, reason: String) {
        self.state = State::Off(Some(reason));
        self.sets.clear();
    }

    /// Creates the sets that `rules` need. Failures are in the report.
    ///
    /// Returns false if rules that use sets must not be changed in this pass.
    pub async fn prepare(&self, rules: &[Op], mode: Mode, report: &mut Report) -> bool {
        let Some(ipset) = &self.ipset else {
            return false;
        };
        let observed = ipset.list().await;
        let Some(observed) = report.attempt(PART, LIST, observed) else {
            return false;
        };
        let refilled: Vec<Family> = rules
            .iter()
            .filter(|op| op.learns())
            .map(|op| op.family)
            .collect();
        let failures = report.failures.len();
        let ops = sets::plan(&self.sets, &observed, &refilled).before;
        self.carry_out(ipset, ops, mode, report).await;
        report.failures.len() == failures
    }

    /// Tries whether iptables and the kernel support the rules, before the first ones are inserted. The sets must exist.
    ///
    /// # Errors
    /// The error of iptables or the kernel.
    pub async fn test(&mut self, installed: &Installed, rules: &[Op]) -> Result<(), String> {
        if self.tested {
            return Ok(());
        }
        for op in rules.iter().filter(|op| op.learns()) {
            let programs = installed.programs(op.flavour, op.family);
            let programs = programs.expect("a table that was read has its programs");
            match programs.test(&op.trial_input()).await {
                Ok(()) => self.tested = true,
                Err(cause @ CommandError::Failed { .. }) => return Err(cause.to_string()),
                // No evidence about the rules.
                Err(cause) => debug!(part = PART.name(), "cannot try the rules: {cause}"),
            }
        }
        Ok(())
    }

    /// Records the result of a pass. Returns the reason if the rules were rejected too often.
    pub fn note_refusal(&mut self, refused: Option<String>) -> Option<String> {
        let Some(reason) = refused else {
            self.refusals = 0;
            return None;
        };
        self.refusals += 1;
        (self.refusals >= REFUSALS).then_some(reason)
    }

    /// Removes undesired sets after the rules that used them. Skipped once everything is `settled`. Failures are in the
    /// report.
    pub async fn remove_unused(&self, settled: bool, mode: Mode, report: &mut Report) {
        if !settled {
            self.remove_all_but(&self.sets, mode, report).await;
        }
    }

    /// Removes all sets of the agent, after the rules. Failures are in the report.
    pub async fn teardown(&self, mode: Mode, report: &mut Report) {
        self.remove_all_but(&[], mode, report).await;
    }

    /// Removes the sets that are not desired.
    async fn remove_all_but(&self, desired: &[Set], mode: Mode, report: &mut Report) {
        let Some(ipset) = &self.ipset else {
            return;
        };
        let observed = ipset.list_leftovers().await;
        if let Some(observed) = report.attempt(PART, LIST, observed) {
            let ops = sets::plan(desired, &observed, &[]).after;
            self.carry_out(ipset, ops, mode, report).await;
        }
    }

    async fn carry_out(&self, ipset: &Ipset, ops: Vec<sets::Op>, mode: Mode, report: &mut Report) {
        let mut apply = sets::Apply::new(ipset, &self.endpoints);
        carry_out(PART, mode, ops, report, async |op| apply.apply(op).await).await;
    }
}
