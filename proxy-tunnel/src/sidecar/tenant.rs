// SPDX-License-Identifier: Apache-2.0

//! One tenant of the sidecar: its server, the certificate for it, and the targets that its clients may reach.

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

/// Idle connections to targets that a tenant may have.
const IDLE: usize = 4096;

/// How often servers are tried.
const PROBE: Duration = Duration::from_secs(10);

/// How often idle connections are looked at.
const TIDY: Duration = Duration::from_secs(15);

/// Where a server is, with certificates as they change.
#[derive(Debug, Clone)]
pub enum Reach {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP with TLS.
    Tls {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The name that it is asked for and must have a certificate for, if it is not `host`.
        name: Option<ServerName<'static>>,
        /// The servers' CAs and the own certificate.
        tls: Current<Identity>,
    },
}

impl Reach {
    /// Where it is, with the certificates of this moment.
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
    /// Its name, in metrics and log.
    pub name: String,
    /// Its server.
    pub reach: Reach,
    /// How that is spoken to.
    pub mode: Mode,
    /// The targets that may be dialled.
    pub allowed: Destinations,
    /// Its lines in the metrics.
    pub lines: Lines,
    /// Its idle connections to targets.
    pub pool: Arc<Pool>,
}

impl Tenant {
    /// A tenant without connections.
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

    /// Whether the server accepted the last trial.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.lines.server_up.get() == 1
    }

    /// Tries the server again and again, so that a fault is known before a scrape meets it.
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

    /// Closes idle connections in time.
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

/// A failed dial, as a client of HTTP gets it.
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
