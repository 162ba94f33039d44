// SPDX-License-Identifier: Apache-2.0

//! The API server's name: a fully qualified domain name by Kubernetes' rules, in lower case, with at least two labels,
//! with or without a trailing dot.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Maximum length of a name in bytes, without a trailing dot (RFC 1035, 2.3.4).
const NAME_LIMIT: usize = 253;

/// Maximum length of a label in bytes (RFC 1035, 2.3.4).
const LABEL_LIMIT: usize = 63;

/// An invalid name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FqdnError {
    /// Fewer than two labels.
    #[error("not fully qualified; give at least two labels, for example api.example.com")]
    TooFewLabels,
    /// The name is longer than DNS allows.
    #[error("longer than {NAME_LIMIT} characters")]
    NameTooLong,
    /// A label is longer than DNS allows.
    #[error("the label '{0}' is longer than {LABEL_LIMIT} characters")]
    LabelTooLong(String),
    /// Two dots in a row, or a dot at the start.
    #[error("an empty label; labels are separated by single dots")]
    EmptyLabel,
    /// A label with characters that RFC 1123 does not allow.
    #[error(
        "the label '{0}' is invalid; a label consists of lower-case letters, digits and hyphens, and neither starts \
         nor ends with a hyphen"
    )]
    BadLabel(String),
}

/// A valid name, as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fqdn(String);

impl Fqdn {
    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Fqdn {
    type Err = FqdnError;

    fn from_str(text: &str) -> Result<Self, FqdnError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if !name.contains('.') {
            return Err(FqdnError::TooFewLabels);
        }
        if name.len() > NAME_LIMIT {
            return Err(FqdnError::NameTooLong);
        }
        name.split('.').try_for_each(check_label)?;
        Ok(Self(text.to_owned()))
    }
}

fn check_label(label: &str) -> Result<(), FqdnError> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if label.is_empty() {
        return Err(FqdnError::EmptyLabel);
    }
    if label.len() > LABEL_LIMIT {
        return Err(FqdnError::LabelTooLong(label.to_owned()));
    }
    if !label.bytes().all(allowed) || label.starts_with('-') || label.ends_with('-') {
        return Err(FqdnError::BadLabel(label.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_as_they_are() {
        for name in [
            "foo.bar",
            "foo.bar.",
            "api.my-shoot.example.com",
            "1.example",
            // Labels may be numbers, so IPv4 addresses pass, as with Gardener's webhook.
            "10.96.0.1",
            "xn--bcher-kva.example",
            &format!("{}.{}", "a".repeat(63), "b".repeat(63)),
            // 253 characters and the dot at the end.
            &"a.".repeat(127),
        ] {
            assert_eq!(name.parse::<Fqdn>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        use FqdnError::*;
        let label = |text: &str| BadLabel(text.to_owned());
        for (name, error) in [
            ("", TooFewLabels),
            (".", TooFewLabels),
            ("localhost", TooFewLabels),
            ("localhost.", TooFewLabels),
            ("foo..bar", EmptyLabel),
            (".foo.bar", EmptyLabel),
            ("foo.bar..", EmptyLabel),
            ("Foo.bar", label("Foo")),
            ("foo_1.bar", label("foo_1")),
            ("-foo.bar", label("-foo")),
            ("foo.bar-", label("bar-")),
            ("*.foo.bar", label("*")),
            ("foo.bar ", label("bar ")),
            ("fö.bar", label("fö")),
            ("foo.bar\"", label("bar\"")),
            ("fd00::1", TooFewLabels),
            ("foo.bar:443", label("bar:443")),
            (&format!("{}a", "a.".repeat(127)), NameTooLong),
            (
                &format!("{}.com", "a".repeat(64)),
                LabelTooLong("a".repeat(64)),
            ),
        ] {
            assert_eq!(name.parse::<Fqdn>(), Err(error), "{name}");
        }
    }
}
