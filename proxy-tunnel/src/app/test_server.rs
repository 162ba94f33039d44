// SPDX-License-Identifier: Apache-2.0

//! `http-test-server` is the target in upstream's examples. `/success` responds with a small page, `/sleep?time=N` does
//! so after N seconds, `/error` responds with 500, and `/close` closes the connection without a response.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proxy_serve::flags::Values;
use proxy_serve::listen::accept::Slots;
use proxy_serve::shutdown::Signals;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Program, port};

const SUCCESS: &str = "<!DOCTYPE html>\n<html>\n    <head>\n        <title>Success</title>\n    </head>\n    \
                       <body>\n        <p>The success test page!</p>\n    </body>\n</html>";

/// The time that a client has to send the head of its request.
const HEAD: Duration = Duration::from_mins(1);

/// The default and the maximum time that `/sleep` waits, in seconds.
const SLEEP: (u64, u64) = (10, 3600);

/// The maximum number of simultaneous connections.
const CONNECTIONS: u32 = 4096;

/// A small HTTP server for trying a tunnel
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The port, on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    server_port: i64,
}

impl Program for Args {
    const NAME: &'static str = "http-test-server";
    const VERBOSITY: i32 = 0;

    async fn run(self, _: Values) -> Result<ExitCode> {
        let port = port("server-port", self.server_port)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; --server-port chooses another port")
        })?;
        let mut signals = Signals::new().context("cannot wait for signals")?;
        info!("Starting test http server for client requests.");
        tokio::select! {
            () = serve(listener) => {}
            signal = signals.next() => info!(signal, "Shutting down server."),
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn serve(listener: TcpListener) {
    let slots = Slots::new(CONNECTIONS);
    loop {
        let (stream, _, slot) = slots.accept(&listener).await;
        tokio::spawn(async move {
            connection(stream).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    // `/close` ends the connection with an error, and so does a client that disconnects early.
    let _ = connection.await;
}

/// The error that closes the connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer, as asked for")]
struct Closed;

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
    match request.uri().path() {
        "/success" => Ok(page(StatusCode::OK, "text/html; charset=utf-8", SUCCESS)),
        "/sleep" => {
            sleep(pause(request.uri().query())).await;
            Ok(page(StatusCode::OK, "text/html; charset=utf-8", SUCCESS))
        }
        "/error" => Ok(page(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain; charset=utf-8",
            "Internal Server Error\n",
        )),
        "/close" => Err(Closed),
        _ => Ok(page(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "404 page not found\n",
        )),
    }
}

fn pause(query: Option<&str>) -> Duration {
    let time = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("time="));
    let seconds = time.and_then(|time| time.parse().ok());
    if seconds.is_none() {
        warn!(
            "/sleep without a number of seconds as `time`; waiting for {} s",
            SLEEP.0
        );
    }
    Duration::from_secs(seconds.unwrap_or(SLEEP.0).min(SLEEP.1))
}

fn page(
    status: StatusCode,
    content_type: &'static str,
    body: &'static str,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Parses a command line.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_command_line(words: &[&std::ffi::OsStr]) {
    let _: Option<Args> = super::accepted(words);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_as_long_as_upstreams() {
        assert_eq!(SUCCESS.len(), 145);
    }

    #[test]
    fn pauses() {
        assert_eq!(pause(Some("time=3")), Duration::from_secs(3));
        assert_eq!(pause(Some("x=1&time=0")), Duration::ZERO);
        assert_eq!(pause(None), Duration::from_secs(10));
        assert_eq!(pause(Some("time=x")), Duration::from_secs(10));
        assert_eq!(pause(Some("time=99999999999")), Duration::from_hours(1));
    }
}
