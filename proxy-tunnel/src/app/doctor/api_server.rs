// SPDX-License-Identifier: Apache-2.0

//! Checks of the API server that a program uses: that it responds, the permissions that it grants, its leases, and its
//! clock.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use proxy_serve::doctor::Check;
use tokio::time::timeout;

use super::words::chain;
use crate::cluster::{self, lease, outcome};

/// The time limit for one response.
const LIMIT: Duration = Duration::from_secs(10);

/// The clock difference from which on the check reports a warning, in seconds. A lease is valid for 30 s.
const SKEW: i64 = 5;

/// The maximum number of leases in one response.
const PAGE: u32 = 500;

/// A permission that a program needs.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    /// The verb, as in RBAC.
    pub verb: &'a str,
    /// The API group.
    pub group: &'a str,
    /// The resource.
    pub resource: &'a str,
    /// The namespace, if the resource is in one.
    pub namespace: Option<&'a str>,
}

/// Returns a client and the findings so far, if the API server responds.
///
/// # Errors
/// Returns a finding with the reason if the API server cannot be queried.
pub async fn reach(kubeconfig: Option<&Path>) -> Result<(Client, Vec<Check>), Check> {
    let remedy = "give a kubeconfig whose server is reached from here and whose certificate or token is valid; a NetworkPolicy may \
                  be in the way";
    let client = cluster::connect(kubeconfig)
        .await
        .map_err(|error| Check::broken("api-server", chain(&error), remedy))?;
    let request = http::Request::get("/version").body(Body::empty());
    let request = request.map_err(|error| Check::broken("api-server", chain(&error), remedy))?;
    let answer = match timeout(LIMIT, client.send(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let finding = format!("the API server cannot be asked: {}", chain(&error));
            return Err(Check::broken("api-server", finding, remedy));
        }
        Err(_) => {
            let finding = format!(
                "the API server has not answered within {} s",
                LIMIT.as_secs()
            );
            return Err(Check::broken("api-server", finding, remedy));
        }
    };
    let status = answer.status();
    if !status.is_success() {
        let finding =
            format!("the API server answers {status}: it does not know this program's user");
        return Err(Check::broken("api-server", finding, remedy));
    }
    let date = answer.headers().get(http::header::DATE);
    let date = date.and_then(|date| date.to_str().ok());
    let checks = vec![
        Check::ok("api-server", "the API server answers"),
        clock(date, Timestamp::now()),
    ];
    Ok((client, checks))
}

fn clock(date: Option<&str>, now: Timestamp) -> Check {
    let theirs = date.and_then(|date| rfc2822::parse(date).ok());
    let Some(theirs) = theirs else {
        return Check::unknown(
            "clock",
            "the API server's answer has no date to compare with",
            "compare the clocks by hand",
        );
    };
    let ahead = now.as_second() - theirs.timestamp().as_second();
    if ahead.abs() <= SKEW {
        return Check::ok("clock", "it agrees with the API server's");
    }
    let (seconds, direction) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
    Check::warning(
        "clock",
        format!("this machine's clock is {seconds} s {direction} the API server's"),
        "have both synchronised: leases count for 30 s, and certificates and tokens are judged by these clocks",
    )
}

/// Checks that the user has all of these permissions.
pub async fn rights(client: &Client, wanted: &[Right<'_>]) -> Vec<Check> {
    let remedy = "apply deploy/tunnel/kustomize/rights to the cluster of this API server, or bind the user to a role that allows it";
    let mut allowed = Vec::new();
    let mut checks = Vec::new();
    for right in wanted {
        let Right {
            verb,
            group,
            resource,
            namespace,
        } = *right;
        let place = namespace.map_or_else(String::new, |name| format!(" in namespace {name}"));
        let what = format!("{verb} {resource}.{group}{place}");
        match is_allowed(client, *right).await {
            Ok(true) => allowed.push(what),
            Ok(false) => checks.push(Check::broken(
                "rights",
                format!("the API server does not allow this program to {what}"),
                remedy,
            )),
            Err(error) => checks.push(Check::unknown(
                "rights",
                format!("whether it may {what} is not known: {}", chain(&error)),
                remedy,
            )),
        }
    }
    if !allowed.is_empty() {
        let finding = format!("it may {}", allowed.join(", "));
        checks.push(Check::ok("rights", finding));
    }
    checks
}

async fn is_allowed(client: &Client, right: Right<'_>) -> Result<bool, kube::Error> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(right.verb.to_owned()),
                group: Some(right.group.to_owned()),
                resource: Some(right.resource.to_owned()),
                namespace: right.namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let params = PostParams::default();
    let asked = timeout(LIMIT, api.create(&params, &review)).await;
    let answer = asked.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Returns the number of servers that have a valid lease.
///
/// # Errors
/// Returns a finding with the reason if the leases cannot be listed.
pub async fn leases(client: &Client, namespace: &str, selector: &str) -> Result<usize, Check> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(selector).limit(PAGE);
    let asked = timeout(LIMIT, api.list(&params)).await;
    let list = asked.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())));
    let list = list.map_err(|error| {
        let code = outcome(&error).0;
        Check::broken(
            "leases",
            format!("leases in namespace {namespace} cannot be listed ({code}): {}", chain(&error)),
            "a role with `list` and `watch` of leases in this namespace, which is the one of --lease-namespace",
        )
    })?;
    let now = Timestamp::now();
    let valid = list
        .items
        .iter()
        .filter(|found| lease::is_valid(found, now));
    Ok(valid.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn clocks_are_compared() {
        let date = Some("Mon, 30 Nov 2026 01:59:21 GMT");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let verdict = |now| clock(date, at(now)).verdict;
        assert_eq!(verdict("2026-11-30T01:59:26Z"), Verdict::Ok);
        assert_eq!(verdict("2026-11-30T01:59:27Z"), Verdict::Warning);
        let behind = clock(date, at("2026-11-30T01:50:21Z"));
        assert!(behind.finding.contains("540 s behind"), "{behind:?}");
        for date in [None, Some("yesterday")] {
            let found = clock(date, at("2026-11-30T01:59:26Z"));
            assert_eq!(found.verdict, Verdict::Unknown);
        }
    }
}
