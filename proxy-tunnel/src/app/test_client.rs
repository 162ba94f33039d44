// SPDX-License-Identifier: Apache-2.0

//! `konnectivity-test-client` sends HTTP requests through a tunnel, as upstream's examples do.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proxy_serve::flags::Values;
use proxy_serve::reload::Source as _;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, error, info};

use super::Program;
use super::reach::{Place, ReachArgs};
use crate::client::{Dialer, Endpoint};

/// Makes HTTP requests through a konnectivity server
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Protocol of the request: http
    #[arg(long, value_name = "PROTOCOL", default_value = "http")]
    request_proto: String,
    /// Host of the target, as the agent resolves it
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    request_host: String,
    /// Port of the target
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    request_port: u16,
    /// Path of the request
    #[arg(long, value_name = "PATH", default_value = "success")]
    request_path: String,
    /// Name of this client in the server's log
    #[arg(long, value_name = "NAME", default_value = "test-client")]
    user_agent: String,
    /// How many requests, all at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    test_requests: u32,
    /// Seconds before the requests
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    test_delay: u64,
    /// Seconds after the requests, before the end
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    after_delay: u64,
    /// Close connections before --after-delay
    #[arg(long, default_value_t = true)]
    close_idle_conn: bool,
    /// Accepted; requests are made with HTTP/1.1, which has no such checks
    #[arg(long, default_value_t = true)]
    enable_http2_healthchecks: bool,

    /// Where the server is
    #[command(flatten)]
    reach: ReachArgs,
}

/// One of several identical requests.
#[derive(Debug, Clone)]
struct Trial {
    dialer: Dialer,
    target: String,
    path: String,
}

/// The connection that stays open after a request.
type Kept = http1::SendRequest<Empty<Bytes>>;

impl Program for Args {
    const NAME: &'static str = "konnectivity-test-client";
    const THREADS: usize = 2;

    async fn run(self, _: Values) -> Result<ExitCode> {
        let trial = self.trial()?;
        sleep(Duration::from_secs(self.test_delay)).await;
        let mut requests = JoinSet::new();
        for _ in 0..self.test_requests {
            let trial = trial.clone();
            requests.spawn(async move { trial.run().await });
        }
        let (mut kept, mut failures) = (Vec::new(), 0);
        while let Some(outcome) = requests.join_next().await {
            match outcome.context("a request has panicked").flatten() {
                Ok(connection) => kept.push(connection),
                Err(why) => {
                    failures += 1;
                    let text = format!("{why:#}");
                    error!(err = text.as_str(), "request failed");
                }
            }
        }
        if self.close_idle_conn {
            kept.clear();
        }
        sleep(Duration::from_secs(self.after_delay)).await;
        ensure!(
            failures == 0,
            "{failures} of {} requests failed",
            self.test_requests
        );
        info!(requests = self.test_requests, "all requests were answered");
        Ok(ExitCode::SUCCESS)
    }
}

impl Args {
    fn trial(&self) -> Result<Trial> {
        ensure!(
            self.request_proto == "http",
            "--request-proto is `{}`; this client makes http requests only, for TLS in the tunnel use curl with \
             --proxytunnel",
            self.request_proto
        );
        let mode = self.reach.mode()?;
        let dialer = Dialer::new(self.endpoint()?, mode).user_agent(self.user_agent.clone());
        let host = if self.request_host.contains(':') {
            format!("[{}]", self.request_host)
        } else {
            self.request_host.clone()
        };
        Ok(Trial {
            dialer,
            target: format!("{host}:{}", self.request_port),
            path: format!("/{}", self.request_path.trim_start_matches('/')),
        })
    }

    fn endpoint(&self) -> Result<Endpoint> {
        Ok(match self.reach.place()? {
            Place::Unix(path) => Endpoint::unix(path),
            Place::Tls {
                host,
                port,
                name,
                tls,
            } => {
                let identity = tls.make(&tls.read()?)?;
                Endpoint::tls(host, port, identity.config).named(name)
            }
        })
    }
}

impl Trial {
    async fn run(&self) -> Result<Kept> {
        let tunnel = self.dialer.dial(&self.target).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tunnel))
            .await
            .context("no HTTP through the tunnel")?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!("the connection to the target has ended: {error}");
            }
        });
        let request = Request::get(self.path.as_str())
            .header(HOST, self.target.as_str())
            .body(Empty::new())
            .with_context(|| format!("--request-path: `{}` is no path", self.path))?;
        let response = sender
            .send_request(request)
            .await
            .context("the target has not answered")?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .context("the answer was cut")?
            .to_bytes();
        debug!("HTML Response:\n{}\n", String::from_utf8_lossy(&body));
        if status != StatusCode::OK {
            info!(
                status = status.as_u16(),
                "the target answered with an error"
            );
        }
        Ok(sender)
    }
}

/// Parses a command line.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_line(words: &[&std::ffi::OsStr]) {
    let _: Option<Args> = super::accepted(words);
}

#[cfg(test)]
mod tests {
    use super::super::read_flags;
    use super::*;

    fn trial(words: &[&str]) -> Result<Trial> {
        read_flags::<Args>(words)?.trial()
    }

    #[test]
    fn targets() {
        let unix = ["--proxy-uds=/x", "--proxy-host=", "--proxy-port=0"];
        let trial = |words: &[&str]| trial(&[&unix, words].concat()).unwrap();
        assert_eq!(trial(&[]).target, "localhost:8000");
        assert_eq!(trial(&[]).path, "/success");
        assert_eq!(trial(&["--request-host=::1"]).target, "[::1]:8000");
        assert_eq!(
            trial(&["--request-path=/sleep?time=1"]).path,
            "/sleep?time=1"
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (words, want) in [
            (&["--proxy-uds=/x"][..], "--proxy-host="),
            (&["--client-cert=c"], "--client-key"),
            (&[], "--ca-cert"),
            (&["--proxy-host="], "where is the server"),
            (&["--mode=x", "--ca-cert=c"], "no mode"),
            (&["--request-proto=https"], "curl"),
        ] {
            let error = format!("{:#}", trial(words).unwrap_err());
            assert!(error.contains(want), "{words:?}: {error}");
        }
    }
}
