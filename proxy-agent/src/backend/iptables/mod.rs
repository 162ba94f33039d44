// SPDX-License-Identifier: Apache-2.0

//! The `iptables` backend: stateless NOTRACK and ACCEPT rules through the iptables programs.
//!
//! Five rules for every VIP and port, as apiserver-proxy-sidecar had them. They untrack everything
//! to and from `VIP:port`, also a connection that somebody's DNAT sent there, which then times
//! out: the `ebpf` backend decides per connection and has no such limit. It uses this module for
//! the two ACCEPT rules only, see [`Scope`].
//!
//! A rule is recognised as ours by its comment (`rules.rs`) and by nothing else. Base chains and
//! tables are shared with others and are left, even if we were the first to need them.

mod apply;
mod command;
mod flavour;
mod observe;
mod plan;
mod rules;
mod snapshot;
pub mod survey;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;

use tracing::info;

use self::apply::Apply;
use self::command::CommandError;
use self::flavour::{Flavour, Installed};
use self::observe::{ParseError, SavedTable};
use self::plan::Op;
use self::rules::{Family, Rule, Table};
use self::snapshot::Snapshot;
use crate::config::AcceptRules;
use crate::reconcile::{Mode, Report, carry_out, failed};

/// What this part is called in reports.
const PART: &str = "iptables";

/// The rules that keep conntrack out of the path, or only those that let untracked packets in.
#[derive(Debug)]
pub struct Iptables {
    vips: Vec<IpAddr>,
    ports: Vec<u16>,
    scope: Scope,
    installed: Installed,
    /// The flavour in use when it was last looked for.
    flavour: Flavour,
    /// The flavour in use when everything of ours outside of it was last found to be gone.
    settled: Option<Flavour>,
}

/// Which of the rules are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The three NOTRACK rules.
    pub notrack: bool,
    /// The two ACCEPT rules.
    pub accept: AcceptRules,
}

/// Why the rules cannot be observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Programs are not installed.
    #[error(
        "iptables is not complete: {programs} not found in {dirs}. Install the iptables package, \
         or choose a backend that needs none: --backend=ebpf or --backend=none"
    )]
    Missing {
        /// What was not found.
        programs: String,
        /// Where it was looked for.
        dirs: String,
    },
    /// A program did not do its work.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A program's output cannot be relied on.
    #[error("the output of `{program}` cannot be relied on")]
    Dump {
        /// The program.
        program: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// A table holds what iptables cannot print.
    #[error(
        "`{program}` cannot print table {table}, because it holds rules made with nft: remove \
         them, or move them into a table of their own (`nft list table ip {table}` or `ip6`)"
    )]
    Incompatible {
        /// The program.
        program: String,
        /// The table.
        table: String,
    },
    /// Rules are there and no program that prints them.
    #[error("{programs} is not installed, which prints the table")]
    Unreadable {
        /// What is missing.
        programs: String,
    },
    /// The kernel does not tell which legacy tables there are.
    #[error("cannot read which legacy tables there are from {path}")]
    LegacyTables {
        /// The kernel's list.
        path: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A table was changed and does not hold a rule that was put into it.
    #[error(
        "`{program}` reported success, but this rule is not in the table exactly once: {rule}. \
         Either the kernel lacks the modules (xt_CT, xt_comment, nft_compat) or somebody changes \
         the table at the same time"
    )]
    Vanished {
        /// The program.
        program: String,
        /// The rule.
        rule: String,
    },
    /// NOTRACK rules were held back.
    #[error(
        "not tried, because the ACCEPT rules could not be set, without which a filter may drop \
         what is untracked (--accept-rules=never sets no ACCEPT rules and needs none)"
    )]
    NotAccepted,
}

impl Error {
    fn is_without_nf_tables(&self) -> bool {
        matches!(self, Self::Command(cause) if cause.is_without_nf_tables())
    }
}

/// What was observed and found to be done.
#[derive(Default)]
struct Plan {
    ops: Vec<Op>,
    /// Where the filter table could not be read.
    unknown: Vec<(Flavour, Family)>,
}

impl Iptables {
    /// Finds the programs and the flavour the node uses. Changes nothing.
    ///
    /// # Errors
    /// Programs are missing, or do not work here.
    pub async fn open(vips: &[IpAddr], ports: &[u16], scope: Scope) -> Result<Self, Error> {
        let mut families = Family::ALL.to_vec();
        families.retain(|family| vips.iter().any(|vip| Family::of(*vip) == *family));
        let installed = Installed::find(&families).await?;
        let mut snapshot = Snapshot::new(&installed);
        let flavour = installed.detect(&mut snapshot).await?;
        for family in families {
            snapshot.table(flavour, family, Table::Raw.name()).await?;
        }
        info!(part = PART, "iptables flavour: {flavour}");
        Ok(Self {
            vips: vips.to_vec(),
            ports: ports.to_vec(),
            scope,
            installed,
            flavour,
            settled: None,
        })
    }

