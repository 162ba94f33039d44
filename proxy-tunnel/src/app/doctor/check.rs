// SPDX-License-Identifier: Apache-2.0

//! What a check comes to, and how findings are printed: in the form of the node agent's doctor.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::str::FromStr;

use serde::Serialize;

/// Something does not work as well as it could, or could not be looked at.
const WARNINGS: u8 = 3;
/// Connections fail.
const BROKEN: u8 = 4;

/// How bad it is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

impl Verdict {
    const ALL: [Self; 5] = [
        Self::Broken,
        Self::Warning,
        Self::Unknown,
        Self::Ok,
        Self::NotApplicable,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotApplicable => "not applicable",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Broken => "broken",
        }
    }
}

/// One finding. The names of the fields are part of the output's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which check it is; docs/tunnel-doctor.md has a paragraph for each.
    pub id: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub finding: String,
    /// What to do about it, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// It is as it should be.
    pub fn ok(id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(id, Verdict::Ok, finding, None)
    }

    /// It has no meaning here, and why.
    pub fn not_applicable(id: &'static str, why: impl Into<String>) -> Self {
        Self::new(id, Verdict::NotApplicable, why, None)
    }

    /// It could not be looked at.
    pub fn unknown(
        id: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(id, Verdict::Unknown, finding, Some(remedy.into()))
    }

    /// It works, but is degraded or at risk.
    pub fn warning(
        id: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(id, Verdict::Warning, finding, Some(remedy.into()))
    }

    /// It does not work.
    pub fn broken(id: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(id, Verdict::Broken, finding, Some(remedy.into()))
    }

    fn new(
        id: &'static str,
        verdict: Verdict,
        finding: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self {
            id,
            verdict,
            finding: finding.into(),
            remedy,
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause.
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is no form; give table or json")),
        }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    verdict: Verdict,
    checks: &'a [Check],
}

/// Prints the findings to standard output.
///
/// # Errors
/// They cannot be written.
pub fn print(output: Output, checks: &[Check]) -> io::Result<()> {
    let text = match output {
        Output::Table => table(checks),
        Output::Json => {
            let document = Document {
                verdict: worst(checks),
                checks,
            };
            serde_json::to_string_pretty(&document).map_err(io::Error::other)? + "\n"
        }
    };
    io::stdout().write_all(text.as_bytes())
}

/// 0, or how bad it is.
#[must_use]
pub fn exit_code(checks: &[Check]) -> ExitCode {
    match worst(checks) {
        Verdict::Ok | Verdict::NotApplicable => ExitCode::SUCCESS,
        Verdict::Unknown | Verdict::Warning => ExitCode::from(WARNINGS),
        Verdict::Broken => ExitCode::from(BROKEN),
    }
}

/// The worst verdict; what could not be looked at is not good, and what has no meaning is not bad.
fn worst(checks: &[Check]) -> Verdict {
    let worst = checks.iter().map(|check| check.verdict).max();
    worst
        .filter(|verdict| *verdict != Verdict::NotApplicable)
        .unwrap_or(Verdict::Ok)
}

fn table(checks: &[Check]) -> String {
    let width = |text: fn(&Check) -> usize| checks.iter().map(text).max().unwrap_or(0);
    let verdicts = width(|check| check.verdict.name().len());
    let ids = width(|check| check.id.len());
    let indent = " ".repeat(verdicts + ids + 4);
    let mut text = String::new();
    for check in checks {
        let (verdict, id) = (check.verdict.name(), check.id);
        let _ = writeln!(text, "{verdict:verdicts$}  {id:ids$}  {}", check.finding);
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "{indent}remedy: {remedy}");
        }
    }
    let counts = Verdict::ALL.map(|verdict| {
        let count = checks.iter().filter(|check| check.verdict == verdict);
        let plural = if verdict == Verdict::Warning { "s" } else { "" };
        format!("{} {}{plural}", count.count(), verdict.name())
    });
    text + &counts.join(", ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_stands_first_and_the_remedy_below() {
        let checks = [
            Check::ok("agent", "it runs"),
            Check::broken("certificate", "it has expired", "renew it"),
        ];
        assert_eq!(
            table(&checks),
            "ok      agent        it runs\n\
             broken  certificate  it has expired\n\
             \x20                    remedy: renew it\n\
             1 broken, 0 warnings, 0 unknown, 1 ok, 0 not applicable\n"
        );
    }

    #[test]
    fn the_worst_verdict_counts() {
        let ok = Check::ok("a", "");
        let not_applicable = Check::not_applicable("b", "");
        let unknown = Check::unknown("c", "", "");
        let warning = Check::warning("d", "", "");
        let broken = Check::broken("e", "", "");
        assert_eq!(worst(&[]), Verdict::Ok);
        assert_eq!(worst(&[ok.clone(), not_applicable]), Verdict::Ok);
        assert_eq!(worst(&[ok, unknown.clone()]), Verdict::Unknown);
        assert_eq!(worst(&[unknown, warning.clone()]), Verdict::Warning);
        assert_eq!(worst(&[broken, warning]), Verdict::Broken);
    }

    #[test]
    fn json_has_the_fields_that_are_documented() {
        let checks = [Check::warning("clock", "found", "do")];
        let document = Document {
            verdict: worst(&checks),
            checks: &checks,
        };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"verdict":"warning","checks":[{"id":"clock","verdict":"warning","finding":"found","remedy":"do"}]}"#
        );
    }

    #[test]
    fn errors_are_told_with_their_causes_once() {
        let cause = io::Error::other("refused");
        let error = io::Error::other(cause);
        assert_eq!(chain(&error), "refused");
    }
}
