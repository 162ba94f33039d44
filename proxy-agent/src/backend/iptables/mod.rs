// SPDX-License-Identifier: Apache-2.0

//! The `iptables` backend: NOTRACK and ACCEPT rules through the iptables programs.
//!
//! With ipset the rules decide each connection at its SYN, before any DNAT, and store the decision in sets (`rules/kind.rs`,
//! `sets.rs`). Without ipset there are stateless rules for every VIP and port, as apiserver-proxy-sidecar has them. They untrack
//! everything to and from `VIP:port`, including connections that are DNATed there, which then time out. With other backends this
//! module provides the ACCEPT rules only, see [`Scope`].
//!
//! The agent's rules are identified by their comments (`rules.rs`), its sets by their names (`sets.rs`), and by nothing else. Base
//! chains and tables are shared with other programs and are never removed.

mod apply;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod learning;
mod named;
mod plan;
mod rules;
mod sets;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use tracing::{info, warn};

pub use self::error::Error;
pub use self::named::owned_vips;
use proxy_rules::xtables::{self, Family, Flavour, Installed, SavedTable, Snapshot};

use self::apply::Apply;
use self::learning::Learning;
use self::plan::Op;
use self::rules::{Guard, LinkName, Rule, RuleSet, Table};
use crate::config::{self, AcceptRules, Config};
use crate::guard::Links;
use crate::instance::Instance;
use crate::ownership::MARKS;
use crate::reconcile::{Mode, Part, Report, carry_out};

/// The name of this part in reports.
pub const PART: Part = Part::Iptables;

/// The rules that untrack the VIPs' connections, or only those that accept untracked packets.
#[derive(Debug)]
pub struct Iptables {
    vips: Vec<IpAddr>,
    ports: Vec<u16>,
    /// Services that end on the proxy: the filter table has to accept their untracked packets too.
    services: Vec<SocketAddr>,
    /// API servers to which the proxy's own connections are untracked: likewise.
    upstream: Vec<SocketAddr>,
    scope: Scope,
    installed: Installed,
    /// The sets, and whether rules use them.
    learning: Learning,
    /// The flavour in use as of the last pass.
    flavour: Flavour,
    /// The flavour in use when no rules of the agent were left in the other one.
    settled: Option<Flavour>,
    /// The guard's settings; none without a guard.
    guard: Option<Guard>,
}

/// The desired rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The owner.
    pub owner: Instance,
    /// The rules that untrack.
    pub notrack: bool,
    /// The ACCEPT rules.
    pub accept: AcceptRules,
}

/// The operations of a pass.
#[derive(Default)]
struct Plan {
    ops: Vec<Op>,
    /// Tables that could not be read although they should have rules.
    unknown: Vec<(Flavour, Family, Table)>,
}

impl Iptables {
    /// Finds the programs, determines the node's flavour, and whether rules can use sets: of at most `max_connections` clients of each
    /// kind, family and port. Changes nothing, except that a set is created and removed as a test, unless it is a dry run or
    /// nothing is untracked.
    ///
    /// # Errors
    /// Programs are missing, or fail.
    pub async fn open(
        vips: &[IpAddr],
        ports: &[u16],
        scope: Scope,
        max_connections: u32,
        mode: Mode,
    ) -> Result<Self, Error> {
        let mut families = Family::ALL.to_vec();
        families.retain(|family| vips.iter().any(|vip| Family::of(*vip) == *family));
        let installed = Installed::find(&families).await?;
        let mut snapshot = Snapshot::new(&installed);
        let flavour = snapshot.detect(MARKS).await?;
        for &family in &families {
            snapshot.table(flavour, family, Table::Raw.name()).await?;
        }
        info!(part = PART.name(), "iptables flavour: {flavour}");
        let learning = if scope.notrack {
            let sets = sets::desired(scope.owner, vips, ports, max_connections);
            Learning::open(scope.owner, sets, vips, ports, &families, mode).await
        } else {
            Learning::off(scope.owner)
        };
        Ok(Self {
            vips: vips.to_vec(),
            ports: ports.to_vec(),
            services: Vec::new(),
            upstream: Vec::new(),
            scope,
            installed,
            learning,
            flavour,
            settled: None,
            guard: None,
        })
    }

    /// Adds ACCEPT rules for the packets of these Services.
    #[must_use]
    pub fn accepting(mut self, services: impl Iterator<Item = SocketAddr>) -> Self {
        self.services = services.collect();
        self
    }

