// SPDX-License-Identifier: Apache-2.0

//! Findings for errors.

use std::error::Error as StdError;

use proxy_serve::doctor::Check;

use crate::reconcile::report::chain;

/// A check that could not be made, because an observation failed.
pub fn unknown(
    id: &'static str,
    what: impl Into<String>,
    error: &dyn StdError,
    remedy: impl Into<String>,
) -> Check {
    let finding = format!("cannot {}: {}", what.into(), chain(error));
    Check::unknown(id, finding, remedy)
}

/// A check whose result is unknown because a table of iptables could not be read.
pub fn unread_table(id: &'static str, program: &str, table: &str, error: &dyn StdError) -> Check {
    let what = format!("read table {table} of {program}");
    let remedy =
        format!("install {program}-save, or run the doctor as root in the agent's container");
    unknown(id, what, error, remedy)
}
