// SPDX-License-Identifier: Apache-2.0

//! The server's side of leases: its own one is written and renewed, expired ones of others are deleted.

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

/// How often the lease is renewed and expired ones are looked for.
const INTERVAL: Duration = Duration::from_secs(15);

/// The first and the longest pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7));

/// How often a lease is read and written anew when others change it at the same time.
const CONFLICTS: usize = 5;

/// For how long a lease must be seen not to be renewed before it is deleted: as long as it counts. By its times alone it looks
/// expired also where this server's clock is ahead of the others', or has jumped: then the lease of every other server would
/// be deleted again and again.
pub const WATCHED: Duration = Duration::from_secs(30);

/// How long the deletion may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Keeps one server's lease.
#[derive(Clone)]
pub struct Publisher {
    api: Api<Lease>,
    server_id: String,
    labels: BTreeMap<String, String>,
    metrics: Arc<ServerMetrics>,
    /// Since when each lease, by its name and version, has looked expired.
    expired: Arc<Mutex<HashMap<(String, String), Instant>>>,
}

impl Publisher {
    /// For this server's lease.
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

    /// Keeps the lease and deletes expired ones, until it is dropped.
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

    /// Writes the lease, renewed now.
    ///
    /// # Errors
    /// The API server refuses it, or others change it all the time.
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
                // Created, changed or deleted by another between reading and writing.
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

    /// Deletes leases of servers that no longer renew them: those that have expired, and have been seen not to be renewed for
    /// [`WATCHED`]. `now` is the time by the clock that does not jump.
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

    /// The leases of these that are to be deleted.
    fn forsaken<'a>(&self, leases: &'a [Lease], now: Instant) -> Vec<&'a Lease> {
        let clock = Timestamp::now();
        // Nothing panics while it is held.
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
        // A lease that is renewed meanwhile stays.
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

    /// Deletes the own lease, so that agents stop counting this server at once.
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

/// Up to a twenty-fifth longer, so that servers do not ask at the same time.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + fastrand::f64() * 0.04)
}
