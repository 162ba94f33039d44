// SPDX-License-Identifier: Apache-2.0

//! The agent's nf_tables tables, one for each family, for all backends that use nf_tables: comparison with the kernel's state and
//! installation. Their content is defined by the backends. All tables of decisions of an instance have one name, so that one
//! backend replaces the other's in one transaction.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy_netlink::netfilter::{self, Family, Outline, Socket, Table};

use crate::instance::Instance;
pub use crate::instance::tables::{guard_name, name, services_name, upstream_name};
use crate::reconcile::{Part, Report};

/// The name for rehearsals, in which the kernel checks rules; never the name of an instance's tables.
pub const REHEARSAL: &str = "proxy-agent_probe";
/// `NF_IP_PRI_RAW`: before conntrack, which has -200.
pub const PRIORITY_RAW: i32 = -300;

/// The kernel's tables, by title: `None` if a table does not exist, no entry if it could not be read.
pub type Observed = BTreeMap<String, Option<Outline>>;

/// Differences between the observed and the desired tables.
#[derive(Debug, Default)]
pub struct Drift {
    /// Tables to install, with the reason.
    pub install: Vec<(Table, &'static str)>,
    /// Tables to delete.
    pub delete: Vec<Table>,
}

/// The family of tables that sees packets of an address.
pub fn family_of(ip: IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::IPv4,
        IpAddr::V6(_) => Family::IPv6,
    }
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

/// Both tables of an instance for the proxy's own connections without content.
pub fn empty_upstream(instance: Instance) -> [Table; 2] {
    named(&upstream_name(instance))
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

/// Those of the agent's tables that exist, for removal. Failures are recorded for `part`; a kernel without nf_tables has none.
pub fn existing(part: Part, tables: [Table; 2], report: &mut Report) -> Vec<Table> {
    let look = || {
        let mut socket = Socket::open()?;
        let mut found = Vec::new();
        for table in tables {
            if table.observe(&mut socket)?.is_some() {
                found.push(table);
            }
        }
        Ok(found)
    };
    match look() {
        Ok(found) => found,
        Err(error) => {
            let error: netfilter::Error = error;
            if !error.is_unsupported() {
                report.failed(part, "search for nf_tables tables of the agent", &error);
            }
            Vec::new()
        }
    }
}

/// Compares the tables; a desired table without chains should not exist.
pub fn drift(desired: &[Table], observed: &Observed) -> Drift {
    let mut drift = Drift::default();
    for table in desired {
        let Some(outline) = observed.get(&table.title()) else {
            // It could not be read, so it is left alone.
            continue;
        };
        let wanted = (!table.chains.is_empty()).then(|| table.outline());
        if *outline == wanted {
            continue;
        }
        let table = table.clone();
        match (outline, wanted) {
            (_, None) => drift.delete.push(table),
            (None, Some(_)) => drift.install.push((table, "it is missing")),
            (Some(_), Some(_)) => drift.install.push((table, "it differs")),
        }
    }
    drift
}

/// Installs all tables in one transaction; if that fails, each on its own, so that a kernel without one of the families
/// accepts the other.
///
/// # Errors
///
/// The kernel's error; a table that it rejects keeps its old content.
pub fn install(tables: &[Table]) -> Result<(), netfilter::Error> {
    let mut socket = Socket::open()?;
    let together = Table::replace(tables, &mut socket);
    if together.is_ok() || tables.len() == 1 {
        return together;
    }
    tables
        .iter()
        .map(|table| Table::replace(std::slice::from_ref(table), &mut socket))
        .fold(Ok(()), Result::and)
}

/// Deletes a table, if it exists.
///
/// # Errors
///
/// The kernel's error.
pub fn delete(table: &Table) -> Result<(), netfilter::Error> {
    table.delete(&mut Socket::open()?)
}

/// The text of the operation that installs tables.
pub fn installation(tables: &[(Table, &'static str)]) -> String {
    let titles: Vec<_> = tables
        .iter()
        .map(|(table, reason)| format!("{} ({reason})", table.title()))
        .collect();
    format!("install nf_tables table {}", titles.join(" and "))
}
