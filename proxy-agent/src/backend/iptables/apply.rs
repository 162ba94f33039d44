// SPDX-License-Identifier: Apache-2.0

//! Carries out operations, each in one transaction, and verifies that the rules exist afterwards.

use std::collections::BTreeSet;

use proxy_rules::xtables::{Family, Flavour, Installed, snapshot};

use super::Error;
use super::plan::Op;
use super::rules::Table;

/// Carries out the operations of one pass.
#[derive(Debug)]
pub struct Apply<'a> {
    installed: &'a Installed,
    /// Tables for which it is unknown whether the agent's rules are in place.
    unknown: BTreeSet<(Flavour, Family, Table)>,
}

impl<'a> Apply<'a> {
    /// `unknown` are the tables for which it is unknown whether the agent's rules are in place.
    pub fn new(
        installed: &'a Installed,
        unknown: impl IntoIterator<Item = (Flavour, Family, Table)>,
    ) -> Self {
        Self {
            installed,
            unknown: unknown.into_iter().collect(),
        }
    }

    /// Carries out one operation. Rules that must see untracked and translated packets are inserted before the NOTRACK rules,
    /// see [`order`](super::plan::order).
    ///
    /// # Errors
    /// The table was not changed, or does not contain the rules afterwards.
    pub async fn apply(&mut self, op: &Op) -> Result<(), Error> {
        let place = |table| (op.flavour, op.family, table);
        let untracks = op.table == Table::Raw && !op.insertions.is_empty();
        if untracks && self.unknown.contains(&place(Table::Filter)) {
            return Err(Error::NotAccepted);
        }
        if untracks && op.learns() && self.unknown.contains(&place(Table::Mangle)) {
            return Err(Error::NotNoted);
        }
        let outcome = self.transact(op).await;
        if outcome.is_err() {
            self.unknown.insert(place(op.table));
        }
        outcome
    }

    async fn transact(&self, op: &Op) -> Result<(), Error> {
        let programs = self
            .installed
            .programs(op.flavour, op.family)
            .expect("a table that was read has its programs");
        programs.restore(&op.restore_input()).await?;
        if op.insertions.is_empty() {
            return Ok(());
        }
        // On kernels without the modules, rules may vanish without an error.
        let table = op.table.name();
        let saved = snapshot::read(op.flavour, programs, table).await?;
        let observed = saved.table(table).cloned().unwrap_or_default();
        match op.missing_in(&observed) {
            None => Ok(()),
            Some(rule) => Err(Error::Vanished {
                program: programs.restore.display().to_string(),
                rule: rule.to_string(),
            }),
        }
    }
}
