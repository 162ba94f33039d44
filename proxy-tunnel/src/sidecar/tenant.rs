// SPDX-License-Identifier: Apache-2.0

//! One tenant of the sidecar: its server, its certificate for that server, and the targets that its clients may reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use proxy_serve::reload::{Current, chain};
use proxy_serve::tls::client::{Identity, ServerName};
use tokio::time::interval;
use tracing::{debug, info, warn};

use crate::client::{DialError, Dialer, Endpoint, Mode, Tunnel};
use crate::destinations::Destinations;
use crate::forward::pool::Pool;
use crate::forward::{Dial, Failure, status_of};
use crate::metrics::sidecar::Lines;

/// The maximum number of idle connections to targets per tenant.
const IDLE: usize = 4096;

/// The interval at which the server is probed.
const PROBE: Duration = Duration::from_secs(10);

/// The interval at which expired idle connections are closed.
const TIDY: Duration = Duration::from_secs(15);

/// The address of a server, with certificates that are reloaded when they change.
#[derive(Debug, Clone)]
pub enum Reach {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address with TLS.
    Tls {
        /// The host name or the IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The name that is sent as SNI and that the server's certificate must match, if it is not `host`.
        name: Option<ServerName<'static>>,
        /// The CAs of the servers and the sidecar's certificate.
        tls: Current<Identity>,
    },
}

impl Reach {
    /// Returns the endpoint with the current certificates.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Unix(path) => Endpoint::unix(path),
            Self::Tls {
                host,
                port,
                name,
                tls,
            } => Endpoint::tls(host, *port, Arc::clone(&tls.get().config)).named(name.clone()),
        }
    }
}

/// A tenant.
#[derive(Debug)]
pub struct Tenant {
    /// The tenant's name in metrics and in the log.
    pub name: String,
    /// The tenant's server.
    pub reach: Reach,
    /// The protocol of the server.
    pub mode: Mode,
    /// The targets to which the tenant's clients may connect.
    pub allowed: Destinations,
    /// The tenant's metrics.
    pub lines: Lines,
    /// The tenant's idle connections to targets.
    pub pool: Arc<Pool>,
}

impl Tenant {
    /// Creates a tenant without connections.
    #[must_use]
    pub fn new(
        name: String,
        reach: Reach,
        mode: Mode,
        allowed: Destinations,
        lines: Lines,
    ) -> Self {
        Self {
            name,
            reach,
            mode,
            allowed,
            lines,
            pool: Arc::new(Pool::new(IDLE)),
        }
    }

    /// Returns true if the last probe of the server succeeded.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.lines.server_up.get() == 1
    }

    /// Probes the server periodically, so that a fault is known before it affects a scrape.
    pub async fn probe(&self) {
        let mut tick = interval(PROBE);
        // The state that was logged last.
        let mut was_up = None;
        loop {
            tick.tick().await;
            let endpoint = self.reach.endpoint();
            let outcome = endpoint.probe(self.mode).await;
            let is_up = outcome.is_ok();
            self.lines.server_up.set(i64::from(is_up));
            if was_up.replace(is_up) == Some(is_up) {
                continue;
            }
            match outcome {
                Ok(()) => info!(
                    "tenant {}: the server at {endpoint} accepts connections",
                    self.name
                ),
                Err(why) => warn!(
                    "tenant {}: the server at {endpoint} does not accept connections: {why}; is it there, and does it \
                     trust this certificate?",
                    self.name
                ),
            }
        }
    }

    /// Closes expired idle connections periodically.
    pub async fn tidy(&self) {
        let mut tick = interval(TIDY);
        loop {
            tick.tick().await;
            let left = self.pool.tidy();
            self.lines.idle.set(i64::try_from(left).unwrap_or(i64::MAX));
        }
    }
}

impl Dial for Tenant {
    type Io = Tunnel;

    async fn dial(&self, target: &str) -> Result<Tunnel, Failure> {
        if !self.allowed.permit_target(target) {
            self.lines.forbidden();
            debug!(
                "tenant {}: {target} is not of --allow-destination",
                self.name
            );
            return Err(Failure {
                status: StatusCode::FORBIDDEN,
                text: format!("{target} is not among the targets that the sidecar allows"),
            });
        }
        let start = Instant::now();
        let dialer = Dialer::new(self.reach.endpoint(), self.mode)
            .user_agent(concat!("konnectivity-sidecar/", env!("CARGO_PKG_VERSION")));
        match dialer.dial(target).await {
            Ok(tunnel) => {
                self.lines.dialed(start.elapsed());
                Ok(tunnel)
            }
            Err(error) => {
                self.lines.failed(&error);
                let failure = failure(&error);
                debug!("tenant {}: {}", self.name, failure.text);
                Err(failure)
            }
        }
    }
}

/// Converts a failed dial to the response for an HTTP client.
fn failure(error: &DialError) -> Failure {
    let status = match error {
        DialError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        DialError::Refused { source, .. } => status_of(source),
        _ => StatusCode::BAD_GATEWAY,
    };
    Failure {
        status,
        text: chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refusal;

    fn refused(source: Refusal) -> DialError {
        DialError::Refused {
            server: "s:8090".into(),
            address: "10.0.0.1:9100".into(),
            source,
        }
    }

    #[test]
    fn failures_have_the_servers_status_and_words() {
        for (code, want) in [(403, 403), (500, 500), (503, 503), (504, 504), (302, 502)] {
            let text = "no agent".into();
            let failure = failure(&refused(Refusal::Status { code, text }));
            assert_eq!(failure.status.as_u16(), want);
            assert!(failure.text.ends_with("no agent"), "{failure:?}");
        }
        assert_eq!(
            failure(&refused(Refusal::Malformed)).status,
            StatusCode::BAD_GATEWAY
        );
        let late = DialError::Timeout {
            address: "a:1".into(),
            limit: Duration::from_secs(30),
        };
        assert_eq!(failure(&late).status, StatusCode::GATEWAY_TIMEOUT);
    }
}
