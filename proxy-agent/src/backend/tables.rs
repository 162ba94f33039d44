// SPDX-License-Identifier: Apache-2.0

//! The agent's nf_tables tables, one for each family, for all backends that use nf_tables: comparison with the kernel's state,
//! installation and removal. Their content is defined by the backends. All tables of decisions of an instance have one name, so that one
//! backend replaces the other's in one transaction.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use proxy_netlink::netfilter::{self, Family, Outline, Socket, Table};

pub use crate::instance::tables::{guard_name, name, services_name};
use crate::instance::{Instance, tables::separate_upstream_name};
use crate::reconcile::{Part, Report};

/// The name for rehearsals, in which the kernel checks rules; never the name of an instance's tables.
pub const REHEARSAL: &str = "proxy-agent_probe";
/// `NF_IP_PRI_RAW`: before conntrack, which has -200.
pub const PRIORITY_RAW: i32 = -300;

/// The kernel's tables, by title: `None` if a table does not exist, no entry if it could not be read.
pub type Observed = BTreeMap<String, Option<Outline>>;

/// An operation on the agent's tables.
#[derive(Debug, Clone)]
pub enum Op {
    /// Install tables in one transaction, replacing them completely; each with the reason.
    Install(Vec<(Table, &'static str)>),
    /// Replace the rules in some chains of a table. Its sets keep their members.
    Rewrite(Table),
    /// Delete a table that is not needed.
    Delete(Table),
}

/// The family of tables that sees packets of an address.
pub fn family_of(ip: IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::IPv4,
        IpAddr::V6(_) => Family::IPv6,
    }
}

/// Those of the endpoints whose packets tables of this family see.
pub fn of_family(
    family: Family,
    endpoints: impl IntoIterator<Item = SocketAddr>,
) -> Vec<SocketAddr> {
    let endpoints = endpoints.into_iter();
    endpoints
        .filter(|endpoint| family_of(endpoint.ip()) == family)
        .collect()
}

/// Both tables of an instance without content, for removal.
pub fn empty(instance: Instance) -> [Table; 2] {
    named(&name(instance))
}

/// Both tables of an instance's guard without content.
pub fn empty_guard(instance: Instance) -> [Table; 2] {
    named(&guard_name(instance))
}

/// Both tables of an instance's Services without content.
pub fn empty_services(instance: Instance) -> [Table; 2] {
    named(&services_name(instance))
}

/// Both tables for the proxy's own connections without content, which were separate in version 0.2.0, for removal.
pub fn empty_separate_upstream(instance: Instance) -> [Table; 2] {
    named(&separate_upstream_name(instance))
}

fn named(name: &str) -> [Table; 2] {
    [Family::IPv4, Family::IPv6].map(|family| Table {
        family,
        name: name.to_owned(),
        sets: Vec::new(),
        chains: Vec::new(),
    })
}

/// Reads the tables with these titles. Failures are recorded for `part`.
pub fn read(part: Part, tables: &[Table], report: &mut Report) -> Observed {
    let mut outlines = Observed::new();
    if tables.is_empty() {
        // Does not fail on a kernel without nf_tables.
        return outlines;
    }
    let socket = Socket::open();
    let Some(mut socket) = report.attempt(part, "read the nf_tables tables", socket) else {
        return outlines;
    };
    for table in tables {
        let what = format_args!("read nf_tables table {}", table.title());
        let outline = report.attempt(part, what, table.observe(&mut socket));
        outlines.extend(outline.map(|outline| (table.title(), outline)));
    }
    outlines
}

/// Lets the kernel check the rules of tables, under another name. Nothing is installed.
///
/// # Errors
///
/// The kernel's error.
pub fn rehearse(tables: Vec<Table>) -> Result<(), netfilter::Error> {
    let mut socket = Socket::open()?;
    for table in tables.into_iter().filter(|table| !table.chains.is_empty()) {
        let rehearsal = Table {
            name: REHEARSAL.to_owned(),
            ..table
        };
        rehearsal.rehearse(&mut socket)?;
    }
    Ok(())
}

/// The deletion of those tables that exist. Failures are recorded for `part`; a kernel without nf_tables has none.
pub fn removals(part: Part, tables: [Table; 2], report: &mut Report) -> Vec<Op> {
    let look = || -> Result<Vec<Op>, netfilter::Error> {
        let mut socket = Socket::open()?;
        let mut found = Vec::new();
        for table in tables {
            if table.observe(&mut socket)?.is_some() {
                found.push(Op::Delete(table));
            }
        }
        Ok(found)
    };
    match look() {
        Err(error) if error.is_unsupported() => Vec::new(),
        found => report
            .attempt(part, "search for nf_tables tables of the agent", found)
            .unwrap_or_default(),
    }
}

/// Plans the operations: first one that installs all tables that are missing or differ, then the deletions. A desired table
/// without chains should not exist; one that could not be read is left alone.
pub fn plan(desired: &[Table], observed: &Observed) -> Vec<Op> {
    let mut install = Vec::new();
    let mut ops = Vec::new();
    for table in desired {
        let wanted = (!table.chains.is_empty()).then(|| table.outline());
        let table = table.clone();
        match (observed.get(&table.title()), wanted) {
            (None, _) | (Some(None), None) => {}
            (Some(Some(_)), None) => ops.push(Op::Delete(table)),
            (Some(None), Some(_)) => install.push((table, "it is missing")),
            (Some(Some(there)), Some(wanted)) if *there == wanted => {}
            (Some(Some(_)), Some(_)) => install.push((table, "it differs")),
        }
    }
    if !install.is_empty() {
        ops.insert(0, Op::Install(install));
    }
    ops
}

impl Op {
    /// Carries it out.
    ///
    /// # Errors
    ///
    /// The kernel's error; a table that it rejects keeps its old content.
    pub fn apply(&self) -> Result<(), netfilter::Error> {
        let mut socket = Socket::open()?;
        match self {
            Self::Install(tables) => {
                let tables: Vec<_> = tables.iter().map(|(table, _)| table.clone()).collect();
                install(&tables, &mut socket)
            }
            Self::Rewrite(table) => table.rewrite(&mut socket),
            Self::Delete(table) => table.delete(&mut socket),
        }
    }

    /// Whether it concerns only these tables.
    pub fn is_about(&self, tables: &[Table]) -> bool {
        let is_one = |table: &Table| tables.iter().any(|one| one.title() == table.title());
        match self {
            Self::Install(tables) => tables.iter().all(|(table, _)| is_one(table)),
            Self::Rewrite(table) | Self::Delete(table) => is_one(table),
        }
    }
}

/// Installs all tables in one transaction; if that fails, each on its own, so that a kernel without one of the families
/// accepts the other.
fn install(tables: &[Table], socket: &mut Socket) -> Result<(), netfilter::Error> {
    let together = Table::replace(tables, socket);
    if together.is_ok() || tables.len() == 1 {
        return together;
    }
    tables
        .iter()
        .map(|table| Table::replace(std::slice::from_ref(table), socket))
        .fold(Ok(()), Result::and)
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install(tables) => {
                let titles: Vec<_> = tables
                    .iter()
                    .map(|(table, reason)| format!("{} ({reason})", table.title()))
                    .collect();
                write!(f, "install nf_tables table {}", titles.join(" and "))
            }
            Self::Rewrite(table) => {
                write!(f, "change the rules of nf_tables table {}", table.title())
            }
            Self::Delete(table) => write!(f, "delete nf_tables table {}", table.title()),
        }
    }
}
