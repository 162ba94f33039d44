// SPDX-License-Identifier: Apache-2.0

//! Tenants: the clusters that share a server. An agent, and a client, belongs to one of them, by the rules of a file or,
//! without one, to the only one there is. A client gets the [`Tenant`] that it belongs to and dials by it: there is no other
//! way to an agent.
//!
//! | module | holds |
//! |---|---|
//! | [`rules`] | the peers of a tenant, and the decision about a peer |
//! | [`mod@file`] | how the rules are written |
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
    /// One cluster: every peer that TLS and tokens let in belongs to it.
    One(Arc<Tenant>),
    /// Those of the rules.
    Several(Several),
}

/// The tenants of the rules.
#[derive(Debug)]
pub struct Several {
    parts: Parts,
    current: RwLock<Arc<Current>>,
}

/// The rules of a moment, and their tenants.
#[derive(Debug, Default)]
struct Current {
    rules: Rules,
    tenants: BTreeMap<Arc<str>, Arc<Tenant>>,
}

impl Tenants {
    /// One.
    #[must_use]
    pub fn one(parts: Parts) -> Self {
        Self::One(Arc::new(Tenant::only(parts)))
    }

    /// Those of the rules. Until there are some every peer is refused.
    #[must_use]
    pub fn several(parts: Parts) -> Self {
        Self::Several(Several {
            parts,
            current: RwLock::default(),
        })
    }

    /// Puts these rules in force: tenants that stay keep their agents and tunnels, those that are gone lose them.
    /// Without effect on a server with one tenant.
    pub fn apply(&self, rules: &Rules) {
        let Self::Several(several) = self else { return };
        for removed in several.apply(rules) {
            removed.remove();
            several.parts.shared.metrics.tenants.forget(removed.name());
            info!(tenant = removed.name(), "a tenant is removed");
        }
    }

    /// The tenant that a client belongs to. A refusal is logged and counted here.
    ///
    /// # Errors
    /// It belongs to none.
    pub fn of_client(&self, peer: impl FnOnce() -> Peer) -> Result<Arc<Tenant>, NoTenant> {
        match self {
            Self::One(tenant) => Ok(Arc::clone(tenant)),
            Self::Several(several) => several.judge(Side::Client, &peer(), None),
        }
    }

    /// The tenant that an agent belongs to; `token` is an API server's review of its token. A refusal is logged and
    /// counted here.
    ///
    /// # Errors
    /// It belongs to none.
    pub fn of_agent(&self, peer: &Peer, token: Option<&Holder>) -> Result<Arc<Tenant>, NoTenant> {
        match self {
            Self::One(tenant) => Ok(Arc::clone(tenant)),
            Self::Several(several) => several.judge(Side::Agent, peer, token),
        }
    }

    /// Logs and counts that an agent is refused for its token.
    pub fn refuse_token(&self, peer: &Peer, why: &str) {
        if let Self::Several(several) = self {
            several.refuse(Side::Agent, peer, &NoTenant::Token(why.to_owned()));
        }
    }

    /// The audiences of tokens that rules name.
    #[must_use]
    pub fn audiences(&self) -> Vec<String> {
        match self {
            Self::One(_) => Vec::new(),
            Self::Several(several) => several.current().rules.audiences(),
        }
    }

    /// All tenants.
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

    /// Returns the tenants that are no more.
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
        // The tenants are those of the rules.
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
