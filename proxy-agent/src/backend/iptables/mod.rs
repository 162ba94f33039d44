// SPDX-License-Identifier: Apache-2.0

//! The `iptables` backend: NOTRACK and ACCEPT rules through the iptables programs.
//!
//! With ipset the rules learn: each connection is decided at its SYN, before any DNAT, and the sets
//! remember it (`rules/kind.rs`, `sets.rs`). Without ipset there are five stateless rules for every
//! VIP and port, as apiserver-proxy-sidecar had them. They untrack everything to and from
//! `VIP:port`, also a connection that somebody's DNAT sent there, which then times out. The `ebpf`
//! backend uses this module for the two ACCEPT rules only, see [`Scope`].
//!
//! A rule is recognised as ours by its comment (`rules.rs`), a set by its name (`sets.rs`), and by
//! nothing else. Base chains and tables are shared with others and are left, even if we were the
//! first to need them.

mod apply;
mod command;
mod error;
mod flavour;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod learning;
mod observe;
mod plan;
mod rules;
mod sets;
mod snapshot;
pub mod survey;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use tracing::{info, warn};

pub use self::error::Error;

use self::apply::Apply;
use self::flavour::{Flavour, Installed};
use self::learning::Learning;
use self::observe::SavedTable;
use self::plan::Op;
use self::rules::{Family, Guard, LinkName, Rule, Table, Way};
use self::snapshot::Snapshot;
use crate::config::{self, AcceptRules, Config};
use crate::guard::Links;
use crate::instance::Instance;
use crate::reconcile::{Mode, Report, carry_out, failed, part};

/// What this part is called in reports.
pub const PART: &str = part::IPTABLES;

/// The rules that keep conntrack out of the path, or only those that let untracked packets in.
#[derive(Debug)]
pub struct Iptables {
    vips: Vec<IpAddr>,
    ports: Vec<u16>,
    /// Services that end on the proxy: their untracked packets have to pass the filter table too.
    services: Vec<SocketAddr>,
    /// API servers to which the proxy's own connections are untracked: the same.
    upstream: Vec<SocketAddr>,
    scope: Scope,
    installed: Installed,
    /// The sets, and whether rules use them.
    learning: Learning,
    /// The flavour in use when it was last looked for.
    flavour: Flavour,
    /// The flavour in use when everything of ours outside of it was last found to be gone.
    settled: Option<Flavour>,
    /// What is guarded; none if nothing is.
    guard: Option<Guard>,
}

/// Which of the rules are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Whose.
    pub owner: Instance,
    /// The rules that untrack.
    pub notrack: bool,
    /// The ACCEPT rules.
    pub accept: AcceptRules,
}

/// What was observed and found to be done.
#[derive(Default)]
struct Plan {
    ops: Vec<Op>,
    /// What could not be read although rules are wanted there.
    unknown: Vec<(Flavour, Family, Table)>,
}

impl Iptables {
    /// Finds the programs, the flavour the node uses, and whether rules can learn: at most
    /// `max_connections` clients of each kind, family and port. Changes nothing, but in order to
    /// find out makes a set and removes it again, unless it is a dry run or nothing is untracked.
    ///
    /// # Errors
    /// Programs are missing, or do not work here.
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
        let flavour = installed.detect(&mut snapshot).await?;
        for &family in &families {
            snapshot.table(flavour, family, Table::Raw.name()).await?;
        }
        info!(part = PART, "iptables flavour: {flavour}");
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

    /// The same, and has the packets of these Services accepted as those of the VIPs are.
    #[must_use]
    pub fn accepting(mut self, services: impl Iterator<Item = SocketAddr>) -> Self {
        self.services = services.collect();
        self
    }

    /// Has the next pass accept the proxy's own untracked packets to and from these API servers, of the families of the
    /// VIPs: of others there may be no programs.
    pub fn accept_upstream(&mut self, mut endpoints: Vec<SocketAddr>) {
        endpoints.retain(|endpoint| {
            let mut vips = self.vips.iter();
            vips.any(|vip| Family::of(*vip) == Family::of(endpoint.ip()))
        });
        self.upstream = endpoints;
    }

    /// Has the next pass guard what it should.
    pub fn guard(&mut self, links: &Links, config: &Config) {
        let names = links.guarded.values();
        self.guard = (config.guard != config::Guard::Off).then(|| Guard {
            links: names.filter_map(|name| LinkName::new(name)).collect(),
            inner: !links.inner.is_empty(),
            allow_from: config.allow_from.clone(),
        });
    }

    /// True if connections are decided one by one, so that what DNAT brings to the VIP works.
    pub fn learns(&self) -> bool {
        self.learning.is_on()
    }

    /// Why the rules are stateless, if they are.
    pub fn why_classic(&self) -> Option<&str> {
        self.learning.why_not()
    }

    /// One pass: finds the flavour in use, puts the rules in place there, and after that removes
    /// those of the other flavour and sets that no rule uses. Errors go to the report.
    pub async fn reconcile(&mut self, mode: Mode, report: &mut Report) {
        let installed = self.installed.clone();
        let mut snapshot = Snapshot::new(&installed);
        let flavour = match installed.detect(&mut snapshot).await {
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

    /// Removes every copy of our rules, of both flavours and both families, and our sets, whoever
    /// made them. Errors go to the report and keep nothing else from being removed.
    pub async fn remove_everything(owner: Instance, mode: Mode, report: &mut Report) {
        let installed = match Installed::find(&[]).await {
            Ok(installed) => installed,
            Err(cause) => return failed(PART, "find the iptables programs", &cause, report),
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

    /// Makes the sets that the rules use, before the rules are set. Where the rules turn out to be
    /// refused, plans stateless ones instead.
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
            // What is there stays as it is; what is not there is not untracked.
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

    /// Does without learning from now on.
    fn fall_back(&mut self, reason: String) {
        warn!(
            part = PART,
            "the rules are stateless from now on, and connections that DNAT brings to a VIP time \
             out: {reason}"
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

    /// True if rules of ours can be wanted in a table.
    fn wants(&self, table: Table) -> bool {
        match table {
            Table::Raw => self.scope.notrack,
            Table::Mangle => self.learns(),
            Table::Filter => self.scope.accept != AcceptRules::Never,
        }
    }

    /// True if rules of ours can be, or are to be, in a table. Where none are to be, those that
    /// another run of the agent may have left are looked for until all of them are gone.
    fn looks_at(&self, flavour: Flavour, family: Family, table: Table) -> bool {
        let has_vips = self.vips.iter().any(|vip| Family::of(*vip) == family);
        (self.wants(table) && has_vips) || self.settled != Some(flavour)
    }

    fn desired(&self, family: Family, table: Table, observed: &SavedTable) -> Vec<Rule> {
        let way = if self.learns() {
            Way::Learning
        } else {
            Way::Stateless
        };
        let wanted = match (table, self.scope.accept) {
            (Table::Filter, AcceptRules::Auto) => observed.filters(),
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
        desired.extend(rules::desired(owner, table, family, way, vips, ports));
        if table == Table::Filter {
            for service in &self.services {
                let (ip, port) = ([service.ip()], [service.port()]);
                desired.extend(rules::desired(owner, table, family, way, &ip, &port));
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

/// The operations that remove everything of an instance from one flavour.
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