    /// Sets the API servers whose untracked packets the next pass accepts, limited to the families of the VIPs: for others the
    /// programs may be missing.
    pub fn accept_upstream(&mut self, mut endpoints: Vec<SocketAddr>) {
        endpoints.retain(|endpoint| {
            let mut vips = self.vips.iter();
            vips.any(|vip| Family::of(*vip) == Family::of(endpoint.ip()))
        });
        self.upstream = endpoints;
    }

    /// Sets the links that the next pass guards.
    pub fn guard(&mut self, links: &Links, config: &Config) {
        let names = links.guarded.values();
        self.guard = (config.guard != config::Guard::Off).then(|| Guard {
            links: names.filter_map(|name| LinkName::new(name)).collect(),
            inner: !links.inner.is_empty(),
            allow_from: config.allow_from.clone(),
        });
    }

    /// True if connections are decided one by one, so that DNAT to the VIP works.
    pub fn learns(&self) -> bool {
        self.learning.is_on()
    }

    /// Why the rules are stateless, if they are.
    pub fn why_stateless(&self) -> Option<&str> {
        self.learning.why_not()
    }

    /// One pass: determines the flavour in use, sets the rules there, and afterwards removes those of the other flavour and unused
    /// sets. Failures are in the report.
    pub async fn reconcile(&mut self, mode: Mode, report: &mut Report) {
        let installed = self.installed.clone();
        let mut snapshot = Snapshot::new(&installed);
        let flavour = snapshot.detect(MARKS).await;
        let Some(flavour) = report.attempt(PART, "determine the flavour in use", flavour) else {
            return;
        };
        if flavour != self.flavour {
            let old = self.flavour;
            info!(
                part = PART.name(),
                "the iptables flavour has changed from {old} to {flavour}"
            );
            self.flavour = flavour;
        }
        let failures = report.failures.len();
        let plan = self.plan(flavour, &mut snapshot, report).await;
        let plan = self.prepare(plan, &mut snapshot, mode, report).await;
        self.carry_out(plan, mode, report).await;
        if report.failures.len() > failures {
            return;
        }
        if self.settled != Some(flavour) {
            let plan = remove_all(self.scope.owner, flavour.other(), &mut snapshot, report).await;
            self.carry_out(plan, mode, report).await;
        }
        if report.failures.len() == failures {
            let settled = self.settled == Some(flavour);
            self.learning.remove_unused(settled, mode, report).await;
        }
        if mode == Mode::Apply && report.failures.len() == failures {
            self.settled = Some(flavour);
        }
    }

    /// Removes all rules of the agent, of both flavours and families, and its sets. Failures are in the report and do not end the
    /// removal.
    pub async fn remove_everything(owner: Instance, mode: Mode, report: &mut Report) {
        let installed = Installed::find(&[]).await;
        let Some(installed) = report.attempt(PART, "find the iptables programs", installed) else {
            return;
        };
        let mut snapshot = Snapshot::new(&installed);
        for flavour in Flavour::ALL {
            let mut plan = remove_all(owner, flavour, &mut snapshot, report).await;
            plan::order(&mut plan.ops);
            let mut apply = Apply::new(&installed, plan.unknown);
            carry_out(PART, mode, plan.ops, report, async |op| {
                apply.apply(op).await
            })
            .await;
        }
        Learning::off(owner).teardown(mode, report).await;
    }

    /// Creates the sets before the rules that use them. If those rules turn out to be rejected, plans stateless ones instead.
    async fn prepare(
        &mut self,
        mut plan: Plan,
        snapshot: &mut Snapshot<'_>,
        mode: Mode,
        report: &mut Report,
    ) -> Plan {
        if !self.learns() {
            return plan;
        }
        if !self.learning.prepare(&plan.ops, mode, report).await {
            // Existing rules are kept, missing ones are not inserted.
            plan.ops.retain(|op| op.table == Table::Filter);
            return plan;
        }
        if mode == Mode::Apply
            && let Err(reason) = self.learning.test(&self.installed, &plan.ops).await
        {
            self.fall_back(reason);
            return self.plan(self.flavour, snapshot, report).await;
        }
        plan
    }

