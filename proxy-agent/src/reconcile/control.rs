// SPDX-License-Identifier: Apache-2.0

//! What a pass and the one who waits for its end tell each other: that it should end, and that it
//! gets on.

use std::cell::Cell;
use std::rc::Rc;

/// Shared by a pass and its owner. Without an owner nobody stops it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Control(Rc<Shared>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Shared {
    stopped: Cell<bool>,
    steps: Cell<u64>,
}

impl Control {
    /// Has the pass end before its next operation.
    pub fn stop(&self) {
        self.0.stopped.set(true);
    }

    /// True if nothing more should be begun.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    /// Notes that an operation has ended.
    pub fn step(&self) {
        self.0.steps.set(self.0.steps.get() + 1);
    }

    /// How many operations have ended.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }
}
