// SPDX-License-Identifier: Apache-2.0

//! What a check comes to.

use std::error::Error as StdError;

use serde::Serialize;

use crate::reconcile::report::chain;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It has no meaning here.
    NotApplicable,
    /// It could not be looked at.
    Unknown,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// Connections fail.
    Broken,
}

/// One finding. The names of the fields are part of the output's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which check it is; docs/doctor.md has a section for each.
    pub id: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub finding: String,
    /// What to do about it, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The same as a line for a shell, where one will do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotApplicable => "not applicable",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Broken => "broken",
        }
    }
}

impl Check {
    /// It is as it should be.
    pub fn ok(id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(id, Verdict::Ok, finding)
    }

    /// It has no meaning here, and why.
    pub fn not_applicable(id: &'static str, why: impl Into<String>) -> Self {
        Self::new(id, Verdict::NotApplicable, why)
    }

    /// It could not be looked at.
    pub fn unknown(
        id: &'static str,
        what: impl Into<String>,
        error: &dyn StdError,
        remedy: impl Into<String>,
    ) -> Self {
        let finding = format!("cannot {}: {}", what.into(), chain(error));
        Self::new(id, Verdict::Unknown, finding).with_remedy(remedy)
    }

    /// Nothing was found, but a table of iptables could not be read, in which it may be.
    pub fn unread_table(
        id: &'static str,
        program: &str,
        table: &str,
        error: &dyn StdError,
    ) -> Self {
        let what = format!("read table {table} of {program}");
        let remedy =
            format!("install {program}-save, or run the doctor as root in the agent's container");
        Self::unknown(id, what, error, remedy)
    }

    /// It works, but is degraded or at risk.
    pub fn warning(
        id: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(id, Verdict::Warning, finding).with_remedy(remedy)
    }

    /// It does not work.
    pub fn broken(id: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(id, Verdict::Broken, finding).with_remedy(remedy)
    }

    /// With a line for a shell that does what the remedy says.
    pub fn with_command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }

    fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn new(id: &'static str, verdict: Verdict, finding: impl Into<String>) -> Self {
        Self {
            id,
            verdict,
            finding: finding.into(),
            remedy: None,
            command: None,
        }
    }
}
