// SPDX-License-Identifier: Apache-2.0

//! The expiry times of certificates, and the results of reloading changed files, for all programs with certificates.
//! The value of the label `certificate` is the flag that names the file, without dashes: `server-cert`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec};
use proxy_serve::reload::Change;
use proxy_serve::tls::{client, server};

use super::Maker;

/// The metric families.
#[derive(Debug)]
pub struct Certificates {
    ends: IntGaugeVec,
    reloads: IntCounterVec,
}

/// The expiry times of the certificates in use, in Unix time.
pub trait Ends {
    /// Returns the expiry time of the own certificate, if the program presents one.
    fn own(&self) -> Option<Duration>;
    /// Returns the earliest expiry time of the peers' CAs, if peers need a certificate.
    fn authorities(&self) -> Option<Duration>;
}

impl Ends for server::Identity {
    fn own(&self) -> Option<Duration> {
        Some(self.ends)
    }

    fn authorities(&self) -> Option<Duration> {
        self.client_ca_ends
    }
}

impl Ends for client::Identity {
    fn own(&self) -> Option<Duration> {
        self.ends
    }

    fn authorities(&self) -> Option<Duration> {
        Some(self.server_ca_ends)
    }
}

/// The flags that name the files of a key pair and of the peers' CAs, without dashes.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The flag for the own certificate.
    pub own: &'static str,
    /// The flag for the peers' CAs.
    pub authorities: &'static str,
}

impl Certificates {
    /// Creates the families. With `by_tenant` they have a label for the tenant.
    pub(super) fn new(maker: &Maker, by_tenant: bool) -> Arc<Self> {
        let labels = |own: &[&'static str]| -> Vec<&'static str> {
            let tenant = by_tenant.then_some("tenant");
            own.iter().copied().chain(tenant).collect()
        };
        Arc::new(Self {
            ends: maker.gauges(
                "certificate_expiry_timestamp_seconds",
                "When a certificate in use ends, in Unix time; of several CAs the first one.",
                &labels(&["certificate"]),
            ),
            reloads: maker.counters(
                "certificate_reloads_total",
                "Changed files of certificates, by what became of them.",
                &labels(&["certificate", "result"]),
            ),
        })
    }

    /// Returns an observer that counts the changes to the files of a key pair and its CAs. `tenant` is the tenant, if
    /// these families have that label.
    pub fn observer<T: Ends>(
        &self,
        names: Names,
        tenant: Option<&str>,
    ) -> impl Fn(Change<'_, T>) + Send + use<T> {
        let with = |first: &[&str]| -> Vec<String> {
            let values = first.iter().copied().chain(tenant);
            values.map(str::to_owned).collect()
        };
        // Created before the first change, so that the first increase is visible.
        let counter = |result| self.reloads.with_label_values(&with(&[names.own, result]));
        let (used, refused) = (counter("used"), counter("refused"));
        let lines = [names.own, names.authorities].map(|name| with(&[name]));
        let ends = self.ends.clone();
        let in_use = move |made: &T| {
            for (line, end) in lines.iter().zip([made.own(), made.authorities()]) {
                // Without a certificate there is no series.
                if let Some(end) = end {
                    let end = i64::try_from(end.as_secs()).unwrap_or(i64::MAX);
                    ends.with_label_values(line).set(end);
                }
            }
        };
        move |change| match change {
            Change::Loaded(made) => in_use(made),
            Change::Reloaded(made) => {
                in_use(made);
                used.inc();
            }
            Change::Refused(_) => refused.inc(),
        }
    }
}
