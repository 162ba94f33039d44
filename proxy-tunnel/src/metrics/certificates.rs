// SPDX-License-Identifier: Apache-2.0

//! The end of certificates, and the outcome of changed files, in every program that has any. A value of the label
//! `certificate` is the flag that names the file, without dashes: `server-cert`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec};
use proxy_serve::reload::Change;
use proxy_serve::tls::{client, server};

use super::Maker;

/// The families.
#[derive(Debug)]
pub struct Certificates {
    ends: IntGaugeVec,
    reloads: IntCounterVec,
}

/// Certificates that a program has in use: its own, where it shows one, and the first of the peers' CAs, where they need
/// one. Both are times in Unix time.
pub trait Ends {
    /// Of its own certificate.
    fn own(&self) -> Option<Duration>;
    /// Of the first of the CAs.
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

/// A pair and the CAs of its peers, by the flags that name their files, without dashes.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The own certificate.
    pub own: &'static str,
    /// The peers' CAs.
    pub authorities: &'static str,
}

impl Certificates {
    /// With `by_tenant` each tenant has its own, by a label.
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

    /// Counts the changes of the files of a pair and its CAs; `tenant` where these families have that label.
    pub fn observer<T: Ends>(
        &self,
        names: Names,
        tenant: Option<&str>,
    ) -> impl Fn(Change<'_, T>) + Send + use<T> {
        let with = |first: &[&str]| -> Vec<String> {
            let values = first.iter().copied().chain(tenant);
            values.map(str::to_owned).collect()
        };
        // There before the first change, so that an increase can be seen.
        let counter = |result| self.reloads.with_label_values(&with(&[names.own, result]));
        let (used, refused) = (counter("used"), counter("refused"));
        let lines = [names.own, names.authorities].map(|name| with(&[name]));
        let ends = self.ends.clone();
        let in_use = move |made: &T| {
            for (line, end) in lines.iter().zip([made.own(), made.authorities()]) {
                // Without a certificate there is no line.
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
