// SPDX-License-Identifier: Apache-2.0

//! Flags that server and agent share, and validation of single values.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proxy_serve::tls::client::ServerName;
use proxy_serve::value::{GoDuration, List};

use crate::destinations::{Destination, Destinations};
use crate::flow::Limits;

// This is not a doc comment, because clap would use it as the program's description.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Accepted; this program has no profiles of Go
    #[arg(long)]
    pub enable_profiling: bool,
    /// Accepted with --enable-profiling
    #[arg(long)]
    enable_contention_profiling: bool,
    /// How to reach the API server; empty: as a pod does
    #[arg(long, value_name = "FILE", default_value = "")]
    kubeconfig: String,
    /// Accepted; this program speaks JSON with the API server
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "application/vnd.kubernetes.protobuf"
    )]
    kube_api_content_type: String,
    /// Namespace of the leases
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    pub lease_namespace: String,
    /// Accepted without effect: a connection that is closed for its buffer is always logged
    #[arg(long)]
    warn_on_channel_limit: bool,
    /// How long a reader may leave its connection's buffer full before the connection is closed
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    tunnel_stall_timeout: GoDuration,
    /// MiB that all connections together may buffer for slow readers
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    buffer_budget: u32,
}

impl Common {
    /// Validates the flags.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other or a value is out of range.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.enable_profiling || !self.enable_contention_profiling,
            "--enable-contention-profiling needs --enable-profiling"
        );
        ensure!(
            self.buffer_budget > 0,
            "--buffer-budget must be larger than 0"
        );
        Ok(())
    }

    /// Returns the kubeconfig file for the API server.
    #[must_use]
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        path(&self.kubeconfig)
    }

    /// Returns the limits of one tunnel.
    ///
    /// # Errors
    /// Returns an error if the timeout is not positive.
    pub fn limits(&self) -> Result<Limits> {
        Ok(Limits {
            stall: positive("tunnel-stall-timeout", self.tunnel_stall_timeout)?,
            ..Limits::default()
        })
    }

    /// Returns the number of bytes that all tunnels together may buffer.
    #[must_use]
    pub const fn budget(&self) -> usize {
        self.buffer_budget as usize * 1024 * 1024
    }
}

/// Parses the targets of a flag.
///
/// # Errors
/// Returns an error if an entry cannot be parsed.
pub fn destinations(flag: &str, lists: &[List]) -> Result<Destinations> {
    let entries = List::join(lists).into_iter().map(|entry| entry.parse());
    let entries: Result<Vec<Destination>, _> = entries.collect();
    let entries = entries.with_context(|| format!("--{flag}"))?;
    Ok(Destinations::new(entries))
}

/// Returns the name of `--proxy-server-name`, if the flag is set.
///
/// # Errors
/// Returns an error if the value is neither a name nor an address.
pub fn server_name(text: &str) -> Result<Option<ServerName<'static>>> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = ServerName::try_from(text.to_owned())
        .with_context(|| format!("--proxy-server-name is {text:?}; give a name or an address"))?;
    Ok(Some(name))
}

/// Returns a path, or `None` if the text is empty.
#[must_use]
pub fn path(text: &str) -> Option<PathBuf> {
    Some(text)
        .filter(|text| !text.is_empty())
        .map(PathBuf::from)
}

/// Converts a duration that may be zero.
///
/// # Errors
/// Returns an error if the duration is negative.
pub fn duration(flag: &str, value: GoDuration) -> Result<Duration> {
    value
        .to_std()
        .with_context(|| format!("--{flag} is {value}; it must not be negative"))
}

/// Converts a duration that must be positive.
///
/// # Errors
/// Returns an error if the duration is zero or negative.
pub fn positive(flag: &str, value: GoDuration) -> Result<Duration> {
    value
        .to_std()
        .filter(|duration| !duration.is_zero())
        .with_context(|| format!("--{flag} is {value}; it must be larger than 0"))
}
