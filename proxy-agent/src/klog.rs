// SPDX-License-Identifier: Apache-2.0

//! The flags of klog, Kubernetes' logging library, which the sidecar's command line has, and what
//! they mean for the agent's log. How the log does it is `telemetry::log`'s business.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args};

use crate::goflag::parse_bool;
use crate::telemetry::log::{LogFile, LogFormat, LogOptions, ModuleLevel, Remark, Severity};

/// The log file's name below `--log_dir`.
const LOG_FILE_NAME: &str = "proxy-agent.log";

/// klog's flags, spelled with underscores as klog does; with dashes they are taken as well.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "every flag stands for itself, as in klog"
)]
#[expect(clippy::doc_markdown, reason = "the text of --help")]
#[command(next_help_heading = "klog compatibility")]
pub struct KlogArgs {
    /// Log level: 4 adds debug records, 6 trace records and the eBPF programs' own
    #[arg(
        short,
        long,
        env = "PROXY_AGENT_V",
        value_name = "LEVEL",
        help_heading = "Logging",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub v: i32,

    /// Levels of single modules, for example link=4,backend/*=6,ebpf=4
    #[arg(
        long, env = "PROXY_AGENT_VMODULE", value_name = "PATTERN=LEVEL,...",
        help_heading = "Logging", value_parser = parse_modules
    )]
    pub vmodule: Option<Modules>,

    /// Log to stderr; false: to --log_file, or into --log_dir
    #[arg(
        long = "logtostderr", env = "PROXY_AGENT_LOGTOSTDERR", value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true", value_parser = parse_bool
    )]
    pub to_stderr: bool,

    /// With a log file: log everything to stderr as well
    #[arg(
        long = "alsologtostderr", env = "PROXY_AGENT_ALSOLOGTOSTDERR", value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub also_to_stderr: bool,

    /// With a log file: log to stderr as well from this severity on: INFO, WARNING, ERROR, FATAL
    /// or 0 to 3
    #[arg(
        long = "stderrthreshold",
        env = "PROXY_AGENT_STDERRTHRESHOLD",
        value_name = "SEVERITY",
        default_value = "2",
        allow_negative_numbers = true
    )]
    pub stderr_threshold: Severity,

    /// The log file, used with --logtostderr=false; records are appended
    #[arg(
        long = "log_file",
        alias = "log-file",
        env = "PROXY_AGENT_LOG_FILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    pub file: String,

    /// The directory for the log file proxy-agent.log, used with --logtostderr=false and without
    /// --log_file
    #[arg(
        long = "log_dir",
        alias = "log-dir",
        env = "PROXY_AGENT_LOG_DIR",
        value_name = "DIR",
        default_value = "",
        hide_default_value = true
    )]
    pub dir: String,

    /// The size in MiB at which the log file is renamed to FILE.old and a new one begun; 0: never
    #[arg(
        long = "log_file_max_size",
        alias = "log-file-max-size",
        env = "PROXY_AGENT_LOG_FILE_MAX_SIZE",
        value_name = "MIB",
        default_value_t = 1800,
        allow_negative_numbers = true
    )]
    pub file_max_mib: u64,

    /// Lines of text and klog without time, level and source
    #[arg(
        long = "skip_headers", alias = "skip-headers", env = "PROXY_AGENT_SKIP_HEADERS",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub skip_headers: bool,

    /// Records name the source file and line they come from; with --log-format=klog, its directory too
    #[arg(
        long = "add_dir_header", alias = "add-dir-header", env = "PROXY_AGENT_ADD_DIR_HEADER",
        value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub add_dir_header: bool,

    /// Accepted, has no effect: a new log file has no headers
    #[arg(
        long = "skip_log_headers", alias = "skip-log-headers",
        env = "PROXY_AGENT_SKIP_LOG_HEADERS", value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    _skip_log_headers: bool,

    /// Accepted, has no effect
    #[arg(
        long = "log_backtrace_at",
        alias = "log-backtrace-at",
        env = "PROXY_AGENT_LOG_BACKTRACE_AT",
        value_name = "FILE:LINE",
        default_value = ":0",
        hide_default_value = true
    )]
    _backtrace_at: String,
}

/// The entries of one `--vmodule`.
#[derive(Debug, Clone, Default)]
pub struct Modules(Vec<ModuleLevel>);

/// Reads the entries; empty ones are skipped, as klog does.
fn parse_modules(text: &str) -> Result<Modules, <ModuleLevel as FromStr>::Err> {
    text.split(',')
        .filter(|entry| !entry.trim().is_empty())
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map(Modules)
}

impl KlogArgs {
    /// What these flags mean for the agent's log in `format`.
    pub fn into_options(self, format: LogFormat) -> LogOptions {
        let path = match (self.file.as_str(), self.dir.as_str()) {
            ("", "") => None,
            ("", dir) => Some(PathBuf::from(dir).join(LOG_FILE_NAME)),
            (file, _) => Some(PathBuf::from(file)),
        };
        let mut remarks = Vec::new();
        if self.to_stderr && path.is_some() {
            remarks.push(Remark::Warning(
                "--log_file and --log_dir have no effect while --logtostderr is true; \
                 to log to the file, give --logtostderr=false"
                    .to_owned(),
            ));
        }
        if !self.to_stderr && path.is_none() {
            remarks.push(Remark::Warning(
                "--logtostderr=false without --log_file or --log_dir: the log stays on stderr"
                    .to_owned(),
            ));
        }
        LogOptions {
            format,
            verbosity: self.v,
            modules: self.vmodule.unwrap_or_default().0,
            file: path.filter(|_| !self.to_stderr).map(|path| LogFile {
                path,
                max_bytes: self.file_max_mib.saturating_mul(1024 * 1024),
            }),
            stderr_threshold: if self.also_to_stderr {
                Severity::Info
            } else {
                self.stderr_threshold
            },
            headers: !self.skip_headers,
            source: self.add_dir_header,
            remarks,
        }
    }
}
