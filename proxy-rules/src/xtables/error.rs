// SPDX-License-Identifier: Apache-2.0

//! The reasons why tables cannot be read.

use std::io;

use super::command::CommandError;
use super::saved::ParseError;

/// The reason why tables cannot be read or why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Required programs are not installed.
    #[error(
        "iptables is not complete: {programs} not found in {dirs}. Install the iptables package, \
         or choose a backend that needs none: --backend=ebpf or --backend=none"
    )]
    Missing {
        /// The missing programs.
        programs: String,
        /// The directories that were searched.
        dirs: String,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A program's output is incomplete.
    #[error("the output of `{program}` cannot be relied on")]
    Dump {
        /// The program.
        program: String,
        /// The defect of the output.
        #[source]
        source: ParseError,
    },
    /// A table contains rules that iptables cannot print.
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
    /// Rules exist, but no program that prints them is installed.
    #[error("{programs} is not installed, which prints the table")]
    Unreadable {
        /// The missing programs.
        programs: String,
    },
    /// The kernel's list of legacy tables cannot be read.
    #[error("cannot read which legacy tables there are from {path}")]
    LegacyTables {
        /// The path of the kernel's list.
        path: &'static str,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns true if iptables-nft reported that the kernel has no nf_tables.
    #[must_use]
    pub fn is_without_nf_tables(&self) -> bool {
        matches!(self, Self::Command(cause) if cause.is_without_nf_tables())
    }
}