    /// One pass: finds the flavour in use, puts the rules in place there, and after that removes
    /// those of the other flavour. Errors go to the report.
    pub async fn reconcile(&mut self, mode: Mode, report: &mut Report) {
        let mut snapshot = Snapshot::new(&self.installed);
        let flavour = match self.installed.detect(&mut snapshot).await {
            Ok(flavour) => flavour,
            Err(cause) => return failed(PART, "find the flavour in use", &cause, report),
        };
        if flavour != self.flavour {
            let old = self.flavour;
            info!(
                part = PART,
                "the iptables flavour is {flavour} now, it was {old}"
            );
            self.flavour = flavour;
        }
        let failures = report.failures.len();
        let plan = self.plan(flavour, &mut snapshot, report).await;
        self.carry_out(plan, mode, report).await;
        if self.settled == Some(flavour) || report.failures.len() > failures {
            return;
        }
        let plan = remove_all(flavour.other(), &mut snapshot, report).await;
        self.carry_out(plan, mode, report).await;
        if mode == Mode::Apply && report.failures.len() == failures {
            self.settled = Some(flavour);
        }
    }

    /// Removes every copy of our rules, of both flavours and both families. Errors go to the
    /// report and keep nothing else from being removed.
    pub async fn teardown(&mut self, report: &mut Report) {
        self.settled = None;
        let mut snapshot = Snapshot::new(&self.installed);
        for flavour in Flavour::ALL {
            let plan = remove_all(flavour, &mut snapshot, report).await;
            self.carry_out(plan, Mode::Apply, report).await;
        }
    }

    async fn plan(
        &self,
        flavour: Flavour,
        snapshot: &mut Snapshot<'_>,
        report: &mut Report,
    ) -> Plan {
        let mut plan = Plan::default();
        for family in Family::ALL {
            for table in Table::ALL {
                if !self.looks_at(flavour, family, table) {
                    continue;
                }
                match snapshot.table(flavour, family, table.name()).await {
                    Ok(observed) => {
                        let desired = self.desired(family, table, observed);
                        let op = plan::plan(flavour, family, table, &desired, observed);
                        plan.ops.extend(op);
                    }
                    Err(cause) => {
                        unreadable(flavour, family, table, &cause, report);
                        if table == Table::Filter && self.scope.accept != AcceptRules::Never {
                            plan.unknown.push((flavour, family));
                        }
                    }
                }
            }
        }
        plan
    }

    /// True if rules of ours can be, or are to be, in a table. Where none are to be, those that
    /// another run of the agent may have left are looked for until all of them are gone.
    fn looks_at(&self, flavour: Flavour, family: Family, table: Table) -> bool {
        let wanted = match table {
            Table::Raw => self.scope.notrack,
            Table::Filter => self.scope.accept != AcceptRules::Never,
        };
        let has_vips = self.vips.iter().any(|vip| Family::of(*vip) == family);
        (wanted && has_vips) || self.settled != Some(flavour)
    }

    fn desired(&self, family: Family, table: Table, observed: &SavedTable) -> Vec<Rule> {
        let wanted = match (table, self.scope.accept) {
            (Table::Raw, _) => self.scope.notrack,
            (Table::Filter, AcceptRules::Auto) => observed.filters(),
            (Table::Filter, AcceptRules::Always) => true,
            (Table::Filter, AcceptRules::Never) => false,
        };
        if wanted {
            rules::desired(table, family, &self.vips, &self.ports)
        } else {
            Vec::new()
        }
    }

    async fn carry_out(&self, mut plan: Plan, mode: Mode, report: &mut Report) {
        plan::order(&mut plan.ops);
        let mut apply = Apply::new(&self.installed, plan.unknown);
        carry_out(PART, mode, plan.ops, report, async |op| {
            apply.apply(op).await
        })
        .await;
    }
}

/// The operations that remove everything of ours from one flavour.
async fn remove_all(flavour: Flavour, snapshot: &mut Snapshot<'_>, report: &mut Report) -> Plan {
    let mut plan = Plan::default();
    for family in Family::ALL {
        for table in Table::ALL {
            match snapshot.table(flavour, family, table.name()).await {
                Ok(observed) => {
                    let op = plan::plan(flavour, family, table, &[], observed);
                    plan.ops.extend(op);
                }
                // Then nothing of ours can be there.
                Err(cause) if cause.is_without_nf_tables() => {}
                Err(cause) => unreadable(flavour, family, table, &cause, report),
            }
        }
    }
    plan
}

fn unreadable(flavour: Flavour, family: Family, table: Table, cause: &Error, report: &mut Report) {
    let program = family.program();
    let what = format!("read {program}-{flavour} table {table}");
    failed(PART, what, cause, report);
}
