// SPDX-License-Identifier: Apache-2.0

//! What the package `fuzz` runs: one function for each target, which takes any bytes and panics if
//! they show a fault. Each stands beside the parser that it is about and says what must hold there;
//! here they are gathered, with what they have in common. Nothing else uses this.

pub use crate::backend::decisions::fuzzing::decision;
pub use crate::backend::iptables::fuzzing::{ipset_list, iptables_save};
pub use crate::cli::fuzzing::{command_line, values};
pub use crate::state::fuzzing::state;
pub use proxy_serve::fuzzing::klog;
