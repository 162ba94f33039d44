// SPDX-License-Identifier: Apache-2.0

//! Forwards the debug lines of the eBPF programs to tracing.

use log::{Log, Metadata, Record};
use tracing::debug;

use crate::config::EBPF_TARGET;

/// The receiver of aya-log.
pub struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        debug!(target: EBPF_TARGET, "{}", record.args());
    }

    fn flush(&self) {}
}
