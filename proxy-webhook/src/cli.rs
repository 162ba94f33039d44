// SPDX-License-Identifier: Apache-2.0

//! The command line: the flags of Gardener's webhook, and further ones.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};
use proxy_serve::listen::Bind;
use proxy_serve::log::{self, LogOptions, Severity};
use thiserror::Error;

use crate::fqdn::Fqdn;

/// Sets the API server's name in every container of a pod.
///
/// A mutating admission webhook: it adds the variable `KUBERNETES_SERVICE_HOST`, with the given name as value, to
/// containers and init containers that do not have it.
#[derive(Debug, Parser)]
#[command(
    name = "apiserver-proxy-pod-webhook",
    version,
    max_term_width = 100,
    // As with Go's flags, the last of several values counts.
    args_override_self = true
)]
pub struct Args {
    /// The API server's fully qualified name, for example api.example.com; a trailing dot is kept
    #[arg(long, value_name = "NAME")]
    pub apiserver_fqdn: Fqdn,

    /// Directory of the server's certificate and key
    #[arg(long, value_name = "DIR")]
    pub cert_dir: PathBuf,

    /// File in --cert-dir with the certificate and its chain, in PEM
    #[arg(long, value_name = "FILE", default_value = "tls.crt", value_parser = file_name)]
    pub cert_name: OsString,

    /// File in --cert-dir with the private key, in PEM
    #[arg(long, value_name = "FILE", default_value = "tls.key", value_parser = file_name)]
    pub key_name: OsString,

    /// File in --cert-dir with the CAs by which client certificates are verified, in PEM; empty: clients need no
    /// certificate
    #[arg(long, value_name = "FILE", default_value = "")]
    pub client_ca_name: OsString,

    /// The address to listen on; empty: all addresses
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub host: String,

    /// The port to listen on; 0: a free port, which is logged
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 9443,
        allow_negative_numbers = true
    )]
    pub port: u16,

    /// The address on which /healthz, /readyz, /metrics and pages for browsers are served, without TLS; :PORT means
    /// all addresses; empty: off
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9466")]
    pub listen: Listen,

    /// Maximum number of concurrent connections; further ones wait
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        allow_negative_numbers = true
    )]
    pub max_connections: u32,

    /// Maximum number of concurrent requests; further ones are answered with 503
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        allow_negative_numbers = true
    )]
    pub max_requests: u32,

    /// Time for which requests are still served after SIGTERM while /readyz fails, so that the Service stops sending
    /// requests to this address
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=3600),
        allow_negative_numbers = true
    )]
    pub shutdown_delay_seconds: u16,

    /// Format of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Lowest level of the lines to log; debug adds a line for each request and each failed connection
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

impl Args {
    /// The log options that the flags select.
    #[must_use]
    pub fn log_options(&self) -> LogOptions {
        let (lowest, verbosity) = match self.log_level {
            LogLevel::Error => (Severity::Error, 0),
            LogLevel::Warn => (Severity::Warning, 0),
            LogLevel::Info => (Severity::Info, 0),
            LogLevel::Debug => (Severity::Info, log::DEBUG_LEVEL),
        };
        LogOptions {
            format: match self.log_format {
                LogFormat::Text => log::LogFormat::Text,
                LogFormat::Json => log::LogFormat::Json,
            },
            lowest,
            verbosity,
            ..LogOptions::default()
        }
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text per record
    Text,
    /// One JSON object per record
    Json,
}

/// Lowest level of the lines to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures
    Error,
    /// Also conditions that need attention
    Warn,
    /// Also changes of state
    Info,
    /// Also each request and each failed connection
    Debug,
}

/// Address of the second listener; `None`: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<Bind>);

/// The text is not an address with a port.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not an address with a port; give for example 127.0.0.1:9466, [::1]:9466 or :9466")]
pub struct ListenError;

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let bind = match text.strip_prefix(':') {
            Some(port) => port.parse().map(Bind::Every).ok(),
            None => text.parse().map(Bind::One).ok(),
        };
        bind.map(|bind| Self(Some(bind))).ok_or(ListenError)
    }
}

/// Checks the name of a file in the directory: it must not be empty.
fn file_name(text: &str) -> Result<OsString, &'static str> {
    if text.is_empty() {
        return Err("empty; give the name of a file in --cert-dir");
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let required = [
            "webhook",
            "--apiserver-fqdn=foo.bar.",
            "--cert-dir",
            "/certs",
        ];
        Args::try_parse_from(required.iter().chain(args))
    }

    #[test]
    fn the_command_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.apiserver_fqdn.as_str(), "foo.bar.");
        assert_eq!(args.cert_name, "tls.crt");
        assert_eq!(args.key_name, "tls.key");
        assert_eq!(args.client_ca_name, "");
        assert_eq!((args.host.as_str(), args.port), ("", 9443));
    }

    #[test]
    fn listeners() {
        let every = Listen(Some(Bind::Every(9466)));
        assert_eq!(":9466".parse(), Ok(every));
        assert_eq!("".parse(), Ok(Listen(None)));
        let one = Listen(Some(Bind::One("[::1]:0".parse().unwrap())));
        assert_eq!("[::1]:0".parse(), Ok(one));
        for bad in ["9466", "localhost:9466", "127.0.0.1", ":", ":65536", "::1:"] {
            assert_eq!(bad.parse::<Listen>(), Err(ListenError), "{bad}");
        }
    }

    #[test]
    fn bad_values_name_their_flag() {
        for bad in [
            "--port=65536",
            "--port=-1",
            "--port=https",
            "--cert-name=",
            "--key-name=",
            "--listen=9466",
            "--max-connections=0",
            "--max-requests=0",
            "--shutdown-delay-seconds=3601",
            "--log-format=xml",
            "--log-level=loud",
        ] {
            let error = parse(&[bad]).unwrap_err().to_string();
            assert!(error.contains(bad.split('=').next().unwrap()), "{error}");
        }
    }
}
