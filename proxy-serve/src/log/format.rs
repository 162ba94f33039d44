// SPDX-License-Identifier: Apache-2.0

//! Log lines in klog's format, for pipelines that parse the logs of Kubernetes' components:
//! `I1124 20:12:34.567890    4711 apply.rs:123] message key="value"`
//! (<https://github.com/kubernetes/klog/blob/v2.130.1/klog.go>, `formatHeader`).

use std::fmt::{self, Debug, Write as _};
use std::process;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Severity;

/// klog's format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Klog {
    /// True if lines start with severity, time, process ID and source.
    pub headers: bool,
    /// True if the source includes the directory of the file.
    pub directory: bool,
    /// True if the message is quoted, as by klog's structured calls.
    pub quoted: bool,
}

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.headers {
            let metadata = event.metadata();
            let severity = letter(Severity::from(*metadata.level()));
            let time = Time::local(SystemTime::now());
            let file = metadata.file().map_or("unknown", |path| self.name(path));
            let line = metadata.line().unwrap_or_default();
            write!(
                writer,
                "{severity}{time} {:7} {file}:{line}] ",
                process::id()
            )?;
        }
        let mut content = Content::default();
        event.record(&mut content);
        let Content { message, pairs } = content;
        if self.quoted {
            writeln!(writer, "{message:?}{pairs}")
        } else {
            // Newlines are escaped, so that one record is one line.
            writeln!(writer, "{}{pairs}", message.replace('\n', "\\n"))
        }
    }
}

impl Klog {
    /// Returns the source file's name in klog's form.
    fn name(self, path: &str) -> &str {
        let parts = if self.directory { 2 } else { 1 };
        let start = path.rmatch_indices('/').nth(parts - 1);
        start.map_or(path, |(slash, _)| &path[slash + 1..])
    }
}

fn letter(severity: Severity) -> char {
    match severity {
        Severity::Info => 'I',
        Severity::Warning => 'W',
        Severity::Error => 'E',
        Severity::Fatal => 'F',
    }
}

/// The message and the other fields of a record.
#[derive(Default)]
struct Content {
    message: String,
    pairs: String,
}

impl Content {
    fn add(&mut self, field: &Field, value: impl fmt::Display) {
        // Writing to a String cannot fail.
        let _ = write!(self.pairs, " {}={value}", field.name());
    }
}

impl Visit for Content {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.record_str(field, &text);
        }
    }
}

/// Month, day and time of day.
#[derive(Debug, Clone, Copy)]
struct Time {
    month: i32,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
    micros: u32,
}

impl Time {
    /// Converts a time to the local time zone, as klog does.
    fn local(time: SystemTime) -> Self {
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or_default();
        // SAFETY: the type consists of integers and a pointer that may be null.
        let mut parts: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers refer to valid values, and no code in this process changes the environment variables of
        // the time zone.
        unsafe { libc::localtime_r(&raw const seconds, &raw mut parts) };
        Self {
            month: parts.tm_mon + 1,
            day: parts.tm_mday,
            hour: parts.tm_hour,
            minute: parts.tm_min,
            second: parts.tm_sec,
            micros: since.subsec_micros(),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            month,
            day,
            hour,
            minute,
            second,
            micros,
        } = self;
        write!(
            f,
            "{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}"
        )
    }
}
