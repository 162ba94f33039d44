// SPDX-License-Identifier: Apache-2.0

//! Errors about rules and sets.

use proxy_rules::xtables::{self, CommandError};

/// Failure to observe or change rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tables cannot be read, or a program failed.
    #[error(transparent)]
    Tables(#[from] xtables::Error),
    /// A table was changed but does not contain an inserted rule.
    #[error(
        "`{program}` reported success, but this rule is not in the table exactly once: {rule}. \
         Either the kernel lacks the modules (xt_CT, xt_comment, xt_set, nft_compat) or another program changes \
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
        "set {name} is used by a foreign rule: remove that rule (`iptables-save | grep \
         {name}` and `nft list ruleset` show it); the next pass retries"
    )]
    SetInUse {
        /// The set.
        name: String,
        /// ipset's error.
        #[source]
        source: CommandError,
    },
    /// Learning rules were not inserted.
    #[error(
        "skipped, because the rules in table mangle could not be set, without which connections \
         that DNAT sends to the VIP cannot be distinguished from others"
    )]
    NotNoted,
    /// NOTRACK rules were not inserted.
    #[error(
        "skipped, because the ACCEPT rules could not be set, without which filters may drop \
         untracked packets (--accept-rules=never does without ACCEPT rules)"
    )]
    NotAccepted,
}

impl Error {
    /// True if iptables or the kernel rejected a rule.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Tables(xtables::Error::Command(CommandError::Failed { .. }))
                | Self::Vanished { .. }
        )
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        Self::Tables(error.into())
    }
}
