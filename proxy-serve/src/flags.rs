// SPDX-License-Identifier: Apache-2.0

//! Command lines with the syntax of pflag, which Kubernetes' own programs use, on top of clap; and the exit after wrong
//! usage. Each program defines its flags.

mod values;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, Parser, value_parser};

pub use self::values::{CLASSIFIED, Values};

/// The id of the argument that receives positional arguments.
const IGNORED: &str = "ignored";

/// The text that is printed after wrong usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadUsage {
    /// The error only.
    Error,
    /// The error, followed by the help with all flags, as Go programs print it.
    ErrorAndHelp,
}

/// Parses the command line of the process. Returns its meaning and the value of each flag. For `--help`, `--version`
/// and errors the text is printed, and the program should then exit.
///
/// # Errors
/// Returns the exit code for the program: 0 after `--help` and `--version`, 1 after wrong usage.
pub fn parse<A: Parser>(on_bad_usage: OnBadUsage) -> Result<(A, Values), ExitCode> {
    parse_from(A::command(), std::env::args_os(), on_bad_usage)
}

/// Parses the command line like [`parse`], but with the syntax of pflag: see [`pflag`].
///
/// # Errors
/// Returns an error under the same conditions as [`parse`].
pub fn parse_pflag<A: Parser>() -> Result<(A, Values), ExitCode> {
    let command = pflag(A::command());
    parse_from(command, std::env::args_os(), OnBadUsage::ErrorAndHelp)
}

fn parse_from<A: Parser>(
    mut command: Command,
    line: impl IntoIterator<Item = OsString>,
    on_bad_usage: OnBadUsage,
) -> Result<(A, Values), ExitCode> {
    let read = command.try_get_matches_from_mut(line).and_then(|matches| {
        let args = A::from_arg_matches(&matches)?;
        Ok((args, Values::read(&command, &matches)))
    });
    read.map_err(|error| {
        let error = error.format(&mut command);
        // A closed stdout or stderr does not change the exit code.
        let _ = error.print();
        if error.use_stderr() && on_bad_usage == OnBadUsage::ErrorAndHelp {
            eprint_help(&mut command);
        }
        ExitCode::from(u8::from(error.use_stderr()))
    })
}

fn eprint_help(command: &mut Command) {
    use std::io::Write as _;
    let help = command.render_help();
    let _ = write!(std::io::stderr().lock(), "\n{help}");
}

/// Changes how `command` parses its command line, so that it follows pflag's rules:
///
/// - a flag's value may follow an equals sign or be the next word, whatever that word begins with;
/// - a boolean flag alone is true, and accepts a value only after an equals sign: this applies to flags that derive
///   creates from a `bool`, with `default_value_t = true` if they are true by default;
/// - if a flag is repeated, the last value counts, but lists are joined;
/// - positional arguments are ignored.
#[must_use]
pub fn pflag(command: Command) -> Command {
    command
        .args_override_self(true)
        .mut_args(|arg| {
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                let default = arg.get_default_values().iter().any(|value| value == "true");
                return switch(arg, default);
            }
            let takes_next_word = arg.get_action().takes_values() && !arg.is_require_equals_set();
            arg.allow_hyphen_values(takes_next_word)
        })
        .arg(
            Arg::new(IGNORED)
                .num_args(0..)
                .action(ArgAction::Append)
                .value_parser(value_parser!(OsString))
                .hide(true),
        )
}

