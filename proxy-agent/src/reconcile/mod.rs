// SPDX-License-Identifier: Apache-2.0

//! How every part of the node is reconciled: a pure plan of operations, carried out one by one.
//!
//! What the operations are lives with each part (`link`, `backend`); this module only runs them,
//! so that logging, dry runs and the collecting of errors are the same everywhere.

pub mod control;
pub mod part;
pub mod report;
pub mod told;
pub mod trigger;

use std::error::Error;
use std::fmt::Display;

pub use control::{Control, Pulse};
pub use report::{Failure, Report};
use tokio::task::yield_now;
use tracing::{error, info};

use crate::kernel::author::By;
use crate::time::rfc3339;

/// Whether a plan is carried out or only told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Change the node.
    Apply,
    /// Change nothing, collect what would be done.
    DryRun,
}

/// Carries out the operations of one part in their order and records each in the report.
///
/// An operation that fails is recorded and logged; the others are still tried, because what they
/// repair may not depend on it. Between two operations others have their turn, and the owner of the
/// pass can stop it: what is left is then not tried.
pub async fn carry_out<O, E>(
    part: &'static str,
    mode: Mode,
    ops: Vec<O>,
    report: &mut Report,
    mut apply: impl AsyncFnMut(&O) -> Result<(), E>,
) where
    O: Display,
    E: Error,
{
    for op in &ops {
        if report.control.is_stopped() {
            return;
        }
        if mode == Mode::DryRun {
            report.changed(part, op);
            continue;
        }
        match apply(op).await {
            Ok(()) => {
                log(part, op, report);
                report.changed(part, op);
            }
            Err(cause) => failed(part, op, &cause, report),
        }
        report.control.step();
        yield_now().await;
    }
}

/// Logs an operation, and the event it goes back to if there is one.
fn log(part: &'static str, op: impl Display, report: &Report) {
    let Some(occasion) = report.told.of(part) else {
        return info!(part, "{op}");
    };
    let since = rfc3339(occasion.at);
    let by = occasion.by.as_ref().map(By::to_string);
    info!(part, since, by, "{op}");
}

/// Records and logs that `what` could not be done.
pub fn failed(part: &'static str, what: impl Display, cause: &dyn Error, report: &mut Report) {
    let failure = Failure::new(part, what, cause);
    error!(part, "{failure}");
    report.failures.push(failure);
}
