// SPDX-License-Identifier: Apache-2.0

//! The text of an error in a finding, and the output format of findings.

use std::error::Error;
use std::fmt::Write as _;
use std::str::FromStr;

/// Returns the text of an error and its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors already contain the text of their cause.
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The output format of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A table for people.
    Table,
    /// JSON for programs.
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_are_told_with_their_causes_once() {
        let cause = io::Error::other("refused");
        let error = io::Error::other(cause);
        assert_eq!(chain(&error), "refused");
    }
}
