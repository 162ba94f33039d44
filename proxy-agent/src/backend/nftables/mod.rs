// SPDX-License-Identifier: Apache-2.0

//! The `nftables` backend: rules and sets of `nf_tables` decide each connection at its SYN. It needs
//! no program, no bpffs and no capability but `NET_ADMIN`.
//!
//! Everything it keeps is in the tables, which live on without the agent.

mod guard;
mod plan;
pub mod statistics;
#[cfg(test)]
mod tests;

use ipnet::IpNet;

use self::plan::Op;
use super::live::Live;
use super::{decisions, tables};
use crate::config::{Config, Guard};
use crate::guard::Links;
use crate::netfilter::{self, Socket, Table};
use crate::reconcile::{Mode, Report, carry_out, part};

/// The name of this part in reports and logs.
pub const PART: &str = part::NFTABLES;

/// What the backend works from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the tables of decisions are made from.
    pub decisions: decisions::Settings,
    /// Anything is guarded.
    pub guard: bool,
    /// Networks that may come from outside.
    pub allow_from: Vec<IpNet>,
}

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
            decisions: decisions::Settings {
                instance: config.instance,
                endpoints: config.endpoints().collect(),
                max_connections: config.max_connections,
            },
            guard: config.guard != Guard::Off,
            allow_from: config.allow_from.clone(),
        };
        let mut socket = Socket::open()?;
        if mode == Mode::Apply {
            for table in decisions::tables(&settings.decisions, &Live::default()) {
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
            decisions::tables(&self.settings.decisions, &Live::default()),
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
                let tables: Vec<_> = tables.iter().map(|(table, _)| table.clone()).collect();
                decisions::install(&self.settings.decisions, self.takes_over, &tables)
            }
            Op::Delete { table } => tables::delete(table),
        }
    }
}
