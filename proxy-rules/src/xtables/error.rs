// SPDX-License-Identifier: Apache-2.0

//! Why the tables cannot be read.

use std::io;

use super::command::CommandError;
use super::saved::ParseError;

/// Why the tables cannot be read, or a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Programs are not installed.
    #[error(
        "iptables is not complete: {programs} not found in {dirs}. Install the iptables package, \
         or choose a backend that needs none: --backend=ebpf or --backend=none"
    )]
    Missing {
        /// What was not found.
        programs: String,
        /// Where it was looked for.
        dirs: String,
    },
    /// A program did not do its work.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A program's output is incomplete.
    #[error("the output of `{program}` cannot be relied on")]
    Dump {
        /// The program.
        program: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// A table holds what iptables cannot print.
    #[error(
        "`{program}` cannot print table {table}, because it holds rules made with nft: remove \
         them, or move them into a table of their own (`nft list table ip {table}` or `ip6`)"
    )]
    Incompatible {
        /// The program.
        program: String,
        /// The table.
        table: String,
    },
    /// Rules are there and no program that prints them.
    #[error("{programs} is not installed, which prints the table")]
    Unreadable {
        /// What is missing.
        programs: String,
    },
    /// The kernel's list of legacy tables cannot be read.
    #[error("cannot read which legacy tables there are from {path}")]
    LegacyTables {
        /// The kernel's list.
        path: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// True if iptables-nft found a kernel without nf_tables.
    #[must_use]
    pub fn is_without_nf_tables(&self) -> bool {
        matches!(self, Self::Command(cause) if cause.is_without_nf_tables())
    }
}
