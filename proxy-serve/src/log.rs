// SPDX-License-Identifier: Apache-2.0

//! Sets up logging: which records are written (`filter`), where they go (`output`) and how klog's lines look
//! (`format`). How that is spelled on the command line is [`crate::klog`]'s business.

mod filter;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod output;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use filter::{ModuleLevel, ModuleLevelError};
pub use output::{LogFile, Severity, SeverityError};
use thiserror::Error;
use tracing::dispatcher::{self, Dispatch};
use tracing::{info, warn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Registry, fmt};

use self::filter::Filter;
use self::format::Klog;
use self::output::Output;

/// klog's level from which on debug records are written.
pub const DEBUG_LEVEL: i32 = 4;
/// klog's level from which on trace records are written.
pub const TRACE_LEVEL: i32 = 6;

/// How records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for people
    #[default]
    Text,
    /// One JSON object per line
    Json,
    /// Lines as klog writes them, for pipelines that know those
    Klog,
}

/// The settings of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// How records are written.
    pub format: LogFormat,
    /// Whether messages are quoted in klog's format.
    pub quoted: bool,
    /// Records below this severity are not written, whatever the levels say.
    pub lowest: Severity,
    /// klog's level for everything: debug from 4, trace from 6.
    pub verbosity: i32,
    /// klog's level for single modules; the first that matches counts, if it is above `verbosity`.
    pub modules: Vec<ModuleLevel>,
    /// The file to log to; without one, stderr is the only place.
    pub file: Option<LogFile>,
    /// The flags that name the file and its directory, for error messages.
    pub file_flags: (String, String),
    /// The lowest severity that goes to stderr; with a file, to both.
    pub stderr_threshold: Severity,
    /// Whether lines of text start with time, level and target.
    pub headers: bool,
    /// Whether records name the source file and line they come from.
    pub source: bool,
    /// Remarks on the command line, logged as soon as logging works.
    pub remarks: Vec<Remark>,
}

/// A remark on the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// The value that a setting resolved to.
    Info(String),
    /// Settings that have no effect together.
    Warning(String),
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The log file could not be opened.
    #[error(
        "cannot open the log file {}; create its directory, or give another file with --{file_flag} \
         or directory with --{dir_flag}",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The flag that names a file.
        file_flag: String,
        /// The flag that names a directory.
        dir_flag: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process has a logger already.
    #[error("logging is already set up in this process")]
    Installed(#[source] dispatcher::SetGlobalDefaultError),
}

impl Default for LogOptions {
    /// Text at level 0 to stderr.
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            quoted: false,
            lowest: Severity::Info,
            verbosity: 0,
            modules: Vec::new(),
            file: None,
            file_flags: ("log_file".to_owned(), "log_dir".to_owned()),
            stderr_threshold: Severity::Info,
            headers: true,
            source: false,
            remarks: Vec::new(),
        }
    }
}

impl LogOptions {
    /// Whether expensive debug records of a target are to be made: from level 6 on, or when an entry for
    /// modules sets this target to 4 or more. The program's own debug level is not enough.
    #[must_use]
    pub fn is_debugging(&self, target: &str) -> bool {
        self.verbosity >= TRACE_LEVEL || filter::module_level(&self.modules, target) >= DEBUG_LEVEL
    }

    /// The subscriber for these options; opens the log file.
    fn dispatch(&self) -> Result<Dispatch, LogError> {
        let output = Output::open(self.file.as_ref(), self.stderr_threshold)
            .map_err(|(path, source)| self.unopened(path, source))?;
        let filter = Filter::new(self.verbosity, self.lowest, &self.modules);
        let registry = Registry::default().with(filter);
        let layer = fmt::layer()
            .with_file(self.source)
            .with_line_number(self.source)
            // Such errors are printed with eprintln!, which panics where stderr is closed or full.
            .log_internal_errors(false)
            .with_writer(output);
        Ok(match (self.format, self.headers) {
            (LogFormat::Json, _) => Dispatch::new(
                registry.with(
                    layer
                        .json()
                        .flatten_event(true)
                        .with_current_span(false)
                        .with_span_list(false),
                ),
            ),
            (LogFormat::Klog, headers) => Dispatch::new(registry.with(layer.event_format(Klog {
                headers,
                directory: self.source,
                quoted: self.quoted,
            }))),
            (LogFormat::Text, true) => Dispatch::new(registry.with(layer)),
            (LogFormat::Text, false) => Dispatch::new(
                registry.with(layer.without_time().with_level(false).with_target(false)),
            ),
        })
    }

    fn unopened(&self, path: PathBuf, source: io::Error) -> LogError {
        let (file_flag, dir_flag) = self.file_flags.clone();
        LogError::Open {
            path,
            file_flag,
            dir_flag,
            source,
        }
    }
}

/// Makes `options` the process's way of logging.
///
/// # Errors
///
/// The log file cannot be opened, or this was called before.
pub fn init(options: &LogOptions) -> Result<(), LogError> {
    dispatcher::set_global_default(options.dispatch()?).map_err(LogError::Installed)?;
    for remark in &options.remarks {
        match remark {
            Remark::Info(text) => info!("{text}"),
            Remark::Warning(text) => warn!("{text}"),
        }
    }
    Ok(())
}
