// SPDX-License-Identifier: Apache-2.0

//! The flags of a running program with their effective values, for display to operators. A value that may be a secret
//! is never stored, so it cannot be displayed by mistake.

use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};

/// The text that replaces a secret, as in Kubernetes' components (KEP-4828).
pub const CLASSIFIED: &str = "CLASSIFIED";

/// Words in the names of flags whose values are secrets, unless the value is a file name.
const SECRET: [&str; 8] = [
    "bearer",
    "credential",
    "credentials",
    "key",
    "passphrase",
    "password",
    "secret",
    "token",
];

/// The value names in the help that denote file paths.
const FILES: [&str; 2] = ["DIR", "FILE"];

/// All flags of a program, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(Arc<[(String, String)]>);

impl Values {
    /// Reads the values of those flags of `command` that have a long name, whether from the command line, the
    /// environment or a default. Several values of one flag are separated by commas. A flag without a value has an
    /// empty one.
    #[must_use]
    pub fn read(command: &Command, matches: &ArgMatches) -> Self {
        // `--help` and `--version` have no value.
        let has_value = |arg: &&Arg| {
            matches!(
                arg.get_action(),
                ArgAction::Set | ArgAction::Append | ArgAction::SetTrue
            )
        };
        let value = |arg: &Arg| {
            let name = arg.get_long()?;
            let value = if is_secret(name, arg) {
                CLASSIFIED.to_owned()
            } else {
                joined(arg, matches)
            };
            Some((name.to_owned(), value))
        };
        let flags = command.get_arguments().filter(has_value);
        let mut values: Vec<_> = flags.filter_map(value).collect();
        values.sort();
        Self(values.into())
    }

    /// Returns the names, without the leading hyphens, and the values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn joined(arg: &Arg, matches: &ArgMatches) -> String {
    let raw = matches.get_raw(arg.get_id().as_str());
    let values: Vec<_> = raw
        .into_iter()
        .flatten()
        .map(|value| value.to_string_lossy())
        .collect();
    values.join(",")
}

fn is_secret(name: &str, arg: &Arg) -> bool {
    let value_names = arg.get_value_names().unwrap_or_default();
    let is_path = value_names
        .iter()
        .any(|name| FILES.contains(&name.as_str()));
    !is_path && name.split(['-', '_']).any(|word| SECRET.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(words: &[&str]) -> Vec<(String, String)> {
        let flag = |name: &'static str| Arg::new(name).long(name).default_value("");
        let command = Command::new("program")
            .arg(flag("api-token"))
            .arg(flag("token-path").value_name("FILE"))
            .arg(flag("keepalive-time").default_value("1h0m0s"))
            .arg(Arg::new("list").long("list").action(ArgAction::Append))
            .arg(Arg::new("all").long("all").action(ArgAction::SetTrue))
            .arg(Arg::new("positional"));
        let mut built = command;
        let matches = built
            .try_get_matches_from_mut(["program"].iter().chain(words))
            .unwrap();
        let values = Values::read(&built, &matches);
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        values.iter().map(owned).collect()
    }

    #[test]
    fn every_flag_has_its_value_and_secrets_have_none() {
        let given = [
            "--list=a",
            "--list=b,c",
            "--api-token=hidden",
            "--token-path=/t",
            "x",
        ];
        let shown = values(&given);
        let want = [
            ("all", "false"),
            ("api-token", CLASSIFIED),
            ("keepalive-time", "1h0m0s"),
            ("list", "a,b,c"),
            ("token-path", "/t"),
        ];
        assert_eq!(shown, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let unset = values(&["--all"]);
        assert_eq!(unset[0].1, "true");
        assert_eq!(unset[1].1, CLASSIFIED);
        assert_eq!(unset[3].1, "");
    }
}
