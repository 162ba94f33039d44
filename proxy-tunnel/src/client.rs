// SPDX-License-Identifier: Apache-2.0

//! The client library: connections to targets behind a konnectivity server, either this project's or upstream's. It is
//! a replacement for upstream's module konnectivity-client.
//!
//! [`Dialer`] opens a connection to the server for each target, as kube-apiserver does. [`Connection`] is one gRPC
//! connection for many tunnels. In both cases a [`Tunnel`] behaves like a TCP connection: it carries bytes in both
//! directions, reports an end of file when the target has closed, and an error when the connection was cut on the way.
//! Dropping a tunnel closes it. Bytes written before are still sent, unless the server has no window for them.
//! `examples/dial.rs` is a complete program: `cargo run --release -p proxy-tunnel --example dial -- /tmp/uds-proxy
//! localhost:8000 /success`.
//!
//! ```no_run
//! use proxy_tunnel::client::{Dialer, Endpoint, Mode};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Endpoint::unix("/run/konnectivity/konnectivity.sock");
//! let mut tunnel = Dialer::new(server, Mode::Grpc).dial("10.0.0.7:10250").await?;
//! tunnel.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
//! let mut answer = String::new();
//! tunnel.read_to_string(&mut answer).await?;
//! # Ok(())
//! # }
//! ```

mod connect;
mod endpoint;
mod grpc;
mod streams;
mod tunnel;

use std::io;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;
use tonic::Status;

pub use self::connect::{Refusal, handshake};
pub use self::endpoint::{Endpoint, Io};
pub use self::grpc::Connection;
pub use self::tunnel::Tunnel;

pub(crate) use self::connect::answer;
#[cfg(feature = "fuzzing")]
pub(crate) use self::connect::parse as parse_answer;

/// The default time limit for the server to accept a connection and for the target to be reached.
const LIMIT: Duration = Duration::from_secs(30);

/// The protocol of a server, as set by its flag `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// gRPC.
    Grpc,
    /// HTTP CONNECT.
    HttpConnect,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http-connect" => Ok(Self::HttpConnect),
            _ => Err(format!("`{text}` is no mode; give grpc or http-connect")),
        }
    }
}

/// The reason why a target was not reached.
#[derive(Debug, Error)]
pub enum DialError {
    /// The connection to the server failed.
    #[error("cannot connect to the konnectivity server at {server}")]
    Server {
        /// The address of the server.
        server: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server was reached, but it did not accept the stream for the tunnel.
    #[error("the konnectivity server at {server} refuses a stream for the tunnel")]
    StreamSetup {
        /// The address of the server.
        server: String,
        /// The server's response.
        #[source]
        source: Box<Status>,
    },
    /// The server or the agent reports that the target cannot be reached, or the server has no agent.
    #[error("{address} cannot be reached: {text}")]
    Endpoint {
        /// The target.
        address: String,
        /// The error text in the wording of Go.
        text: String,
    },
    /// A server in HTTP CONNECT mode refused to connect.
    #[error("proxy error from {server} while dialing {address}")]
    Refused {
        /// The address of the server.
        server: String,
        /// The target.
        address: String,
        /// The server's response.
        #[source]
        source: Refusal,
    },
    /// The agent cancelled the dial.
    #[error("the dial of {0} was closed by the agent")]
    Closed(String),
    /// The tunnel ended before a response to the dial arrived.
    #[error("the tunnel to {0} ended before the dial was answered")]
    TunnelClosed(String),
    /// No response arrived within the time limit.
    #[error("no answer to the dial of {address} within {} s", limit.as_secs())]
    Timeout {
        /// The target.
        address: String,
        /// The time limit.
        limit: Duration,
    },
}

impl DialError {
    /// Returns the label by which upstream's client library counts this error.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Server { .. } => "tunnelstarted",
            Self::StreamSetup { .. } => "streamsetup",
            Self::Endpoint { .. } | Self::Refused { .. } => "endpoint",
            Self::Closed(_) => "dialclosed",
            Self::TunnelClosed(_) => "tunnelclosed",
            Self::Timeout { .. } => "timeout",
        }
    }
}

/// Opens a connection to the server for each target.
#[derive(Debug, Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    mode: Mode,
    user_agent: String,
    limit: Duration,
}

impl Dialer {
    /// Creates a dialer that uses this server.
    #[must_use]
    pub fn new(endpoint: Endpoint, mode: Mode) -> Self {
        Self {
            endpoint,
            mode,
            user_agent: concat!("proxy-tunnel/", env!("CARGO_PKG_VERSION")).to_owned(),
            limit: LIMIT,
        }
    }

    /// Sets the name that identifies this client in the server's log.
    #[must_use]
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Sets the time limit for a whole dial.
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Opens a tunnel to `address`, a `host:port` that the agent's node resolves. Dropping the future cancels the dial.
    ///
    /// # Errors
    /// Returns an error if the server or the target cannot be reached.
    pub async fn dial(&self, address: &str) -> Result<Tunnel, DialError> {
        let dial = async {
            match self.mode {
                Mode::Grpc => {
                    Connection::open(&self.endpoint, &self.user_agent)
                        .await?
                        .dial(address)
                        .await
                }
                Mode::HttpConnect => connect::dial(&self.endpoint, &self.user_agent, address).await,
            }
        };
        timeout(self.limit, dial).await.unwrap_or_else(|_| {
            Err(DialError::Timeout {
                address: address.to_owned(),
                limit: self.limit,
            })
        })
    }
}
