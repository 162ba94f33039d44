// SPDX-License-Identifier: Apache-2.0

//! Tenants: the clusters that share a server. Each agent and each client belongs to one tenant: the one that the rules
//! of a file determine or, without such a file, the only one. A client gets its [`Tenant`] and dials through it; there
//! is no other way to an agent.
//!
//! | module | contents |
//! |---|---|
//! | [`rules`] | the peers of a tenant, and the decision about a peer |
//! | [`mod@file`] | the file format of the rules |
//! | [`peer`] | the properties of a peer |
//! | [`tenant`] | one tenant |
//! | [`limits`] | the limits of one tenant |

pub mod file;
pub mod limits;
pub mod peer;
pub mod rules;
pub mod tenant;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tracing::{error, info};

use self::peer::Peer;
use self::rules::{NoTenant, Rules, Side};
use self::tenant::{Parts, Tenant};
use crate::cluster::tokens::Holder;

/// The tenants of the server.
#[derive(Debug)]
pub enum Tenants {
    /// One cluster: every peer that TLS and tokens admit belongs to it.
    One(Arc<Tenant>),
    /// The tenants of the rules.
    Several(Several),
}

/// The tenants of the rules.
#[derive(Debug)]
pub struct Several {
    parts: Parts,
    current: RwLock<Arc<Current>>,
}

/// The rules in force, and their tenants.
#[derive(Debug, Default)]
struct Current {
    rules: Rules,
    tenants: BTreeMap<Arc<str>, Arc<Tenant>>,
}

impl Tenants {
    /// Creates a server's only tenant.
    #[must_use]
    pub fn one(parts: Parts) -> Self {
        Self::One(Arc::new(Tenant::only(parts)))
    }

    /// Creates the tenants of a server with rules. Every peer is refused until [`Self::apply`] is called.
    #[must_use]
    pub fn several(parts: Parts) -> Self {
        Self::Several(Several {
            parts,
            current: RwLock::default(),
        })
    }

    /// Puts rules in force. Tenants that remain keep their agents and tunnels; tenants that were removed lose them. Has
    /// no effect on a server with one tenant.
    pub fn apply(&self, rules: &Rules) {
        let Self::Several(several) = self else { return };
        for removed in several.apply(rules) {
            removed.remove();
            several.parts.shared.metrics.tenants.forget(removed.name());
            info!(tenant = removed.name(), "a tenant is removed");
        }
    }

    /// Returns the tenant of a client. Logs and counts a refusal.
    ///
    /// # Errors
    /// Returns an error if the client belongs to no tenant.
    pub fn of_client(&self, peer: impl FnOnce() -> Peer) -> Result<Arc<Tenant>, NoTenant> {
        match self {
            Self::One(tenant) => Ok(Arc::clone(tenant)),
            Self::Several(several) => several.judge(Side::Client, &peer(), None),
        }
    }

    /// Returns the tenant of an agent. `token` is the API server's review of the agent's token. Logs and counts a
    /// refusal.
    ///
    /// # Errors
    /// Returns an error if the agent belongs to no tenant.
    pub fn of_agent(&self, peer: &Peer, token: Option<&Holder>) -> Result<Arc<Tenant>, NoTenant> {
        match self {
            Self::One(tenant) => Ok(Arc::clone(tenant)),
            Self::Several(several) => several.judge(Side::Agent, peer, token),
        }
    }

    /// Logs and counts the refusal of an agent because of its token.
    pub fn refuse_token(&self, peer: &Peer, why: &str) {
        if let Self::Several(several) = self {
            several.refuse(Side::Agent, peer, &NoTenant::Token(why.to_owned()));
        }
    }

    /// Returns the token audiences that the rules contain.
    #[must_use]
    pub fn audiences(&self) -> Vec<String> {
        match self {
            Self::One(_) => Vec::new(),
            Self::Several(several) => several.current().rules.audiences(),
        }
    }

    /// Returns all tenants.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        match self {
            Self::One(tenant) => vec![Arc::clone(tenant)],
            Self::Several(several) => several.current().tenants.values().cloned().collect(),
        }
    }

    /// Publishes the state of each tenant in the metrics.
    pub fn publish(&self) {
        if let Self::Several(_) = self {
            for tenant in self.all() {
                tenant.publish();
            }
        }
    }
}

impl Several {
    fn current(&self) -> Arc<Current> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Replaces the rules. Returns the tenants that were removed.
    fn apply(&self, rules: &Rules) -> Vec<Arc<Tenant>> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = current.tenants.clone();
        let tenants = rules.tenants().map(|entry| {
            let tenant = old.remove(&entry.name).unwrap_or_else(|| {
                Arc::new(Tenant::one_of(&self.parts, &entry.name, entry.limits))
            });
            tenant.limit(entry.limits);
            (Arc::clone(&entry.name), tenant)
        });
        let tenants: BTreeMap<_, _> = tenants.collect();
        self.parts.shared.metrics.tenants.count(tenants.len());
        *current = Arc::new(Current {
            rules: rules.clone(),
            tenants,
        });
        old.into_values().collect()
    }

    fn judge(
        &self,
        side: Side,
        peer: &Peer,
        token: Option<&Holder>,
    ) -> Result<Arc<Tenant>, NoTenant> {
        let current = self.current();
        let judged = current.rules.judge(side, peer, token);
        // Rules and tenants are replaced together, so every name has a tenant.
        let tenant = judged.and_then(|name| current.tenants.get(name).ok_or(NoTenant::Unknown));
        tenant
            .cloned()
            .inspect_err(|refusal| self.refuse(side, peer, refusal))
    }

    fn refuse(&self, side: Side, peer: &Peer, refusal: &NoTenant) {
        let labels = (side.label(), refusal.label());
        self.parts
            .shared
            .metrics
            .tenants
            .refused(labels.0, labels.1);
        error!(
            peer = peer.to_string().as_str(),
            err = refusal.to_string().as_str(),
            "refusing {} {}",
            if side == Side::Agent { "an" } else { "a" },
            side.label()
        );
    }
}
