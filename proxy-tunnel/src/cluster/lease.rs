// SPDX-License-Identifier: Apache-2.0

//! A server's lease: its contents and its validity. [`super::publishing`] writes leases, and [`super::counting`] counts
//! them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::ObjectMeta;
use thiserror::Error;

/// How long a lease is valid after it was renewed, in seconds.
pub const DURATION: i32 = 30;

/// The prefix of the names of leases.
const PREFIX: &str = "konnectivity-proxy-server-";

/// The error of a text that is not a list of labels.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no label; give a list as key=value,key=value")]
pub struct LabelError(String);

/// Parses a list of labels such as `key=value,key=value`.
///
/// # Errors
/// Returns an error if an element has no equals sign, more than one, or no key.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.contains('=') => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err(LabelError(pair.to_owned())),
        })
        .collect()
}

/// Returns the labels as a selector.
#[must_use]
pub fn selector(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// Returns the name of a server's lease.
#[must_use]
pub fn name(server_id: &str) -> String {
    format!("{PREFIX}{server_id}")
}

/// Returns a server's lease with `now` as the time of renewal.
#[must_use]
pub fn renewed(server_id: &str, labels: &BTreeMap<String, String>, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name(server_id)),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(server_id.to_owned()),
            lease_duration_seconds: Some(DURATION),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// Returns whether a lease is valid at `now`. A lease without its times is not valid.
#[must_use]
pub fn is_valid(lease: &Lease, now: Timestamp) -> bool {
    let until = renewed_at(lease)
        .zip(duration(lease))
        .and_then(|(since, duration)| since.checked_add(duration).ok());
    until.is_some_and(|until| until > now)
}

/// Returns when a lease was renewed, by the clock of its holder.
#[must_use]
pub fn renewed_at(lease: &Lease) -> Option<Timestamp> {
    let spec = lease.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref().or(spec.acquire_time.as_ref())?;
    Some(renewed.0)
}

/// Returns how long a lease is valid after it was renewed.
#[must_use]
pub fn duration(lease: &Lease) -> Option<SignedDuration> {
    let seconds = lease.spec.as_ref()?.lease_duration_seconds?;
    Some(SignedDuration::from_secs(i64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_lease_counts_for_its_duration() {
        let mut lease = renewed("a", &BTreeMap::new(), at(1000));
        assert!(is_valid(&lease, at(1000)));
        assert!(is_valid(&lease, at(1029)));
        assert!(!is_valid(&lease, at(1030)));
        let spec = lease.spec.as_mut().unwrap();
        spec.acquire_time = spec.renew_time.take();
        assert!(is_valid(&lease, at(1029)), "acquireTime stands in");
        lease.spec.as_mut().unwrap().acquire_time = None;
        assert!(!is_valid(&lease, at(1000)));
        let mut odd = renewed("a", &BTreeMap::new(), Timestamp::MAX);
        odd.spec.as_mut().unwrap().lease_duration_seconds = Some(i32::MAX);
        assert!(!is_valid(&odd, at(0)), "beyond the end of time");
        odd.spec.as_mut().unwrap().lease_duration_seconds = None;
        assert!(!is_valid(&odd, at(0)));
    }

    #[test]
    fn the_object_is_upstreams() {
        let labels = parse_labels("k8s-app=konnectivity-server").unwrap();
        let lease = renewed("id", &labels, at(0));
        let json = serde_json::to_value(&lease).unwrap();
        let want = serde_json::json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": "konnectivity-proxy-server-id",
                "labels": {"k8s-app": "konnectivity-server"},
            },
            "spec": {
                "holderIdentity": "id",
                "leaseDurationSeconds": 30,
                "renewTime": "1970-01-01T00:00:00.000000Z",
            },
        });
        assert_eq!(json, want);
        assert_eq!(selector(&labels), "k8s-app=konnectivity-server");
    }

    #[test]
    fn labels() {
        assert_eq!(parse_labels("").unwrap(), BTreeMap::new());
        assert_eq!(parse_labels("a=1,b=").unwrap().len(), 2);
        for bad in ["a", "=b", "a=b=c", "a=1,b"] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
    }
}
