// SPDX-License-Identifier: Apache-2.0

//! The flags of klog, Kubernetes' logging library, and the log settings that they represent. The flags are the same in
//! every program; a [`Style`] defines how a program spells them. [`crate::log`] writes the records.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};

use crate::flags;
use crate::log::{LogFile, LogFormat, LogOptions, ModuleLevel, Remark, Severity};

/// klog's default for the maximum size of a log file, in MiB.
const MAX_MIB: u64 = 1800;

/// The spelling of klog's flags in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spelling {
    /// The program's name. The log file in a log directory has this name with the suffix `.log`.
    pub program: &'static str,
    /// The separator between the words of a flag.
    pub separator: Separator,
    /// The prefix of the environment variables' names, or `None` if there are no such variables.
    pub env_prefix: Option<&'static str>,
    /// The default value of `-v`.
    pub verbosity: i32,
    /// The help text of `-v`.
    pub verbosity_help: &'static str,
    /// The help text of `--vmodule`.
    pub modules_help: &'static str,
    /// True if the program also has the flags that were added to klog after the sidecar was written: `one-output`,
    /// `alsologtostderrthreshold`, `legacy-stderr-threshold-behavior`.
    pub newer_flags: bool,
    /// True if messages are quoted in klog's format, as by its structured calls.
    pub quoted: bool,
}

/// The character between the words of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// An underscore, as in klog itself. Flags with hyphens are accepted, too.
    Underscore,
    /// A hyphen. Flags with underscores are unknown.
    Hyphen,
}

impl Spelling {
    /// Returns the name of a flag in this program's spelling, without the leading hyphens.
    #[must_use]
    pub fn flag(&self, name: &str) -> String {
        match self.separator {
            Separator::Underscore => name.to_owned(),
            Separator::Hyphen => name.replace('_', "-"),
        }
    }

    /// Creates a flag with its value's name and its help.
    fn arg(&self, name: &'static str, value: &'static str, help: impl Into<String>) -> Arg {
        let mut arg = Arg::new(name)
            .long(self.flag(name))
            .value_name(value)
            .help(help.into())
            .help_heading("klog compatibility");
        let hyphenated = name.replace('_', "-");
        if self.separator == Separator::Underscore && hyphenated != name {
            arg = arg.alias(hyphenated);
        }
        match self.env_prefix {
            Some(prefix) => arg.env(format!("{prefix}{}", name.to_uppercase())),
            None => arg,
        }
    }

    /// Creates a boolean flag. The flag alone means true.
    fn switch(&self, name: &'static str, default: bool, help: impl Into<String>) -> Arg {
        flags::switch(self.arg(name, "BOOL", help), default)
    }

    /// Creates a text flag whose default is empty and not displayed in the help.
    fn text(&self, name: &'static str, value: &'static str, help: impl Into<String>) -> Arg {
        self.arg(name, value, help)
            .default_value("")
            .hide_default_value(true)
    }

    fn severity(&self, name: &'static str, default: &'static str, help: impl Into<String>) -> Arg {
        self.arg(name, "SEVERITY", help)
            .default_value(default)
            .allow_negative_numbers(true)
            .value_parser(value_parser!(Severity))
    }

    fn verbosity_arg(&self) -> Arg {
        self.arg("v", "LEVEL", self.verbosity_help)
            .short('v')
            .help_heading("Logging")
            .default_value(self.verbosity.to_string())
            .allow_negative_numbers(true)
            .value_parser(value_parser!(i32))
    }

    /// Returns klog's flags, in the order of the help.
    fn args(&self) -> Vec<Arg> {
        let (file, dir) = (self.flag("log_file"), self.flag("log_dir"));
        let mut args = vec![
            self.verbosity_arg(),
            self.arg("vmodule", "PATTERN=LEVEL,...", self.modules_help)
                .help_heading("Logging")
                .value_parser(Modules::from_str),
            self.switch(
                "logtostderr",
                true,
                format!("Log to stderr; false: to --{file}, or into --{dir}"),
            ),
            self.switch(
                "alsologtostderr",
                false,
                "With a log file: log everything to stderr as well",
            ),
            self.severity(
                "stderrthreshold",
                "2",
                "With a log file: log to stderr as well from this severity on: INFO, WARNING, ERROR, FATAL \
                 or 0 to 3",
            ),
            self.text(
                "log_file",
                "FILE",
                "The log file, used with --logtostderr=false; records are appended",
            ),
            self.text(
                "log_dir",
                "DIR",
                format!(
                    "The directory for the log file {}.log, used with --logtostderr=false and without --{file}",
                    self.program
                ),
            ),
            self.arg(
                "log_file_max_size",
                "MIB",
                "The size in MiB at which the log file is renamed to FILE.old and a new one begun; 0: never",
            )
            .default_value(MAX_MIB.to_string())
            .allow_negative_numbers(true)
            .value_parser(value_parser!(u64)),
            self.switch(
                "skip_headers",
                false,
                "Lines of text and klog without time, level and source",
            ),
            self.switch(
                "add_dir_header",
                false,
                "Records name the source file and line they come from; with --log-format=klog, its directory too",
            ),
            self.switch(
                "skip_log_headers",
                false,
                "Accepted, has no effect: a new log file has no headers",
            ),
            self.arg("log_backtrace_at", "FILE:LINE", "Accepted, has no effect")
                .default_value(":0")
                .hide_default_value(true),
        ];
        if self.newer_flags {
            args.extend([
                self.severity(
                    "alsologtostderrthreshold",
                    "0",
                    "With --alsologtostderr: log to stderr as well from this severity on",
                ),
                self.switch(
                    "legacy_stderr_threshold_behavior",
                    true,
                    "--stderrthreshold does not apply while --logtostderr is true; false: it does",
                ),
                self.switch(
                    "one_output",
                    false,
                    "Accepted, has no effect: there is one log file for all severities",
                ),
            ]);
        }
        args
    }
}

