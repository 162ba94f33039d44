// SPDX-License-Identifier: Apache-2.0

//! Sets up logging: which records are wanted (`filter`), where they go (`output`) and in which
//! format. How that is spelled on the command line is `klog.rs`'s business.

mod filter;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod klog;
mod output;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use filter::ModuleLevel;
pub use output::{LogFile, Severity};
use thiserror::Error;
use tracing::dispatcher::{self, Dispatch};
use tracing::{info, warn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Registry, fmt};

use self::filter::Filter;
use self::klog::Klog;
use self::output::Output;

/// The target under which the lines of the eBPF programs are logged.
pub const EBPF_TARGET: &str = "ebpf";

/// klog's level from which on debug records are wanted.
const DEBUG_LEVEL: i32 = 4;
/// klog's level from which on trace records are wanted.
const TRACE_LEVEL: i32 = 6;

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

/// What to log, where and how.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// How records are written.
    pub format: LogFormat,
    /// klog's level for everything: debug from 4, trace from 6.
    pub verbosity: i32,
    /// klog's level for single modules; the first that matches counts, if it is above `verbosity`.
    pub modules: Vec<ModuleLevel>,
    /// The file to log to; without one, everything goes to stderr.
    pub file: Option<LogFile>,
    /// With a file: what goes to stderr as well.
    pub stderr_threshold: Severity,
    /// Whether lines of text start with time, level and target.
    pub headers: bool,
    /// Whether records name the source file and line they come from.
    pub source: bool,
    /// What the command line gives rise to say, once logging works.
    pub remarks: Vec<Remark>,
}

/// Something to say about the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// What a setting came to.
    Info(String),
    /// Settings that have no effect together.
    Warning(String),
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The log file could not be opened.
    #[error(
        "cannot open the log file {}; create its directory, or give another file with --log_file \
         or directory with --log_dir",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
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
            verbosity: 0,
            modules: Vec::new(),
            file: None,
            stderr_threshold: Severity::Error,
            headers: true,
            source: false,
            remarks: Vec::new(),
        }
    }
}

impl LogOptions {
    /// Whether the debug lines of the eBPF programs are wanted: from level 6 on, or when
    /// [`EBPF_TARGET`] is set to 4 or more on its own. They cost time on every packet, so the
    /// agent's own debug level does not bring them.
    pub fn ebpf_debug(&self) -> bool {
        self.verbosity >= TRACE_LEVEL
            || filter::module_level(&self.modules, EBPF_TARGET) >= DEBUG_LEVEL
    }

    /// The subscriber for these options; opens the log file.
    fn dispatch(&self) -> Result<Dispatch, LogError> {
        let output = Output::open(self.file.as_ref(), self.stderr_threshold)?;
        let registry = Registry::default().with(Filter::new(self.verbosity, &self.modules));
        let layer = fmt::layer()
            .with_file(self.source)
            .with_line_number(self.source)
            // It would tell them with eprintln!, which panics where stderr is closed or full.
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
            }))),
            (LogFormat::Text, true) => Dispatch::new(registry.with(layer)),
            (LogFormat::Text, false) => Dispatch::new(
                registry.with(layer.without_time().with_level(false).with_target(false)),
            ),
        })
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