/// Changes an argument to a boolean with Go's syntax: `--flag`, `--flag=true`, `--flag=false`.
pub(crate) fn switch(arg: Arg, default: bool) -> Arg {
    arg.value_name("BOOL")
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value(if default { "true" } else { "false" })
        .default_missing_value("true")
        .value_parser(crate::value::parse_bool)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _};

    use super::*;
    use crate::klog::{KlogArgs, Separator, Spelling, Style};
    use crate::log::{LogFormat, LogOptions, Severity};
    use crate::value::{GoDuration, List};

    #[derive(Debug, Clone)]
    struct Hyphens;

    impl Style for Hyphens {
        const SPELLING: Spelling = Spelling {
            program: "some-server",
            separator: Separator::Hyphen,
            env_prefix: None,
            verbosity: 4,
            verbosity_help: "Log level",
            modules_help: "Levels of single modules",
            newer_flags: true,
            quoted: true,
        };
    }

    #[derive(Debug, Parser)]
    struct Server {
        #[arg(long, default_value = "")]
        name: String,
        #[arg(long, default_value = "1h0m0s")]
        wait: GoDuration,
        #[arg(long, default_value_t = true)]
        delete: bool,
        #[arg(long)]
        forever: bool,
        #[arg(long, default_value = "", action = ArgAction::Append)]
        suites: Vec<List>,
        #[command(flatten)]
        klog: KlogArgs<Hyphens>,
    }

    fn read(words: &[&str]) -> Result<Server, clap::Error> {
        let line = ["server"].iter().chain(words).map(OsString::from);
        let matches = pflag(Server::command()).try_get_matches_from(line)?;
        Server::from_arg_matches(&matches)
    }

    fn log(words: &[&str]) -> LogOptions {
        read(words).unwrap().klog.into_options(LogFormat::Klog)
    }

    #[test]
    fn the_command_is_sound() {
        pflag(Server::command()).debug_assert();
    }

    #[test]
    fn values_behind_an_equals_sign_and_as_the_next_word() {
        for words in [
            ["--name=-x", "--wait=5s"].as_slice(),
            &["--name", "-x", "--wait", "5s"],
        ] {
            let server = read(words).unwrap();
            assert_eq!(server.name, "-x");
            assert_eq!(server.wait, GoDuration::from_secs(5));
        }
        assert_eq!(read(&["--name", "--wait=1s"]).unwrap().name, "--wait=1s");
        assert_eq!(read(&["--name=a", "--name=b"]).unwrap().name, "b");
        assert_eq!(read(&["--name", ""]).unwrap().name, "");
    }

    #[test]
    fn booleans_take_a_value_behind_an_equals_sign_only() {
        assert!(read(&[]).unwrap().delete);
        assert!(!read(&["--delete=false"]).unwrap().delete);
        assert!(!read(&[]).unwrap().forever);
        assert!(read(&["--forever"]).unwrap().forever);
        assert!(read(&["--forever=T"]).unwrap().forever);
        // The word is a positional argument and is therefore ignored.
        assert!(read(&["--delete", "false", "--name=a"]).unwrap().delete);
        assert!(read(&["--delete=maybe"]).is_err());
    }

    #[test]
    fn positional_arguments_are_ignored_wherever_they_stand() {
        let server = read(&["one", "--name=a", "two", "--", "--name=b"]).unwrap();
        assert_eq!(server.name, "a");
    }

    #[test]
    fn lists_are_joined() {
        let all = |words: &[&str]| List::join(&read(words).unwrap().suites);
        assert_eq!(all(&[]), Vec::<String>::new());
        assert_eq!(all(&["--suites="]), Vec::<String>::new());
        assert_eq!(all(&["--suites=a,b", "--suites", "c"]), ["a", "b", "c"]);
    }

    #[test]
    fn bad_usage_names_the_flag() {
        for bad in ["--wait=60", "--unknown", "--log_dir=/tmp", "-x", "--v=loud"] {
            let error = read(&[bad]).unwrap_err().to_string();
            let flag = bad.split('=').next().unwrap();
            assert!(error.contains(flag), "{bad}: {error}");
        }
    }

    #[test]
    fn klogs_flags_with_hyphens() {
        let options = log(&[]);
        assert_eq!((options.verbosity, options.file.is_none()), (4, true));
        assert_eq!(options.stderr_threshold, Severity::Info);
        for words in [["-v=6"].as_slice(), &["-v", "6"], &["-v6"], &["--v=6"]] {
            assert_eq!(log(words).verbosity, 6, "{words:?}");
        }
        let to_file = [
            "--logtostderr=false",
            "--log-file=/tmp/x",
            "--log-file-max-size=0",
        ];
        let options = log(&to_file);
        assert_eq!(options.file.as_ref().unwrap().max_bytes, 0);
        assert_eq!(options.stderr_threshold, Severity::Error);
        let also = [
            &to_file,
            ["--alsologtostderr", "--alsologtostderrthreshold=1"].as_slice(),
        ];
        assert_eq!(log(&also.concat()).stderr_threshold, Severity::Warning);
        let dir = log(&["--logtostderr=false", "--log-dir=/tmp"]);
        assert_eq!(
            dir.file.unwrap().path.to_str(),
            Some("/tmp/some-server.log")
        );
    }

    #[test]
    fn the_threshold_applies_to_stderr_when_klogs_legacy_behaviour_is_off() {
        let threshold = |words: &[&str]| log(words).stderr_threshold;
        let new = "--legacy-stderr-threshold-behavior=false";
        assert_eq!(threshold(&["--stderrthreshold=WARNING"]), Severity::Info);
        assert_eq!(
            threshold(&["--stderrthreshold=WARNING", new]),
            Severity::Warning
        );
    }
}
