// SPDX-License-Identifier: Apache-2.0

//! Removes the tables during a clean-up.

use super::PART;
use crate::backend::decisions::collect::Which;
use crate::backend::{decisions, tables};
use crate::instance::Instance;
use crate::reconcile::{Mode, Report, carry_out};

/// Removes the tables. Open connections continue, tracked.
pub async fn remove_everything(instance: Instance, mode: Mode, report: &mut Report) {
    let ops = tables::removals(PART, tables::empty_upstream(instance), report);
    if ops.is_empty() {
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
    carry_out(PART, mode, ops, report, async |op| op.apply()).await;
}
