// SPDX-License-Identifier: Apache-2.0

//! The `nftables` backend: rules and sets of `nf_tables` decide each connection at its SYN. It needs
//! no program, no bpffs and no capability but `NET_ADMIN`.
//!
//! Everything it keeps is in the tables, which live on without the agent.

mod guard;
mod plan;
mod ruleset;
pub mod statistics;
#[cfg(test)]
mod tests;

use tracing::warn;

use self::plan::Op;
use self::ruleset::Settings;
use super::live::Live;
use super::tables;
use crate::config::{Config, Guard};
use crate::guard::Links;
use crate::netfilter::{self, Socket, Table};
use crate::reconcile::{Mode, Report, carry_out};

/// The name of this part in reports and logs.
pub const PART: &str = "nftables";

/// The backend.
pub struct Nftables {
    settings: Settings,
    /// Nothing was put in place yet: what is untracked now was another backend's.
    takes_over: bool,
    /// What links are to the guard.
    links: Links,
}

impl Nftables {
    /// Has the kernel check the rules. Nothing is in place yet.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn open(config: &Config, mode: Mode) -> Result<Self, netfilter::Error> {
        let settings = Settings {
            instance: config.instance,
            endpoints: config.endpoints().collect(),
            max_connections: config.max_connections,
            guard: config.guard != Guard::Off,
            allow_from: config.allow_from.clone(),
        };
        let mut socket = Socket::open()?;
        if mode == Mode::Apply {
            for table in ruleset::tables(&settings, &Live::default()) {
                if table.chains.is_empty() {
                    continue;
                }
                let rehearsal = Table {
                    name: tables::REHEARSAL.to_owned(),
                    ..table
                };
                rehearsal.rehearse(&mut socket)?;
            }
        }
        Ok(Self {
            settings,
            takes_over: true,
            links: Links::default(),
        })
    }

    /// Makes the tables as desired for what links are to the guard.
    pub async fn reconcile(&mut self, links: &Links, mode: Mode, report: &mut Report) {
        let follows = self.links != *links;
        self.links.clone_from(links);
        let guard = guard::tables(&self.settings, links);
        let desired = [
            ruleset::tables(&self.settings, &Live::default()),
            guard.clone(),
        ]
        .concat();
        let observed = tables::read(PART, &desired, report);
        let ops = plan::plan(&desired, &observed);
        let of_guard = |op: &&Op| follows && op.is_about(&guard);
        let routine: Vec<_> = ops.iter().filter(of_guard).map(Op::to_string).collect();
        carry_out(PART, mode, ops, report, async |op| self.apply(op)).await;
        report.mark_routine(PART, &routine);
        if mode == Mode::Apply {
            self.takes_over = false;
        }
    }

    fn apply(&self, op: &Op) -> Result<(), netfilter::Error> {
        match op {
            Op::Install { tables } => {
                let wanted: Vec<_> = tables.iter().map(|(table, _)| table.title()).collect();
                let guard = guard::tables(&self.settings, &self.links);
                let is_wanted = |table: &Table| wanted.contains(&table.title());
                // Who is connected is asked only if that is to be remembered.
                let live = if tables.iter().all(|(table, _)| {
                    guard
                        .iter()
                        .any(|of_guard| of_guard.title() == table.title())
                }) {
                    Live::default()
                } else {
                    self.live()
                };
                let mut filled = [ruleset::tables(&self.settings, &live), guard].concat();
                filled.retain(is_wanted);
                tables::install(&filled)
            }
            Op::Delete { table } => tables::delete(table),
        }
    }

    /// What the tables are to know of connections that are open already. Those that another backend
    /// has kept from conntrack stay untracked; later on, when somebody has removed the tables, it
    /// is too late to tell them from others, and they become tracked.
    fn live(&self) -> Live {
        match Live::read(&self.settings.endpoints) {
            Ok(live) if self.takes_over => live,
            Ok(live) => Live {
                untracked: Vec::new(),
                ..live
            },
            Err(error) => {
                warn!(
                    part = PART,
                    "connections that are untracked now become tracked: {error}"
                );
                Live::default()
            }
        }
    }
}
