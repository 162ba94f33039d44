// SPDX-License-Identifier: Apache-2.0

//! What can go wrong with the rules and the sets they use.

use std::io;

use super::command::CommandError;
use super::observe::ParseError;

/// Why the rules cannot be observed or changed.
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
    /// A program's output cannot be relied on.
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
    /// The kernel does not tell which legacy tables there are.
    #[error("cannot read which legacy tables there are from {path}")]
    LegacyTables {
        /// The kernel's list.
        path: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A table was changed and does not hold a rule that was put into it.
    #[error(
        "`{program}` reported success, but this rule is not in the table exactly once: {rule}. \
         Either the kernel lacks the modules (xt_CT, xt_comment, xt_set, nft_compat) or somebody changes \
         the table at the same time"
    )]
    Vanished {
        /// The program.
        program: String,
        /// The rule.
        rule: String,
    },
    /// A set cannot be removed.
    #[error(
        "set {name} is used by a rule that is not ours: remove that rule (`iptables-save | grep \
         {name}` and `nft list ruleset` show it); the next pass tries again"
    )]
    SetInUse {
        /// The set.
        name: String,
        /// ipset's answer.
        #[source]
        source: CommandError,
    },
    /// Learning rules were held back.
    #[error(
        "not tried, because the rules of table mangle could not be set, without which connections \
         that DNAT brings to the VIP are not told from others"
    )]
    NotNoted,
    /// NOTRACK rules were held back.
    #[error(
        "not tried, because the ACCEPT rules could not be set, without which a filter may drop \
         what is untracked (--accept-rules=never sets no ACCEPT rules and needs none)"
    )]
    NotAccepted,
}

impl Error {
    /// True if iptables or the kernel did not take a rule as it is.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Command(CommandError::Failed { .. }) | Self::Vanished { .. }
        )
    }

    /// True if iptables-nft found a kernel without nf_tables.
    pub fn is_without_nf_tables(&self) -> bool {
        matches!(self, Self::Command(cause) if cause.is_without_nf_tables())
    }
}
