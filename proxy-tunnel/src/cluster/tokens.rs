// SPDX-License-Identifier: Apache-2.0

//! Checks with a token review of the API server that an agent's token belongs to the service account of the agents.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use thiserror::Error;
use tokio::time::timeout;

use super::REQUEST;

/// The service account of the agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub name: String,
    /// The audience for which tokens must be issued.
    pub audience: String,
}

/// The owner of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The namespace of the service account.
    pub namespace: String,
    /// The name of the service account.
    pub account: String,
    /// Those audiences of the request that the token has; empty if the API server does not support audiences.
    pub audiences: Vec<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "system:serviceaccount:{}:{}",
            self.namespace, self.account
        )
    }
}

/// Why a token is refused, in upstream's wording.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The request to the API server failed.
    #[error("Failed to authenticate request. err:{0}")]
    Request(#[source] Box<kube::Error>),
    /// The API server did not answer in time.
    #[error("Failed to authenticate request. err:no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The token was refused.
    #[error("lookup failed: {0}")]
    Refused(String),
}

/// Checks tokens with the API server.
#[derive(Clone)]
pub struct Reviewer {
    api: Api<TokenReview>,
    account: Option<Account>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

impl Reviewer {
    /// Creates a reviewer that accepts tokens of this account only.
    #[must_use]
    pub fn new(client: Client, account: Account) -> Self {
        Self {
            api: Api::all(client),
            account: Some(account),
        }
    }

    /// Creates a reviewer that accepts tokens of any service account, because the rules of the tenants check the
    /// account.
    #[must_use]
    pub fn of_any(client: Client) -> Self {
        Self {
            api: Api::all(client),
            account: None,
        }
    }

    /// Returns whether agents may connect without a token.
    #[must_use]
    pub const fn is_optional(&self) -> bool {
        self.account.is_none()
    }

    /// Returns the owner of a token. `audiences` are the audiences to check, unless a single account is accepted.
    ///
    /// # Errors
    /// Returns an error if the token is refused, or if the review fails.
    pub async fn review(&self, token: &str, audiences: Vec<String>) -> Result<Holder, TokenError> {
        let audiences = match &self.account {
            Some(account) => vec![account.audience.clone()],
            None => audiences,
        };
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(audiences),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let answer = timeout(REQUEST, self.api.create(&params, &review))
            .await
            .map_err(|_| TokenError::Timeout(REQUEST))?
            .map_err(|error| TokenError::Request(Box::new(error)))?;
        let holder = holder(answer.status.unwrap_or_default())?;
        match &self.account {
            Some(account) => judge(holder, account),
            None => Ok(holder),
        }
    }
}

fn refuse<T>(why: &str) -> Result<T, TokenError> {
    Err(TokenError::Refused(why.to_owned()))
}

/// Returns the service account in the API server's answer.
fn holder(status: TokenReviewStatus) -> Result<Holder, TokenError> {
    if let Some(error) = status.error.filter(|error| !error.is_empty()) {
        return refuse(&error);
    }
    if status.authenticated != Some(true) {
        return refuse("service account jwt not valid");
    }
    let username = status
        .user
        .and_then(|user| user.username)
        .unwrap_or_default();
    let parts: Vec<&str> = username.split(':').collect();
    let [system, kind, namespace, name] = parts[..] else {
        return refuse("unexpected username format");
    };
    if (system, kind) != ("system", "serviceaccount") {
        return refuse("username returned is not a service account");
    }
    Ok(Holder {
        namespace: namespace.to_owned(),
        account: name.to_owned(),
        audiences: status.audiences.unwrap_or_default(),
    })
}

fn judge(holder: Holder, account: &Account) -> Result<Holder, TokenError> {
    // An API server that supports audiences returns those that it found; another one returns none.
    if !holder.audiences.is_empty() && !holder.audiences.contains(&account.audience) {
        return refuse("the token was issued for another audience");
    }
    let Holder {
        namespace,
        account: name,
        ..
    } = &holder;
    if *namespace != account.namespace {
        let want = &account.namespace;
        return refuse(&format!(
            "incoming request from {namespace:?} namespace. Expected {want:?}"
        ));
    }
    if *name != account.name {
        let want = &account.name;
        return refuse(&format!(
            "incoming request from {name:?} service account. Expected {want:?}"
        ));
    }
    Ok(holder)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn account() -> Account {
        Account {
            namespace: "kube-system".into(),
            name: "agent".into(),
            audience: "konnectivity".into(),
        }
    }

    fn status(username: &str) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            user: Some(UserInfo {
                username: Some(username.into()),
                ..UserInfo::default()
            }),
            ..TokenReviewStatus::default()
        }
    }

    #[test]
    fn only_the_account_is_accepted() {
        let good = "system:serviceaccount:kube-system:agent";
        let judged = |status| judge(holder(status)?, &account());
        assert_eq!(judged(status(good)).unwrap().to_string(), good);
        for (username, want) in [
            ("admin", "lookup failed: unexpected username format"),
            (
                "system:node:a:b",
                "lookup failed: username returned is not a service account",
            ),
            (
                "system:serviceaccount:default:agent",
                "lookup failed: incoming request from \"default\" namespace. Expected \"kube-system\"",
            ),
            (
                "system:serviceaccount:kube-system:x",
                "lookup failed: incoming request from \"x\" service account. Expected \"agent\"",
            ),
        ] {
            let error = judged(status(username)).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn what_the_api_server_refuses_is_refused() {
        let good = status("system:serviceaccount:kube-system:agent");
        for (status, want) in [
            (
                TokenReviewStatus::default(),
                "service account jwt not valid",
            ),
            (
                TokenReviewStatus {
                    error: Some("token expired".into()),
                    ..good.clone()
                },
                "token expired",
            ),
            (
                TokenReviewStatus {
                    audiences: Some(vec!["other".into()]),
                    ..good
                },
                "the token was issued for another audience",
            ),
        ] {
            let judged = holder(status).and_then(|holder| judge(holder, &account()));
            let error = judged.unwrap_err().to_string();
            assert_eq!(error, format!("lookup failed: {want}"));
        }
    }
}
