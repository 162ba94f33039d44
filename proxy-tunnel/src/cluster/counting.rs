// SPDX-License-Identifier: Apache-2.0

//! The agent's side of the leases: counts the servers. The agent lists the leases once and then watches them; after any
//! failure of the watch it lists them again. Before the first list there is no count, and the agent uses the number
//! that the servers report.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info};

use super::{REQUEST, lease, outcome};
use crate::metrics::agent::AgentMetrics;

/// The number of leases per page of a list.
const PAGE: u32 = 500;

/// The duration of a watch that the agent requests, in seconds.
const WATCH: u32 = 290;

/// The initial and the maximum pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The API server's status for requests that the role does not permit.
const FORBIDDEN: u16 = 403;

/// How often an agent logs a missing permission.
const REMIND: Duration = Duration::from_mins(1);

/// The known state of a lease.
#[derive(Debug)]
struct Known {
    lease: Lease,
    /// When the agent last saw that the lease was renewed.
    seen: Option<Instant>,
}

impl Known {
    /// Creates the state of a lease that replaces an older state.
    fn new(lease: Lease, before: Option<&Self>) -> Self {
        let seen = before.and_then(|before| {
            let is_renewed = lease::renewed_at(&lease) > lease::renewed_at(&before.lease);
            is_renewed.then(Instant::now).or(before.seen)
        });
        Self { lease, seen }
    }

    /// Returns whether the lease is valid by its times. A lease that the agent saw renewed recently is valid too,
    /// because clocks may differ or jump.
    fn is_valid(&self, now: Timestamp) -> bool {
        let is_recent = |at: Instant| {
            let duration =
                lease::duration(&self.lease).and_then(|duration| Duration::try_from(duration).ok());
            duration.is_some_and(|duration| at.elapsed() < duration)
        };
        lease::is_valid(&self.lease, now) || self.seen.is_some_and(is_recent)
    }
}

/// The known leases.
#[derive(Debug, Default)]
pub struct Leases(Mutex<Option<HashMap<String, Known>>>);

impl Leases {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<String, Known>>> {
        // No code panics while it holds this lock.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns the number of servers with a valid lease, but at least 1. Returns `None` before the first list.
    #[must_use]
    pub fn count(&self, now: Timestamp) -> Option<usize> {
        let leases = self.lock();
        let valid = |leases: &HashMap<String, Known>| {
            let valid = leases.values().filter(|known| known.is_valid(now));
            valid.count()
        };
        leases.as_ref().map(|leases| valid(leases).max(1))
    }

    fn replace(&self, leases: Vec<Lease>) {
        let mut known = self.lock();
        let before = known.take().unwrap_or_default();
        let named = leases.into_iter().filter_map(|lease| {
            let name = lease.metadata.name.clone()?;
            let before = before.get(&name);
            Some((name, Known::new(lease, before)))
        });
        *known = Some(named.collect());
    }