    /// Turns learning off.
    fn fall_back(&mut self, reason: String) {
        warn!(
            part = PART.name(),
            "the rules are stateless from now on, and connections that DNAT sends to a VIP time out: \
             {reason}"
        );
        self.learning.give_up(reason);
        self.settled = None;
    }

    async fn plan(
        &self,
        flavour: Flavour,
        snapshot: &mut Snapshot<'_>,
        report: &mut Report,
    ) -> Plan {
        let owner = self.scope.owner;
        let mut plan = Plan::default();
        for family in Family::ALL {
            for table in Table::ALL {
                if !self.looks_at(flavour, family, table) {
                    continue;
                }
                match snapshot.table(flavour, family, table.name()).await {
                    Ok(observed) => {
                        let desired = self.desired(family, table, observed);
                        let op = plan::plan(owner, flavour, family, table, &desired, observed);
                        plan.ops.extend(op);
                    }
                    Err(cause) => {
                        unreadable(flavour, family, table, &cause, report);
                        if self.wants(table) {
                            plan.unknown.push((flavour, family, table));
                        }
                    }
                }
            }
        }
        plan
    }

    /// True if a table may have rules of the agent.
    fn wants(&self, table: Table) -> bool {
        match table {
            Table::Raw => self.scope.notrack,
            Table::Mangle => self.learns(),
            Table::Filter => self.scope.accept != AcceptRules::Never,
        }
    }

    /// True if a table has to be read: rules are desired there, or rules of an earlier start may be left.
    fn looks_at(&self, flavour: Flavour, family: Family, table: Table) -> bool {
        let has_vips = self.vips.iter().any(|vip| Family::of(*vip) == family);
        (self.wants(table) && has_vips) || self.settled != Some(flavour)
    }

    fn desired(&self, family: Family, table: Table, observed: &SavedTable) -> Vec<Rule> {
        let rule_set = if self.learns() {
            RuleSet::Learning
        } else {
            RuleSet::Stateless
        };
        let wanted = match (table, self.scope.accept) {
            (Table::Filter, AcceptRules::Auto) => observed.filters(MARKS),
            _ => self.wants(table),
        };
        if !wanted {
            return Vec::new();
        }
        let Self { vips, ports, .. } = self;
        let owner = self.scope.owner;
        let mut desired = Vec::new();
        if let (Table::Raw, Some(guard)) = (table, &self.guard) {
            desired = rules::guarding(owner, family, guard, vips, ports);
        }
        desired.extend(rules::desired(owner, table, family, rule_set, vips, ports));
        if table == Table::Filter {
            for service in &self.services {
                let (ip, port) = ([service.ip()], [service.port()]);
                desired.extend(rules::desired(owner, table, family, rule_set, &ip, &port));
            }
            desired.extend(rules::accepting_upstream(owner, family, &self.upstream));
        }
        desired
    }

    async fn carry_out(&mut self, mut plan: Plan, mode: Mode, report: &mut Report) {
        plan::order(&mut plan.ops);
        let mut refused = None;
        let mut apply = Apply::new(&self.installed, plan.unknown);
        carry_out(PART, mode, plan.ops, report, async |op| {
            let outcome = apply.apply(op).await;
            if let Err(cause) = &outcome
                && op.learns()
                && cause.is_refusal()
            {
                refused = Some(cause.to_string());
            }
            outcome
        })
        .await;
        if let Some(reason) = self.learning.note_refusal(refused) {
            self.fall_back(reason);
        }
    }
}

/// The operations that remove all rules of an instance from one flavour.
async fn remove_all(
    owner: Instance,
    flavour: Flavour,
    snapshot: &mut Snapshot<'_>,
    report: &mut Report,
) -> Plan {
    let mut plan = Plan::default();
    for family in Family::ALL {
        for table in Table::ALL {
            match snapshot.table(flavour, family, table.name()).await {
                Ok(observed) => {
                    let op = plan::plan(owner, flavour, family, table, &[], observed);
                    plan.ops.extend(op);
                }
                // Without nf_tables there cannot be any rules.
                Err(cause) if cause.is_without_nf_tables() => {}
                Err(cause) => unreadable(flavour, family, table, &cause, report),
            }
        }
    }
    plan
}

fn unreadable(
    flavour: Flavour,
    family: Family,
    table: Table,
    cause: &xtables::Error,
    report: &mut Report,
) {
    let program = family.program();
    let what = format!("read {program}-{flavour} table {table}");
    report.failed(PART, what, cause);
}
