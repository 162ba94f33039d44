// SPDX-License-Identifier: Apache-2.0

//! Outcome of one pass: changes and failures.

use std::error::Error;
use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use super::control::Control;
use super::events::PendingEvents;
use super::part::Part;

/// The outcome of one pass.
#[derive(Debug, Default)]
pub struct Report {
    /// Kernel events that preceded the pass.
    pub events: PendingEvents,
    /// Through which the owner of the pass can end it and watches its progress.
    pub control: Control,
    /// Operations carried out, or planned in a dry run, in order.
    pub changes: Vec<Change>,
    /// Observations and operations that failed.
    pub failures: Vec<Failure>,
    /// Delay until the next pass that this one requests, counted from its end.
    pub again: Option<Duration>,
}

/// One operation that was carried out, or planned in a dry run.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The part of the node it belongs to.
    pub part: Part,
    /// The operation, as text for logs.
    pub op: String,
    /// True if it follows from links that appeared or disappeared, and so repairs nothing.
    pub routine: bool,
}

/// An observation or an operation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The part of the node it belongs to.
    pub part: Part,
    /// The action that failed, as text for logs.
    pub what: String,
    /// The error with all its sources, down to the kernel's error code.
    pub cause: String,
}

impl Report {
    /// Records an operation as done, or as planned in a dry run.
    pub fn changed(&mut self, part: Part, op: impl Display) {
        self.changes.push(Change {
            part,
            op: op.to_string(),
            routine: false,
        });
    }

    /// Requests another pass after `wait`; the shortest request counts.
    pub fn look_again_after(&mut self, wait: Duration) {
        self.again = Some(self.again.map_or(wait, |again| again.min(wait)));
    }

    /// Marks the changes of `part` whose texts are in `ops` as routine.
    pub fn mark_routine(&mut self, part: Part, ops: &[String]) {
        for change in &mut self.changes {
            change.routine |= change.part == part && ops.contains(&change.op);
        }
    }

    /// True if the end of the pass was requested: no further step may start.
    pub fn is_stopped(&self) -> bool {
        self.control.is_stopped()
    }

    /// True if nothing was changed and nothing failed: the node is as desired.
    pub fn is_clean(&self) -> bool {
        self.changes.is_empty() && self.failures.is_empty()
    }
}

impl Failure {
    /// A failure with the text of `cause` and of all its sources.
    pub fn new(part: Part, what: impl Display, cause: &dyn Error) -> Self {
        Self {
            part,
            what: what.to_string(),
            cause: chain(cause),
        }
    }
}

/// The text of an error and of all its sources, down to the kernel's error code.
pub fn chain(error: &dyn Error) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        // A `#[error(transparent)]` layer repeats the text of its source.
        let inner_text = inner.to_string();
        if !chain.ends_with(&inner_text) {
            let _ = write!(chain, ": {inner_text}");
        }
        source = inner.source();
    }
    chain
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.op)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}
