// SPDX-License-Identifier: Apache-2.0

//! Sets up logging, to stderr.

use std::io;

use anyhow::{Result, anyhow};
use tracing::Level;

use crate::cli::{LogFormat, LogLevel};

/// Makes this the process's way of logging.
///
/// # Errors
/// There is one already.
pub fn init(format: LogFormat, level: LogLevel) -> Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_max_level(match level {
            LogLevel::Error => Level::ERROR,
            LogLevel::Warn => Level::WARN,
            LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
        })
        // It would tell them with eprintln!, which panics where stderr is closed or full.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|error| anyhow!("cannot set up logging: {error}"))
}
