// SPDX-License-Identifier: Apache-2.0

//! Carries out plans: the operations of each part one by one, with the same logging, dry run and collection of errors for
//! all parts. The operations themselves are defined by the parts (`link`, `backend`).

pub mod control;
pub mod events;
mod part;
pub mod report;
pub mod trigger;

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

pub use control::{Control, Pulse};
pub use part::Part;
use proxy_netlink::actor::Actor;
pub use report::{Failure, Report};
use tokio::task::yield_now;
use tracing::{error, info};

use crate::time::rfc3339;

/// Whether a plan is carried out or only reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Changes the node.
    Apply,
    /// Changes nothing; collects the operations that would be carried out.
    DryRun,
}

/// Carries out the operations of one part in order and records each in the report.
///
/// A failed operation is recorded and logged; the following ones are still tried, because they may not depend on it.
/// Between two operations the function yields to other tasks. Once the owner of the pass has requested its end, the
/// remaining operations are skipped.
pub async fn carry_out<O, E>(
    part: Part,
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
            Err(cause) => report.failed(part, op, &cause),
        }
        report.control.step();
        yield_now().await;
    }
}

/// The exit code of the process: 0 for success, 1 for failure.
pub fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Logs an operation, with time and author of the event that triggered it, if there is one.
fn log(part: Part, op: impl Display, report: &Report) {
    let Some(occasion) = report.events.for_part(part) else {
        return info!(part = part.name(), "{op}");
    };
    let since = rfc3339(occasion.at);
    let by = occasion.by.as_ref().map(Actor::to_string);
    info!(part = part.name(), since, by, "{op}");
}

impl Report {
    /// The value of a step; none if it failed, which is recorded and logged as `what`.
    pub fn attempt<T>(
        &mut self,
        part: Part,
        what: impl Display,
        result: Result<T, impl Error>,
    ) -> Option<T> {
        result
            .inspect_err(|error| self.failed(part, what, error))
            .ok()
    }

    /// Records and logs that `what` failed because of `cause`.
    pub fn failed(&mut self, part: Part, what: impl Display, cause: &dyn Error) {
        let failure = Failure::new(part, what, cause);
        error!(part = part.name(), "{failure}");
        self.failures.push(failure);
    }
}
