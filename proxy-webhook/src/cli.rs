// SPDX-License-Identifier: Apache-2.0

//! The command line: that of the original, and flags that it does not have.

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
/// A mutating admission webhook: containers and init containers that have no variable
/// `KUBERNETES_SERVICE_HOST` get one with the given name.
#[derive(Debug, Parser)]
#[command(
    name = "apiserver-proxy-pod-webhook",
    version,
    max_term_width = 100,
    // As Go's flags: of several values the last one counts.
    args_override_self = true
)]
pub struct Args {
    /// The API server's fully qualified name, for example api.example.com; a dot at its end is passed on
    #[arg(long, value_name = "NAME")]
    pub apiserver_fqdn: Fqdn,

    /// The directory of the server's certificate and key
    #[arg(long, value_name = "DIR")]
    pub cert_dir: PathBuf,

    /// The file of the certificate and its chain, in PEM, in --cert-dir
    #[arg(long, value_name = "FILE", default_value = "tls.crt", value_parser = file_name)]
    pub cert_name: OsString,

    /// The file of the private key, in PEM, in --cert-dir
    #[arg(long, value_name = "FILE", default_value = "tls.key", value_parser = file_name)]
    pub key_name: OsString,

    /// The file of the CAs whose client certificates are accepted, in PEM, in --cert-dir; empty: clients
    /// need none
    #[arg(long, value_name = "FILE", default_value = "")]
    pub client_ca_name: OsString,

    /// The address to listen on; empty: all addresses
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub host: String,

    /// The port to listen on; 0: a free one, which is logged
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 9443,
        allow_negative_numbers = true
    )]
    pub port: u16,

    /// Where /healthz, /readyz, /metrics and pages for people are served, without TLS; :PORT means all addresses;
    /// empty: off
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9466")]
    pub listen: Listen,

    /// Connections at once; further ones wait
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        allow_negative_numbers = true
    )]
    pub max_connections: u32,

    /// Requests at once; further ones are answered with 503
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        allow_negative_numbers = true
    )]
    pub max_requests: u32,

    /// How long to go on serving after SIGTERM, not ready any more, so that the Service has time to forget
    /// this address
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=3600),
        allow_negative_numbers = true
    )]
    pub shutdown_delay_seconds: u16,

    /// How log lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// The least important lines to log; debug has a line for each request and each failed connection
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

impl Args {
    /// The options of the log that follow from the flags.
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

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people
    Text,
    /// One JSON object per line
    Json,
}

/// The least important lines to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures
    Error,
    /// Also what an operator should look at
    Warn,
    /// Also changes
    Info,
    /// And every request
    Debug,
}

/// Where the second listener is; `None`: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<Bind>);

/// Not an address with a port.
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

/// A file within the directory: its name cannot be empty.
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
