// SPDX-License-Identifier: Apache-2.0

//! Installs the tables with the connections that are open, and hands these over to conntrack before their rules go.

use proxy_kernel::conntrack;
use proxy_netlink::netfilter::{self, Socket, Table};
use tracing::warn;

use super::collect::{self, Which};
use super::{members, of_proxy, tables as desired};
use crate::backend::live::{Connection, Live};
use crate::backend::tables;
use crate::config::Config;
use crate::instance::Instance;

/// Carries out an operation on tables; those of decisions are filled with the open connections: those of the proxy that
/// the replaced table contains, and those to the VIPs. Only with `takes_over`, when this backend replaces another one,
/// connections without a conntrack entry are known to be untracked. Later, when the tables were removed by others, such a
/// connection may have lost its entry, so it becomes tracked; if conntrack does not pick up established connections
/// (`nf_conntrack_tcp_loose` 0) it would hang, so it is taken for untracked then.
///
/// `rules` are those for the proxy's own connections as of the last pass. If the kernel rejects the tables with them, they are
/// installed without: the VIPs do not depend on them.
///
/// # Errors
///
/// The kernel's error.
pub fn apply(
    config: &Config,
    takes_over: bool,
    rules: &[Table],
    op: &tables::Op,
) -> Result<(), netfilter::Error> {
    let of_decisions = |(table, _): &(Table, _)| table.name == tables::name(config.instance);
    let wanted = match op {
        // The sockets are read only if they are needed.
        tables::Op::Install(wanted) if wanted.iter().any(of_decisions) => wanted,
        _ => return op.apply(),
    };
    let endpoints: Vec<_> = config.endpoints().collect();
    let mut live = Live::read(&endpoints).unwrap_or_else(|error| {
        warn!("untracked connections become tracked: {error}");
        Live::default()
    });
    if !takes_over && conntrack::picks_up() {
        live.untracked.clear();
    }
    let mut filled = desired(config, &live);
    if let Err(error) = keep(config, &mut filled) {
        warn!("untracked connections of the proxy become tracked: {error}");
    }
    let install = |filled: &[Table]| {
        let complete = wanted.iter().map(|(table, reason)| {
            let title = table.title();
            let filled = filled.iter().find(|filled| filled.title() == title);
            (filled.unwrap_or(table).clone(), *reason)
        });
        tables::Op::Install(complete.collect()).apply()
    };
    install(&with_rules(&filled, rules)).or_else(|error| {
        warn!("installing without rules for the proxy's own connections: {error}");
        install(&filled)
    })
}

/// Creates conntrack entries for open decided connections before their rules are removed, if conntrack would not pick them up:
/// they would hang otherwise.
///
/// # Errors
///
/// The error of the first connection that failed; the others are handled nevertheless.
pub fn release(which: Which, instance: Instance) -> Result<(), collect::Error> {
    if conntrack::picks_up() {
        return Ok(());
    }
    let mut socket = Socket::open()?;
    let mut outcome = Ok(());
    for Connection { client, vip } in collect::live(which, instance, &mut socket)? {
        let created = netfilter::conntrack::create_established(&mut socket, client, vip, vip);
        outcome = outcome.and(created);
    }
    Ok(outcome?)
}

/// Fills the set of the proxy's decided connections in new tables with the members of the tables that they replace, and of
/// the separate tables of version 0.2.0. If the new ones have no such set, the connections are left to conntrack.
///
/// # Errors
///
/// The kernel's error.
fn keep(config: &Config, tables: &mut [Table]) -> Result<(), collect::Error> {
    let mut socket = Socket::open()?;
    let mut untracked = Vec::new();
    let separate = tables::empty_upstream(config.instance);
    for (table, set) in [
        (tables::empty(config.instance), of_proxy::SETS.decided),
        (separate, "decided"),
    ]
    .into_iter()
    .flat_map(|(tables, set)| tables.map(|table| (table, set)))
    {
        untracked.extend(collect::members(&table, set, &mut socket)?);
    }
    for table in tables.iter_mut() {
        if let Some(set) = table
            .sets
            .iter_mut()
            .find(|set| set.name == of_proxy::SETS.decided)
        {
            set.members = members(table.family, &untracked);
        }
    }
    if of_proxy::families(config).is_empty() {
        release(Which::OfProxy, config.instance)?;
    }
    Ok(())
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