    /// Applies an event. Returns the resource version from which a later watch continues.
    ///
    /// # Errors
    /// Returns an error if the watch has ended and the leases must be listed again.
    pub fn apply(&self, event: WatchEvent<Lease>) -> Result<Option<String>, kube::Error> {
        let mut leases = self.lock();
        let leases = leases.get_or_insert_default();
        match event {
            WatchEvent::Added(lease) | WatchEvent::Modified(lease) => {
                let version = lease.metadata.resource_version.clone();
                if let Some(name) = lease.metadata.name.clone() {
                    let known = Known::new(lease, leases.get(&name));
                    leases.insert(name, known);
                }
                Ok(version)
            }
            WatchEvent::Deleted(lease) => {
                if let Some(name) = &lease.metadata.name {
                    leases.remove(name);
                }
                Ok(lease.metadata.resource_version)
            }
            WatchEvent::Bookmark(bookmark) => Ok(Some(bookmark.metadata.resource_version)),
            WatchEvent::Error(status) => Err(kube::Error::Api(status)),
        }
    }
}

/// Keeps [`Leases`] up to date.
pub struct Counter {
    api: Api<Lease>,
    selector: String,
    metrics: Arc<AgentMetrics>,
    leases: Arc<Leases>,
}

impl Counter {
    /// Creates a counter of the leases in this namespace that match the selector.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        selector: String,
        metrics: Arc<AgentMetrics>,
        leases: Arc<Leases>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            selector,
            metrics,
            leases,
        }
    }

    /// Counts the leases until the future is dropped.
    pub async fn run(self) {
        let mut pause = BACKOFF.0;
        let mut reported: Option<Instant> = None;
        let is_due = |reported: &mut Option<Instant>| {
            let is_due = reported.is_none_or(|at| at.elapsed() > REMIND);
            if is_due {
                *reported = Some(Instant::now());
            }
            is_due
        };
        loop {
            match self.list().await {
                Ok(version) => {
                    let began = Instant::now();
                    let ended = self.watch(version).await;
                    // The pause is reset only after a watch that lasted: a watch may end at once because a role lacks
                    // `watch`, or because a proxy cuts it, and then the leases must not be listed in a tight loop.
                    if began.elapsed() > BACKOFF.1 {
                        (pause, reported) = (BACKOFF.0, None);
                    }
                    match ended {
                        Err(why) if outcome(&why).0 == FORBIDDEN => {
                            if is_due(&mut reported) {
                                error!(
                                    err = %why,
                                    "leases cannot be watched, so they are listed instead; a role with `watch` of leases \
                                     in their namespace ends this"
                                );
                            }
                        }
                        Err(why) => {
                            debug!(err = %why, "the watch of leases has ended; listing them again");
                        }
                        Ok(()) => {}
                    }
                }
                Err(why) => {
                    if is_due(&mut reported) {
                        error!(
                            err = %why,
                            "leases cannot be listed, so the number of servers is taken from what servers say; a \
                             role with `list` and `watch` of leases in their namespace, or --count-server-leases=false, \
                             ends this"
                        );
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn list(&self) -> Result<String, kube::Error> {
        let mut params = ListParams {
            label_selector: Some(self.selector.clone()),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut leases = Vec::new();
        loop {
            let start = Instant::now();
            let asked = timeout(REQUEST, self.api.list(&params)).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(kube::Error::Service(
                    format!("no answer within {} s", REQUEST.as_secs()).into(),
                ))
            });
            let page = match answer {
                Ok(page) => page,
                Err(error) => {
                    let (code, reason) = outcome(&error);
                    self.metrics.listed_leases(code, reason, start.elapsed());
                    return Err(error);
                }
            };
            self.metrics.listed_leases(200, "", start.elapsed());
            leases.extend(page.items);
            let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) else {
                self.leases.replace(leases);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            };
            params.continue_token = Some(token);
        }
    }

    async fn watch(&self, mut version: String) -> Result<(), kube::Error> {
        let params = WatchParams::default().labels(&self.selector).timeout(WATCH);
        let limit = Duration::from_secs(u64::from(WATCH)) + REQUEST;
        loop {
            let follow = async {
                let mut events = std::pin::pin!(self.api.watch(&params, &version).await?);
                let mut latest = None;
                while let Some(event) = events.try_next().await? {
                    latest = self.leases.apply(event)?.or(latest);
                }
                Ok::<_, kube::Error>(latest)
            };
            match timeout(limit, follow).await {
                Ok(Ok(Some(latest))) => version = latest,
                // The watch ended without an event: either no lease changed, or the watch does not work.
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    info!("the watch of leases hangs; listing them again");
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn renewed(id: &str, second: i64) -> Lease {
        lease::renewed(id, &BTreeMap::new(), at(second))
    }

    #[test]
    fn valid_leases_are_counted_and_never_fewer_than_one() {
        let leases = Leases::default();
        assert_eq!(leases.count(at(0)), None);
        leases.replace(vec![renewed("a", 0), renewed("b", 10)]);
        assert_eq!(leases.count(at(29)), Some(2));
        assert_eq!(leases.count(at(30)), Some(1));
        assert_eq!(leases.count(at(100)), Some(1));
        leases
            .apply(WatchEvent::Modified(renewed("a", 100)))
            .unwrap();
        leases
            .apply(WatchEvent::Modified(renewed("b", 100)))
            .unwrap();
        leases.apply(WatchEvent::Added(renewed("c", 100))).unwrap();
        assert_eq!(leases.count(at(100)), Some(3));
        leases
            .apply(WatchEvent::Deleted(renewed("c", 100)))
            .unwrap();
        assert_eq!(leases.count(at(100)), Some(2));
    }
}
