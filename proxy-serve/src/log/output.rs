// SPDX-License-Identifier: Apache-2.0

//! The destinations of records: stderr, a file, or both. A record that cannot be written is never an error: the program
//! continues without its log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// klog's severities, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Information, debug and trace records.
    Info,
    /// Warnings.
    Warning,
    /// Errors.
    Error,
    /// Errors that end the process. No record has this severity; as a threshold it suppresses all records.
    Fatal,
}

/// The error for a text that is not one of klog's severities.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a severity; give INFO, WARNING, ERROR, FATAL or a number from 0 to 3")]
pub struct SeverityError;

impl FromStr for Severity {
    type Err = SeverityError;

    /// Parses a name in any case, or a number, as klog does.
    fn from_str(text: &str) -> Result<Self, SeverityError> {
        match text.to_ascii_uppercase().as_str() {
            "INFO" | "0" => Ok(Self::Info),
            "WARNING" | "1" => Ok(Self::Warning),
            "ERROR" | "2" => Ok(Self::Error),
            "FATAL" | "3" => Ok(Self::Fatal),
            _ => Err(SeverityError),
        }
    }
}

impl From<Level> for Severity {
    fn from(level: Level) -> Self {
        match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            _ => Self::Info,
        }
    }
}

/// A log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The path of the file, to which records are appended.
    pub path: PathBuf,
    /// The size in bytes at which the file is renamed to `<path>.old` and a new one is created; 0 for no limit.
    pub max_bytes: u64,
}

/// The destinations of records.
pub(super) struct Output {
    file: Option<Mutex<OpenFile>>,
    stderr_threshold: Severity,
}

impl Output {
    /// Opens the file, if there is one. The error contains the path.
    pub(super) fn open(
        file: Option<&LogFile>,
        threshold: Severity,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let open = |file: &LogFile| match OpenFile::open(file) {
            Ok(open) => Ok(Mutex::new(open)),
            Err(error) => Err((file.path.clone(), error)),
        };
        Ok(Self {
            file: file.map(open).transpose()?,
            stderr_threshold: threshold,
        })
    }

    /// Returns true if records of `level` go to stderr.
    fn wants_stderr(&self, level: Level) -> bool {
        Severity::from(level) >= self.stderr_threshold
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Record<'a>;

    fn make_writer(&'a self) -> Record<'a> {
        Record {
            output: self,
            stderr: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Record<'a> {
        Record {
            output: self,
            stderr: self.wants_stderr(*metadata.level()),
        }
    }
}

/// A writer for one record, which arrives in a single write.
pub(super) struct Record<'a> {
    output: &'a Output,
    stderr: bool,
}

impl Write for Record<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut stderr = self.stderr;
        if let Some(file) = &self.output.file {
            // If a thread panicked while it wrote, the worst result is an incomplete line.
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // If the file cannot be written, for example because the disk is full, the record goes to stderr instead.
            stderr |= file.append(line).is_err();
        }
        if stderr {
            // There is no other destination left if this fails.
            let _ = io::stderr().lock().write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The open log file with its current size.
struct OpenFile {
    target: LogFile,
    file: File,
    bytes: u64,
}

impl OpenFile {
    fn open(target: &LogFile) -> io::Result<Self> {
        let file = open_to_append(&target.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            target: target.clone(),
            file,
            bytes,
        })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let added = line.len() as u64;
        let limit = self.target.max_bytes;
        if limit > 0 && self.bytes > 0 && self.bytes.saturating_add(added) > limit {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes = self.bytes.saturating_add(added);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.target.path.clone().into_os_string();
        old.push(".old");
        fs::rename(&self.target.path, old)?;
        *self = Self::open(&self.target)?;
        Ok(())
    }
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_as_klog_reads_them() {
        for (text, want) in [
            ("INFO", Severity::Info),
            ("info", Severity::Info),
            ("0", Severity::Info),
            ("Warning", Severity::Warning),
            ("1", Severity::Warning),
            ("ERROR", Severity::Error),
            ("2", Severity::Error),
            ("fatal", Severity::Fatal),
            ("3", Severity::Fatal),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in ["", "4", "-1", "debug"] {
            assert_eq!(text.parse::<Severity>(), Err(SeverityError), "{text}");
        }
    }
}
