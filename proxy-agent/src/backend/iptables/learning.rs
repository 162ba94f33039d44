// SPDX-License-Identifier: Apache-2.0

//! Whether the rules learn, and the care for the sets in a pass: they are made and filled before
//! the rules that use them, and removed after them.

use std::net::{IpAddr, SocketAddr};

use tracing::{debug, info};

use super::PART;
use super::command::CommandError;
use super::flavour::Installed;
use super::plan::Op;
use super::rules::Family;
use super::sets::{self, Ipset, Set};
use crate::config;
use crate::instance::Instance;
use crate::reconcile::{Mode, Report, carry_out, failed};

/// After so many passes in which learning rules were refused they are given up. One may be bad
/// luck: somebody else may have changed the table in the same moment.
const REFUSALS: u32 = 2;

/// The sets, and whether rules use them.
#[derive(Debug)]
pub struct Learning {
    state: State,
    ipset: Option<Ipset>,
    /// The sets as they should be.
    sets: Vec<Set>,
    /// The VIPs with each of the ports.
    endpoints: Vec<SocketAddr>,
    /// The kernel is known to have what the rules are made of.
    tested: bool,
    refusals: u32,
}

#[derive(Debug)]
enum State {
    On,
    /// The reason, where learning was wanted.
    Off(Option<String>),
}

impl Learning {
    /// Finds out whether `sets` of `owner` can be made here.
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
        info!(part = PART, "the rules learn connections with ipset");
        Self {
            state: State::On,
            sets,
            endpoints: config::endpoints(vips, ports).collect(),
            ..learning
        }
    }

    /// No learning is wanted; sets of `owner` are only removed.
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

    /// True if the rules use the sets.
    pub fn is_on(&self) -> bool {
        matches!(self.state, State::On)
    }

    /// Why they do not, where that is wanted.
    pub fn why_not(&self) -> Option<&str> {
        match &self.state {
            State::Off(reason) => reason.as_deref(),
            State::On => None,
        }
    }

    /// Does without from now on. The sets become unused.
    pub fn give_up(&mut self, reason: String) {
        self.state = State::Off(Some(reason));
        self.sets.clear();
    }

    /// Makes the sets that `rules` need. Errors go to the report.
    ///
    /// False: rules that use the sets must not be touched in this pass.
    pub async fn prepare(&self, rules: &[Op], mode: Mode, report: &mut Report) -> bool {
        let Some(ipset) = &self.ipset else {
            return false;
        };
        let observed = match ipset.list().await {
            Ok(observed) => observed,
            Err(cause) => {
                failed(PART, "list the sets", &cause, report);
                return false;
            }
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

    /// Tries whether iptables and the kernel know what the rules are made of, once before the first
    /// ones are set. The sets must be there.
    ///
    /// # Errors
    /// What they answer.
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
                // That says nothing about the rules.
                Err(cause) => debug!(part = PART, "the rules were not tried: {cause}"),
            }
        }
        Ok(())
    }

    /// Notes how a pass went. Returns the reason if it was refused once too often.
    pub fn note_refusal(&mut self, refused: Option<String>) -> Option<String> {
        let Some(reason) = refused else {
            self.refusals = 0;
            return None;
        };
        self.refusals += 1;
        (self.refusals >= REFUSALS).then_some(reason)
    }

    /// Removes the sets that should not be there, after the rules that used them. Where no rule
    /// uses any, only until everything is `settled`. Errors go to the report.
    pub async fn remove_unused(&self, settled: bool, mode: Mode, report: &mut Report) {
        let Some(ipset) = &self.ipset else {
            return;
        };
        if settled {
            return;
        }
        match ipset.list_leftovers().await {
            Ok(observed) => {
                let ops = sets::plan(&self.sets, &observed, &[]).after;
                self.carry_out(ipset, ops, mode, report).await;
            }
            Err(cause) => failed(PART, "list the sets", &cause, report),
        }
    }

    /// Removes every set of ours, after the rules. Errors go to the report.
    pub async fn teardown(&self, mode: Mode, report: &mut Report) {
        let Some(ipset) = &self.ipset else {
            return;
        };
        match ipset.list_leftovers().await {
            Ok(observed) => {
                let ops = sets::plan(&[], &observed, &[]).after;
                self.carry_out(ipset, ops, mode, report).await;
            }
            Err(cause) => failed(PART, "list the sets", &cause, report),
        }
    }

    async fn carry_out(&self, ipset: &Ipset, ops: Vec<sets::Op>, mode: Mode, report: &mut Report) {
        let mut apply = sets::Apply::new(ipset, &self.endpoints);
        carry_out(PART, mode, ops, report, async |op| apply.apply(op).await).await;
    }
}
