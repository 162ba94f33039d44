// SPDX-License-Identifier: Apache-2.0

//! Sets up logging: the selection of records (`filter`), their destinations (`output`) and the format of klog's lines
//! (`format`). [`crate::klog`] defines the command-line flags.

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

/// klog's verbosity from which on debug records are written.
pub const DEBUG_LEVEL: i32 = 4;
/// klog's verbosity from which on trace records are written.
pub const TRACE_LEVEL: i32 = 6;

/// The format of records.
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
    /// The format of records.
    pub format: LogFormat,
    /// True if messages are quoted in klog's format.
    pub quoted: bool,
    /// The lowest severity that is written, regardless of the verbosity.
    pub lowest: Severity,
    /// klog's verbosity for all modules: debug records from 4 on, trace records from 6 on.
    pub verbosity: i32,
    /// klog's verbosity for single modules. The first entry that matches counts, if its level is above `verbosity`.
    pub modules: Vec<ModuleLevel>,
    /// The log file. Without one, all records go to stderr.
    pub file: Option<LogFile>,
    /// The flags that specify the file and its directory, for error messages.
    pub file_flags: (String, String),
    /// The lowest severity that is written to stderr; if there is a file, records from this severity on go to both.
    pub stderr_threshold: Severity,
    /// True if lines of text start with time, level and target.
    pub headers: bool,
    /// True if records contain the source file and line from which they originate.
    pub source: bool,
    /// Remarks on the command line, which are logged as soon as logging works.
    pub remarks: Vec<Remark>,
}

/// A remark on the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// The value that a setting resolved to.
    Info(String),
    /// A combination of settings that has no effect.
    Warning(String),
}

/// The reason why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The log file could not be opened.
    #[error(
        "cannot open the log file {}; create its directory, or give another file with --{file_flag} \
         or directory with --{dir_flag}",
        path.display()
    )]
    Open {
        /// The path of the file.
        path: PathBuf,
        /// The flag that specifies a file.
        file_flag: String,
        /// The flag that specifies a directory.
        dir_flag: String,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
    /// The process already has a logger.
    #[error("logging is already set up in this process")]
    Installed(#[source] dispatcher::SetGlobalDefaultError),
}

impl Default for LogOptions {
    /// Text at verbosity 0 to stderr.
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
    /// Returns true if expensive debug records of a target should be created: from verbosity 6 on, or if an entry for
    /// modules sets this target to 4 or more. The program's own debug verbosity does not suffice.
    #[must_use]
    pub fn is_debugging(&self, target: &str) -> bool {
        self.verbosity >= TRACE_LEVEL || filter::module_level(&self.modules, target) >= DEBUG_LEVEL
    }

    /// Opens the log file and creates the subscriber for these options.
    fn dispatch(&self) -> Result<Dispatch, LogError> {
        let output = Output::open(self.file.as_ref(), self.stderr_threshold)
            .map_err(|(path, source)| self.unopened(path, source))?;
        let filter = Filter::new(self.verbosity, self.lowest, &self.modules);
        let registry = Registry::default().with(filter);
        let layer = fmt::layer()
            .with_file(self.source)
            .with_line_number(self.source)
            // The subscriber prints such errors with eprintln!, which panics if stderr is closed or full.
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

/// Sets up the logging of the process with `options`.
///
/// # Errors
///
/// Returns an error if the log file cannot be opened or if this function was called before.
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
