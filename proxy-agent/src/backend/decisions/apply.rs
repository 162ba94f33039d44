// SPDX-License-Identifier: Apache-2.0

//! Installs the tables with the connections that are open, and hands these over to conntrack before their rules go.

use proxy_kernel::conntrack;
use proxy_netlink::netfilter::{self, Socket, Table};
use tracing::warn;

use super::collect::{self, Which};
use super::of_proxy::{self, Known};
use super::{members, tables as desired};
use crate::backend::live::{self, Connection, Live};
use crate::backend::tables;
use crate::config::Config;
use crate::instance::Instance;

/// Failure to read connections, or to change their tables.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nf_tables or conntrack returned an error.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// Decided connections could not be read.
    #[error(transparent)]
    Decided(#[from] collect::Error),
    /// The proxy's connections could not be read.
    #[error(transparent)]
    Live(#[from] live::Error),
}

/// Carries out an operation on tables; those of decisions are filled with the open connections: those of the proxy that
/// the replaced table contains, and those to the VIPs. Only with `takes_over`, when this backend replaces another one,
/// connections without a conntrack entry are known to be untracked. Later, when the tables were removed by others, such a
/// connection may have lost its entry, so it becomes tracked; if conntrack does not pick up established connections
/// (`nf_conntrack_tcp_loose` 0) it would hang, so it is taken for untracked then.
///
/// The same holds for the proxy's connections that are `known`. If the kernel rejects the tables with the known rules,
/// they are installed without: the VIPs do not depend on them.
///
/// # Errors
///
/// The kernel's error.
pub fn apply(
    config: &Config,
    takes_over: bool,
    known: &Known,
    op: &tables::Op,
) -> Result<(), netfilter::Error> {
    let is_of_decisions = |table: &Table| table.name == tables::name(config.instance);
    let wanted = match op {
        // The sockets are read only if they are needed.
        tables::Op::Install(wanted) if wanted.iter().any(|(table, _)| is_of_decisions(table)) => {
            wanted
        }
        tables::Op::Delete(table) if is_of_decisions(table) => {
            release_displaced(config);
            return op.apply();
        }
        _ => return op.apply(),
    };
    release_displaced(config);
    let endpoints: Vec<_> = config.endpoints().collect();
    let mut live = Live::read(&endpoints).unwrap_or_else(|error| {
        warn!("untracked connections become tracked: {error}");
        Live::default()
    });
    if !takes_over && conntrack::picks_up() {
        live.untracked.clear();
    }
    let mut filled = desired(config, &live);
    match untracked_of_proxy(config, known) {
        Ok(untracked) => fill(&mut filled, &untracked),
        Err(error) => warn!("untracked connections of the proxy become tracked: {error}"),
    }
    let install = |filled: &[Table]| {
        let complete = wanted.iter().map(|(table, reason)| {
            let title = table.title();
            let filled = filled.iter().find(|filled| filled.title() == title);
            (filled.unwrap_or(table).clone(), *reason)
        });
        tables::Op::Install(complete.collect()).apply()
    };
    install(&with_rules(&filled, &known.rules)).or_else(|error| {
        warn!("installing without rules for the proxy's own connections: {error}");
        install(&filled)
    })
}

/// The proxy's connections that are untracked: those that are open in the tables that are replaced; if there are none and
/// conntrack picks up no established connections, those of the known ones that it does not know: another program has
/// removed the tables, and they would hang.
fn untracked_of_proxy(config: &Config, known: &Known) -> Result<Vec<Connection>, Error> {
    let mut socket = Socket::open()?;
    let decided = collect::live(Which::OfProxy, config.instance, &mut socket)?;
    if decided.is_empty() && !conntrack::picks_up() {
        return Ok(live::untracked_of(&known.cgroups, &known.endpoints)?);
    }
    Ok(decided)
}

fn fill(tables: &mut [Table], untracked: &[Connection]) {
    for table in tables {
        let sets = table.sets.iter_mut();
        for set in sets.filter(|set| set.name == of_proxy::SETS.decided) {
            set.members = members(table.family, untracked);
        }
    }
}

/// The tables with these rules in their chains.
fn with_rules(tables: &[Table], rules: &[Table]) -> Vec<Table> {
    let mut filled = tables.to_vec();
    for table in &mut filled {
        let title = table.title();
        let of_table = rules.iter().filter(|one| one.title() == title);
        for with_rules in of_table.flat_map(|one| &one.chains) {
            let chains = table.chains.iter_mut();
            for chain in chains.filter(|chain| chain.name == with_rules.name) {
                chain.rules.clone_from(&with_rules.rules);
            }
        }
    }
    filled
}

/// Leaves connections of the proxy to conntrack whose family has no rules for them any more.
fn release_displaced(config: &Config) {
    let families = of_proxy::families(config);
    let is_displaced = |one: &Connection| !families.contains(&tables::family_of(one.vip.ip()));
    if let Err(error) = release_those(Which::OfProxy, config.instance, is_displaced) {
        warn!("cannot hand connections of the proxy over to conntrack: {error}");
    }
}

/// Leaves connections in the separate tables of version 0.2.0 to conntrack before these are deleted, except those that the
/// instance's tables have taken over.
///
/// # Errors
///
/// The error of the first connection that failed; the others are handled nevertheless.
pub fn release_separate(instance: Instance) -> Result<(), collect::Error> {
    let mut socket = Socket::open()?;
    let mut kept = Vec::new();
    for table in tables::empty(instance) {
        kept.extend(collect::members(
            &table,
            of_proxy::SETS.decided,
            &mut socket,
        )?);
    }
    release_those(Which::OfProxy, instance, |one| !kept.contains(one))
}

/// Creates conntrack entries for open decided connections before their rules are removed, if conntrack would not pick them
/// up: they would hang otherwise.
///
/// # Errors
///
/// The error of the first connection that failed; the others are handled nevertheless.
pub fn release(which: Which, instance: Instance) -> Result<(), collect::Error> {
    release_those(which, instance, |_| true)
}

/// [`release`], of some of them.
///
/// # Errors
///
/// As there.
pub fn release_those(
    which: Which,
    instance: Instance,
    is_one: impl Fn(&Connection) -> bool,
) -> Result<(), collect::Error> {
    if conntrack::picks_up() {
        return Ok(());
    }
    let mut socket = Socket::open()?;
    let mut outcome = Ok(());
    let open = collect::live(which, instance, &mut socket)?.into_iter();
    for Connection { client, vip } in open.filter(is_one) {
        let created = netfilter::conntrack::create_established(&mut socket, client, vip, vip);
        outcome = outcome.and(created);
    }
    Ok(outcome?)
}
