// SPDX-License-Identifier: Apache-2.0

//! Findings that come of an error.

use std::error::Error as StdError;

use proxy_serve::doctor::Check;

use crate::reconcile::report::chain;

/// It could not be looked at.
pub fn unknown(
    id: &'static str,
    what: impl Into<String>,
    error: &dyn StdError,
    remedy: impl Into<String>,
) -> Check {
    let finding = format!("cannot {}: {}", what.into(), chain(error));
    Check::unknown(id, finding, remedy)
}

/// Nothing was found, but a table of iptables could not be read, in which it may be.
pub fn unread_table(id: &'static str, program: &str, table: &str, error: &dyn StdError) -> Check {
    let what = format!("read table {table} of {program}");
    let remedy =
        format!("install {program}-save, or run the doctor as root in the agent's container");
    unknown(id, what, error, remedy)
}
