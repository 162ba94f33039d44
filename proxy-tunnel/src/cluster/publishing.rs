// SPDX-License-Identifier: Apache-2.0

//! The server's side of the leases: writes and renews its own lease, and deletes expired leases of other servers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::{REQUEST, lease, outcome};
use crate::metrics::server::ServerMetrics;

/// How often the server renews its lease and looks for expired ones.
const INTERVAL: Duration = Duration::from_secs(15);

/// The initial and the maximum pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7));

/// How many times the server tries to read and write its lease if other clients change it at the same time.
const CONFLICTS: usize = 5;

/// How long a server must observe that a lease is not renewed before it deletes the lease; equal to the validity of a
/// lease. By its times alone, a lease may also look expired because this server's clock is ahead of the others' or has
/// jumped: then the leases of all other servers would be deleted repeatedly.
pub const WATCHED: Duration = Duration::from_secs(30);

/// The time limit for deleting the own lease when the process exits.
const FAREWELL: Duration = Duration::from_secs(3);

/// Maintains one server's lease, and deletes expired ones.
#[derive(Clone)]
pub struct Publisher {
    api: Api<Lease>,
    server_id: String,
    labels: BTreeMap<String, String>,
    metrics: Arc<ServerMetrics>,
    /// The time since which each lease, by its name and version, has looked expired.
    expired: Arc<Mutex<HashMap<(String, String), Instant>>>,
}

impl Publisher {
    /// Creates the publisher of this server's lease.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        server_id: String,
        labels: BTreeMap<String, String>,
        metrics: Arc<ServerMetrics>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            server_id,
            labels,
            metrics,
            expired: Arc::default(),
        }
    }

    /// Renews the lease and deletes expired ones until the future is dropped.
    pub async fn run(&self) {
        tokio::join!(self.keep(), self.collect());
    }

    async fn keep(&self) {
        let mut pause = BACKOFF.0;
        loop {
            match timeout(REQUEST, self.renew()).await {
                Ok(Ok(())) => {
                    pause = BACKOFF.0;
                    sleep(jittered(INTERVAL)).await;
                    continue;
                }
                Ok(Err(why)) => error!(
                    lease = lease::name(&self.server_id),
                    err = %why,
                    "the lease cannot be written; agents that count leases do not see this server"
                ),
                Err(_) => error!(
                    "the API server has not answered within {} s",
                    REQUEST.as_secs()
                ),
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Writes the lease with the current time.
    ///
    /// # Errors
    /// Returns an error if the API server refuses the request, or after too many write conflicts.
    pub async fn renew(&self) -> Result<(), kube::Error> {
        let name = lease::name(&self.server_id);
        let params = PostParams::default();
        let mut tries = 0;
        loop {
            tries += 1;
            let mut wanted = lease::renewed(&self.server_id, &self.labels, Timestamp::now());
            let written = match self.api.get_opt(&name).await? {
                Some(there) => {
                    wanted.metadata.resource_version = there.metadata.resource_version;
                    self.api.replace(&name, &params, &wanted).await
                }
                None => self.api.create(&params, &wanted).await,
            };
            match written {
                Ok(_) => return Ok(()),
                // Another client created, changed or deleted the lease between the read and the write.
                Err(error) if matches!(outcome(&error).0, 404 | 409) && tries < CONFLICTS => {
                    debug!(
                        lease = name.as_str(),
                        "the lease has changed meanwhile; writing it anew"
                    );
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn collect(&self) {
        loop {
            sleep(jittered(INTERVAL)).await;
            let deleting = self.delete_expired(Instant::now());
            if timeout(REQUEST, deleting).await.is_err() {
                warn!(
                    "the API server has not answered within {} s",
                    REQUEST.as_secs()
                );
            }
        }
    }

    /// Deletes the leases that have expired and whose servers have not renewed them for [`WATCHED`]. `now` comes from
    /// the monotonic clock.
    pub async fn delete_expired(&self, now: Instant) {
        let params = ListParams::default().labels(&lease::selector(&self.labels));
        let start = Instant::now();
        let leases = match self.api.list(&params).await {
            Ok(list) => {
                self.metrics.listed_leases(200, "", start.elapsed());
                list.items
            }
            Err(error) => {
                let (code, reason) = outcome(&error);
                self.metrics.listed_leases(code, reason, start.elapsed());
                error!(err = %error, "leases cannot be listed");
                return;
            }
        };
        for lease in self.forsaken(&leases, now) {
            self.delete(lease).await;
        }
    }

    /// Returns those of the leases that are to be deleted.
    fn forsaken<'a>(&self, leases: &'a [Lease], now: Instant) -> Vec<&'a Lease> {
        let clock = Timestamp::now();
        // No code panics while it holds this lock.
        let mut expired = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *expired);
        let looking_expired = leases.iter().filter(|lease| !lease::is_valid(lease, clock));
        looking_expired
            .filter(|lease| {
                let metadata = &lease.metadata;
                let key = (
                    metadata.name.clone().unwrap_or_default(),
                    metadata.resource_version.clone().unwrap_or_default(),
                );
                let since = before.get(&key).copied().unwrap_or(now);
                expired.insert(key, since);
                now.duration_since(since) >= WATCHED
            })
            .collect()
    }

    async fn delete(&self, lease: &Lease) {
        let Some(name) = lease.metadata.name.as_deref() else {
            return;
        };
        // A lease that is renewed in the meantime is not deleted.
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: lease.metadata.resource_version.clone(),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        let start = Instant::now();
        match self.api.delete(name, &params).await {
            Ok(_) => {
                self.metrics.deleted_lease(200, "", start.elapsed());
                self.metrics.culled_leases.inc();
                info!(lease = name, "deleted an expired lease");
            }
            Err(error) => {
                let (code, reason) = outcome(&error);
                self.metrics.deleted_lease(code, reason, start.elapsed());
                if matches!(code, 404 | 409) {
                    debug!(
                        lease = name,
                        "an expired lease was renewed or deleted meanwhile"
                    );
                } else {
                    error!(lease = name, err = %error, "an expired lease cannot be deleted");
                }
            }
        }
    }

    /// Deletes this server's lease, so that agents stop counting the server at once.
    pub async fn withdraw(&self) {
        let name = lease::name(&self.server_id);
        let params = DeleteParams::default();
        match timeout(FAREWELL, self.api.delete(&name, &params)).await {
            Ok(Ok(_)) => info!(lease = name.as_str(), "deleted this server's lease"),
            Ok(Err(error)) if outcome(&error).0 == 404 => {}
            Ok(Err(error)) => warn!(
                lease = name.as_str(),
                err = %error,
                "this server's lease cannot be deleted; it counts for {} s more",
                lease::DURATION
            ),
            Err(_) => warn!(
                lease = name.as_str(),
                "no answer to the deletion of this server's lease; it counts for {} s more",
                lease::DURATION
            ),
        }
    }
}

/// Returns a pause that is up to 4 % longer, so that servers do not send their requests at the same time.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + fastrand::f64() * 0.04)
}
