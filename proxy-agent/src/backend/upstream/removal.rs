// SPDX-License-Identifier: Apache-2.0

//! Removes the tables during a clean-up.

use std::fmt::{self, Display};

use proxy_netlink::netfilter::Table;

use super::PART;
use crate::backend::decisions::collect::Which;
use crate::backend::{decisions, tables};
use crate::instance::Instance;
use crate::reconcile::{Mode, Report, carry_out};

/// Removes the tables. Open connections continue, tracked.
pub async fn remove_everything(instance: Instance, mode: Mode, report: &mut Report) {
    let there = tables::existing(PART, tables::empty_upstream(instance), report);
    if there.is_empty() {
        return;
    }
    if mode == Mode::Apply {
        let released = decisions::release(Which::OfProxy, instance);
        report.attempt(
            PART,
            "hand the proxy's connections over to conntrack",
            released,
        );
    }
    let ops = there.into_iter().map(Removal).collect();
    carry_out(PART, mode, ops, report, async |Removal(table)| {
        tables::delete(table)
    })
    .await;
}

/// The removal of a table.
struct Removal(Table);

impl Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delete nf_tables table {}", self.0.title())
    }
}
