// SPDX-License-Identifier: Apache-2.0

//! Computes the operations from the observed to the desired tables. Pure.

use std::fmt::{self, Display};

use proxy_netlink::netfilter::Table;

use crate::backend::tables::{self, Observed};

/// An operation.
#[derive(Debug, Clone)]
pub enum Op {
    /// Install tables, replacing them completely.
    Install {
        /// The tables, each with the reason.
        tables: Vec<(Table, &'static str)>,
    },
    /// Delete a table that no VIP needs.
    Delete {
        /// The table.
        table: Table,
    },
}

/// Plans the operations.
pub fn plan(desired: &[Table], observed: &Observed) -> Vec<Op> {
    let drift = tables::drift(desired, observed);
    let mut ops = Vec::new();
    if !drift.install.is_empty() {
        ops.push(Op::Install {
            tables: drift.install,
        });
    }
    let deletions = drift.delete.into_iter();
    ops.extend(deletions.map(|table| Op::Delete { table }));
    ops
}

impl Op {
    /// Whether it concerns only these tables.
    pub fn is_about(&self, tables: &[Table]) -> bool {
        let is_one = |table: &Table| tables.iter().any(|one| one.title() == table.title());
        match self {
            Self::Install { tables } => tables.iter().all(|(table, _)| is_one(table)),
            Self::Delete { table } => is_one(table),
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install { tables } => f.write_str(&tables::installation(tables)),
            Self::Delete { table } => write!(f, "delete nf_tables table {}", table.title()),
        }
    }
}
