// SPDX-License-Identifier: Apache-2.0

//! The nf_tables tables of ours, one for each family, for the backends that have some: how they are
//! compared with what is in the kernel and put in place. What is in them is each backend's own
//! business; all of an instance have one name, so that one backend takes the other's place in one transaction.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::instance::Instance;
use crate::netfilter::{self, Family, Outline, Socket, Table};
use crate::reconcile::{Report, failed};

/// The name under which the kernel is asked to check rules; never that of an instance's tables.
pub const REHEARSAL: &str = "proxy-agent_probe";
/// What the names of tables that guard end with; no instance's name has an underscore.
const GUARD: &str = "_guard";
/// What the name of the tables for Services ends with.
const SERVICES: &str = "_services";
/// What the name of the tables for the proxy's own connections ends with.
const UPSTREAM: &str = "_upstream";
/// `NF_IP_PRI_RAW`: before conntrack, which has -200.
pub const PRIORITY_RAW: i32 = -300;

/// What is in the kernel, by title: none where a table does not exist, no entry where it could not
/// be read.
pub type Observed = BTreeMap<String, Option<Outline>>;

/// What is between the tables as they are and as they should be.
#[derive(Debug, Default)]
pub struct Drift {
    /// Those to put in place, each with the reason.
    pub install: Vec<(Table, &'static str)>,
    /// Those that should not be there.
    pub delete: Vec<Table>,
}

/// The family of tables that sees packets of an address.
pub fn family_of(ip: IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::IPv4,
        IpAddr::V6(_) => Family::IPv6,
    }
}

/// The name of an instance's tables.
pub fn name(instance: Instance) -> String {
    instance.mark()
}

/// The name of an instance's tables that guard the VIPs, apart from those that remember connections: they
/// are replaced whenever the uplinks change.
pub fn guard_name(instance: Instance) -> String {
    format!("{}{GUARD}", instance.mark())
}

/// The name of an instance's tables for Services that end on the proxy.
pub fn services_name(instance: Instance) -> String {
    format!("{}{SERVICES}", instance.mark())
}

/// The name of an instance's tables for the proxy's own connections.
pub fn upstream_name(instance: Instance) -> String {
    format!("{}{UPSTREAM}", instance.mark())
}

/// True if a table of this name is an agent's, of whichever instance.
pub fn is_owned(name: &str) -> bool {
    let mut suffixes = [GUARD, SERVICES, UPSTREAM].into_iter();
    let mark = suffixes.find_map(|suffix| name.strip_suffix(suffix));
    Instance::of_mark(mark.unwrap_or(name)).is_some()
}

/// Both tables of an instance without anything in them, as they are to be removed.
pub fn empty(instance: Instance) -> [Table; 2] {
    named(&name(instance))
}

/// Both tables of an instance that guard, likewise.
pub fn empty_guard(instance: Instance) -> [Table; 2] {
    named(&guard_name(instance))
}

/// The same for the tables of Services.
pub fn empty_services(instance: Instance) -> [Table; 2] {
    named(&services_name(instance))
}

/// The same for the tables of the proxy's own connections.
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

/// Reads the tables of these titles. Errors go to the report as those of `part`.
pub fn read(part: &'static str, tables: &[Table], report: &mut Report) -> Observed {
    let mut outlines = Observed::new();
    let mut socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => {
            failed(part, "read the nf_tables tables", &error, report);
            return outlines;
        }
    };
    for table in tables {
        match table.observe(&mut socket) {
            Ok(outline) => {
                outlines.insert(table.title(), outline);
            }
            Err(error) => {
                let what = format!("read nf_tables table {}", table.title());
                failed(part, what, &error, report);
            }
        }
    }
    outlines
}

/// The tables of ours that are there, to remove them. Errors go to the report as those of `part`; a
/// kernel without nf_tables has none.
pub fn existing(part: &'static str, tables: [Table; 2], report: &mut Report) -> Vec<Table> {
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
                failed(part, "look for nf_tables tables of ours", &error, report);
            }
            Vec::new()
        }
    }
}

/// Compares; a table without chains should not be there.
pub fn drift(desired: &[Table], observed: &Observed) -> Drift {
    let mut drift = Drift::default();
    for table in desired {
        let Some(outline) = observed.get(&table.title()) else {
            // It could not be read: nothing is known, nothing is done.
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

/// All tables in one transaction; if that is refused, each on its own, so that a kernel without
/// one of the families still gets the other.
///
/// # Errors
///
/// The kernel's answer; where it refuses a table, the old one stays.
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

/// Deletes a table, if it is there.
///
/// # Errors
///
/// The kernel's answer.
pub fn delete(table: &Table) -> Result<(), netfilter::Error> {
    table.delete(&mut Socket::open()?)
}

/// The operation in words.
pub fn installation(tables: &[(Table, &'static str)]) -> String {
    let told: Vec<_> = tables
        .iter()
        .map(|(table, reason)| format!("{} ({reason})", table.title()))
        .collect();
    format!("install nf_tables table {}", told.join(" and "))
}
