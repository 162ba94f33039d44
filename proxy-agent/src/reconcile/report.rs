// SPDX-License-Identifier: Apache-2.0

//! What one pass over the node did and could not do.

use std::error::Error;
use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use super::control::Control;
use super::told::Told;

/// The outcome of one pass.
#[derive(Debug, Default)]
pub struct Report {
    /// What the kernel told before it.
    pub told: Told,
    /// By which it is told to end, and tells that it gets on.
    pub control: Control,
    /// What was changed, or would be in a dry run, in order.
    pub changes: Vec<Change>,
    /// What could not be observed or changed.
    pub failures: Vec<Failure>,
    /// When the next pass is due at the latest, from the end of this one on.
    pub again: Option<Duration>,
}

/// One operation that was carried out, or would be in a dry run.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The part of the node it belongs to.
    pub part: &'static str,
    /// The operation in words.
    pub op: String,
    /// It follows links that come and go: nothing was broken.
    pub routine: bool,
}

/// Something that could not be observed or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The part of the node it belongs to.
    pub part: &'static str,
    /// What was being done.
    pub what: String,
    /// Why it failed, with every cause, down to the kernel's answer.
    pub cause: String,
}

impl Report {
    /// Records an operation as done, or as planned in a dry run.
    pub fn changed(&mut self, part: &'static str, op: impl Display) {
        self.changes.push(Change {
            part,
            op: op.to_string(),
            routine: false,
        });
    }

    /// Asks for another pass after some time.
    pub fn look_again_after(&mut self, wait: Duration) {
        self.again = Some(self.again.map_or(wait, |again| again.min(wait)));
    }

    /// Marks changes, in words, as following links that come and go.
    pub fn mark_routine(&mut self, part: &'static str, ops: &[String]) {
        for change in &mut self.changes {
            change.routine |= change.part == part && ops.contains(&change.op);
        }
    }

    /// True if the pass was told to end: what comes next in it must not be begun.
    pub fn is_stopped(&self) -> bool {
        self.control.is_stopped()
    }

    /// True if nothing had to be changed and nothing failed: the node is as desired.
    pub fn is_clean(&self) -> bool {
        self.changes.is_empty() && self.failures.is_empty()
    }
}

impl Failure {
    /// Records `cause` with all its sources.
    pub fn new(part: &'static str, what: impl Display, cause: &dyn Error) -> Self {
        Self {
            part,
            what: what.to_string(),
            cause: chain(cause),
        }
    }
}

/// An error with all its sources, down to the kernel's answer.
pub fn chain(error: &dyn Error) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        // A `#[error(transparent)]` layer repeats its source's words.
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