/// The spelling of klog's flags as a type, because clap builds arguments from types.
pub trait Style: Debug + Clone {
    /// The spelling.
    const SPELLING: Spelling;
}

/// klog's flags in the spelling of `S`, to be flattened into a program's arguments.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "every flag stands for itself, as in klog"
)]
pub struct KlogArgs<S> {
    verbosity: i32,
    modules: Modules,
    to_stderr: bool,
    also_to_stderr: bool,
    also_threshold: Severity,
    stderr_threshold: Severity,
    ignore_threshold: bool,
    file: String,
    dir: String,
    file_max_mib: u64,
    skip_headers: bool,
    add_dir_header: bool,
    style: PhantomData<S>,
}

/// The entries of one `--vmodule` value.
#[derive(Debug, Clone, Default)]
struct Modules(Vec<ModuleLevel>);

impl FromStr for Modules {
    type Err = <ModuleLevel as FromStr>::Err;

    /// Parses a list. Empty entries are skipped, as in klog.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',')
            .filter(|entry| !entry.trim().is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl<S: Style> Args for KlogArgs<S> {
    fn augment_args(command: Command) -> Command {
        command.args(S::SPELLING.args())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: Style> FromArgMatches for KlogArgs<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        // Every flag has a default except for `vmodule`, and not every program has the newer flags.
        let newer = S::SPELLING.newer_flags;
        Ok(Self {
            verbosity: required(matches, "v"),
            modules: matches.get_one("vmodule").cloned().unwrap_or_default(),
            to_stderr: required(matches, "logtostderr"),
            also_to_stderr: required(matches, "alsologtostderr"),
            also_threshold: if newer {
                required(matches, "alsologtostderrthreshold")
            } else {
                Severity::Info
            },
            stderr_threshold: required(matches, "stderrthreshold"),
            ignore_threshold: !newer || required(matches, "legacy_stderr_threshold_behavior"),
            file: required(matches, "log_file"),
            dir: required(matches, "log_dir"),
            file_max_mib: required(matches, "log_file_max_size"),
            skip_headers: required(matches, "skip_headers"),
            add_dir_header: required(matches, "add_dir_header"),
            style: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Returns the value of a flag that has a default.
fn required<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches
        .get_one::<T>(name)
        .cloned()
        .expect("klog's flags have defaults")
}

impl<S: Style> KlogArgs<S> {
    /// Converts the flags to log settings with the given format.
    #[must_use]
    pub fn into_options(self, format: LogFormat) -> LogOptions {
        let spelling = S::SPELLING;
        let (file_flag, dir_flag) = (spelling.flag("log_file"), spelling.flag("log_dir"));
        let path = match (self.file.as_str(), self.dir.as_str()) {
            ("", "") => None,
            ("", dir) => Some(PathBuf::from(dir).join(format!("{}.log", spelling.program))),
            (file, _) => Some(PathBuf::from(file)),
        };
        let mut remarks = Vec::new();
        if self.to_stderr && path.is_some() {
            remarks.push(Remark::Warning(format!(
                "--{file_flag} and --{dir_flag} have no effect while --logtostderr is true; \
                 to log to the file, give --logtostderr=false"
            )));
        }
        if !self.to_stderr && path.is_none() {
            remarks.push(Remark::Warning(format!(
                "--logtostderr=false without --{file_flag} or --{dir_flag}: the log stays on stderr"
            )));
        }
        let file = path.filter(|_| !self.to_stderr).map(|path| LogFile {
            path,
            max_bytes: self.file_max_mib.saturating_mul(1024 * 1024),
        });
        let stderr_threshold = match &file {
            Some(_) if self.also_to_stderr => self.also_threshold,
            None if self.ignore_threshold => Severity::Info,
            _ => self.stderr_threshold,
        };
        LogOptions {
            format,
            quoted: spelling.quoted,
            verbosity: self.verbosity,
            modules: self.modules.0,
            file,
            file_flags: (file_flag, dir_flag),
            stderr_threshold,
            headers: !self.skip_headers,
            source: self.add_dir_header,
            remarks,
            ..LogOptions::default()
        }
    }
}
