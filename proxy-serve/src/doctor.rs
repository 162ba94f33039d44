// SPDX-License-Identifier: Apache-2.0

//! The findings of a `doctor` command: their severity, their output, and the exit code.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

/// The exit code if a feature is degraded or a check could not run.
const WARNINGS: u8 = 3;
/// The exit code if connections fail.
const BROKEN: u8 = 4;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The checked item is correct.
    Ok,
    /// The check does not apply here.
    NotApplicable,
    /// The check could not run.
    Unknown,
    /// The checked item works, but is degraded or will stop working soon.
    Warning,
    /// Connections fail.
    Broken,
}

/// One finding. The names of the fields are part of the output's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The id of the check. The doctor's document has a paragraph for each id.
    pub id: &'static str,
    /// The severity.
    pub verdict: Verdict,
    /// The fault, in one sentence.
    pub finding: String,
    /// The remedy, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// A shell command that carries out the remedy, if one command suffices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl Verdict {
    /// Returns the name that is printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
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
    /// Creates a finding for a correct item.
    pub fn ok(id: &'static str, finding: impl Into<String>) -> Self {
        Self::new(id, Verdict::Ok, finding)
    }

    /// Creates a finding for a check that does not apply, with the reason.
    pub fn not_applicable(id: &'static str, why: impl Into<String>) -> Self {
        Self::new(id, Verdict::NotApplicable, why)
    }

    /// Creates a finding for a check that could not run.
    pub fn unknown(
        id: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(id, Verdict::Unknown, finding).with_remedy(remedy)
    }

    /// Creates a finding for an item that works but is degraded or at risk.
    pub fn warning(
        id: &'static str,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(id, Verdict::Warning, finding).with_remedy(remedy)
    }

    /// Creates a finding for an item that does not work.
    pub fn broken(id: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(id, Verdict::Broken, finding).with_remedy(remedy)
    }

    /// Adds a shell command that carries out the remedy.
    #[must_use]
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

#[derive(Serialize)]
struct Document<'a> {
    verdict: Verdict,
    checks: &'a [Check],
}

/// Prints the findings to standard output, as a table for people or as JSON.
///
/// # Errors
/// Returns an error if standard output cannot be written to.
pub fn print(checks: &[Check], as_json: bool) -> io::Result<()> {
    let text = if as_json {
        let document = Document {
            verdict: worst(checks),
            checks,
        };
        serde_json::to_string_pretty(&document).map_err(io::Error::other)? + "\n"
    } else {
        table(checks)
    };
    io::stdout().write_all(text.as_bytes())
}

/// Returns the exit code: 0, or the one for the worst verdict.
#[must_use]
pub fn exit_code(checks: &[Check]) -> ExitCode {
    match worst(checks) {
        Verdict::Ok | Verdict::NotApplicable => ExitCode::SUCCESS,
        Verdict::Unknown | Verdict::Warning => ExitCode::from(WARNINGS),
        Verdict::Broken => ExitCode::from(BROKEN),
    }
}

/// Returns the worst verdict. A check that could not run does not count as correct.
fn worst(checks: &[Check]) -> Verdict {
    let has = |verdict| checks.iter().any(|check| check.verdict == verdict);
    [Verdict::Broken, Verdict::Warning, Verdict::Unknown]
        .into_iter()
        .find(|verdict| has(*verdict))
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
        if let Some(command) = &check.command {
            let _ = writeln!(text, "{indent}$ {command}");
        }
    }
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let _ = writeln!(
        text,
        "{} broken, {} warnings, {} unknown, {} ok, {} not applicable",
        count(Verdict::Broken),
        count(Verdict::Warning),
        count(Verdict::Unknown),
        count(Verdict::Ok),
        count(Verdict::NotApplicable),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_stands_first_and_the_remedy_below() {
        let checks = [
            Check::ok("vip", "10.96.0.2 is on lo"),
            Check::broken("firewall", "it drops", "let it pass").with_command("nft x"),
        ];
        assert_eq!(
            table(&checks),
            "ok      vip       10.96.0.2 is on lo\n\
             broken  firewall  it drops\n\
             \x20                 remedy: let it pass\n\
             \x20                 $ nft x\n\
             1 broken, 0 warnings, 0 unknown, 1 ok, 0 not applicable\n"
        );
    }

    #[test]
    fn the_worst_verdict_counts() {
        let ok = Check::ok("a", "");
        let not_applicable = Check::not_applicable("b", "");
        let unknown = Check::unknown("c", "cannot look: no", "try");
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
        let checks = [Check::warning("arp", "found", "do").with_command("x")];
        let document = Document {
            verdict: worst(&checks),
            checks: &checks,
        };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"verdict":"warning","checks":[{"id":"arp","verdict":"warning","finding":"found","remedy":"do","command":"x"}]}"#
        );
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
}
