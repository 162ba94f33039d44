// SPDX-License-Identifier: Apache-2.0

//! The rules: the tenants with their agents, clients and limits. [`super::file`] defines the file format.
//!
//! A rule holds if all of its conditions hold, and a peer belongs to a tenant if one of the tenant's rules holds. A
//! peer that matches rules of several tenants belongs to none: the order in the file is not significant.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::limits::Limits;
use super::peer::{Entrance, Peer};
use crate::cluster::tokens::Holder;
use crate::pattern::{HostPattern, Pattern};

/// The kind of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// An agent.
    Agent,
    /// A client.
    Client,
}

impl Side {
    /// Returns the label in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Client => "client",
        }
    }

    /// Returns the key in the file.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Agent => "agents",
            Self::Client => "clients",
        }
    }
}

/// Why a peer belongs to no tenant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoTenant {
    /// No rule holds.
    #[error("it belongs to no tenant")]
    Unknown,
    /// Rules of several tenants hold.
    #[error("it fits the rules of tenants {0} and {1}")]
    Several(Arc<str>, Arc<str>),
    /// The peer's token is not valid.
    #[error("{0}")]
    Token(String),
}

impl NoTenant {
    /// Returns the label in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unknown => "no_tenant",
            Self::Several(..) => "several_tenants",
            Self::Token(_) => "token",
        }
    }
}

/// The error of a file whose rules cannot be used.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct RulesError {
    place: String,
    problem: String,
}

impl RulesError {
    pub(super) fn new(place: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self {
            place: place.to_string(),
            problem: problem.to_string(),
        }
    }
}

/// One rule. A condition that is `None` always holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    /// The patterns for O, OU, CN and URIs.
    pub certificate: Option<[Option<Pattern>; 4]>,
    pub token: Option<TokenRule>,
    pub server_name: Option<HostPattern>,
    pub entrance: Option<Entrance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenRule {
    pub audience: String,
    pub namespace: Option<String>,
    pub account: Option<String>,
}

/// One tenant of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRules {
    /// The tenant's name.
    pub name: Arc<str>,
    /// The tenant's limits.
    pub limits: Limits,
    pub(super) agents: Vec<Rule>,
    pub(super) clients: Vec<Rule>,
}

/// The rules of all tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<TenantRules>);

impl Rules {
    /// Creates rules from these tenants, and checks that they do not conflict.
    ///
    /// # Errors
    /// Returns an error if two tenants have the same name or the same rule, or if agents and clients share a listening
    /// socket.
    pub(crate) fn new(tenants: Vec<TenantRules>) -> Result<Self, RulesError> {
        let rules = Self(tenants);
        rules.check_names()?;
        rules.check_overlaps()?;
        rules.check_entrances()?;
        Ok(rules)
    }

    fn check_names(&self) -> Result<(), RulesError> {
        let mut names = BTreeSet::new();
        match self.0.iter().find(|tenant| !names.insert(&tenant.name)) {
            Some(tenant) => Err(RulesError::new(
                format_args!("tenant {}", tenant.name),
                "the name stands twice",
            )),
            None => Ok(()),
        }
    }

    /// Checks that no two tenants have the same rule: no peer could belong to either by it.
    fn check_overlaps(&self) -> Result<(), RulesError> {
        for side in [Side::Agent, Side::Client] {
            let mut owners: HashMap<&Rule, &TenantRules> = HashMap::new();
            for tenant in &self.0 {
                for rule in tenant.rules(side) {
                    match owners.insert(rule, tenant) {
                        Some(other) if other.name != tenant.name => {
                            let place = format!("tenant {}, {}", tenant.name, side.key());
                            let problem = format!("a rule is that of tenant {}", other.name);
                            return Err(RulesError::new(place, problem));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that each listening socket is for agents or for clients, not for both.
    fn check_entrances(&self) -> Result<(), RulesError> {
        let clients = self.entrances(Side::Client);
        let agents = self.entrances(Side::Agent);
        match agents.intersection(&clients).next() {
            Some(both) => Err(RulesError::new(both, "agents and clients need one each")),
            None => Ok(()),
        }
    }

    /// Returns the tenants, in the order of the file.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantRules> {
        self.0.iter()
    }

    /// Returns the listening sockets that rules contain.
    #[must_use]
    pub fn entrances(&self, side: Side) -> BTreeSet<Entrance> {
        let rules = self.0.iter().flat_map(|tenant| tenant.rules(side));
        rules.filter_map(|rule| rule.entrance.clone()).collect()
    }

    /// Returns the tenants with a rule that proves nothing about a peer: any peer can match it by the server name that
    /// it requests, or by the port that it connects to.
    pub fn unproved(&self, side: Side) -> impl Iterator<Item = &str> {
        let tenants = self.0.iter();
        let unproved =
            tenants.filter(move |tenant| tenant.rules(side).iter().any(Rule::proves_nothing));
        unproved.map(|tenant| &*tenant.name)
    }

    /// Returns the token audiences that the rules contain.
    #[must_use]
    pub fn audiences(&self) -> Vec<String> {
        let rules = self.0.iter().flat_map(|tenant| &tenant.agents);
        let tokens = rules.filter_map(|rule| rule.token.as_ref());
        let audiences: BTreeSet<&String> = tokens.map(|token| &token.audience).collect();
        audiences.into_iter().cloned().collect()
    }

    /// Returns the tenant of a peer. `token` is the API server's review of the peer's token.
    ///
    /// # Errors
    /// Returns an error if the peer matches the rules of no tenant, or of several tenants.
    pub fn judge(
        &self,
        side: Side,
        peer: &Peer,
        token: Option<&Holder>,
    ) -> Result<&Arc<str>, NoTenant> {
        let mut own = self.0.iter().filter(|tenant| {
            tenant
                .rules(side)
                .iter()
                .any(|rule| rule.holds(peer, token))
        });
        match (own.next(), own.next()) {
            (None, _) => Err(NoTenant::Unknown),
            (Some(tenant), None) => Ok(&tenant.name),
            (Some(one), Some(other)) => {
                let names = (Arc::clone(&one.name), Arc::clone(&other.name));
                Err(NoTenant::Several(names.0, names.1))
            }
        }
    }
}

impl TenantRules {
    fn rules(&self, side: Side) -> &[Rule] {
        match side {
            Side::Agent => &self.agents,
            Side::Client => &self.clients,
        }
    }
}

impl Rule {
    /// A rule without conditions.
    pub const ANYTHING: Self = Self {
        certificate: None,
        token: None,
        server_name: None,
        entrance: None,
    };

    /// Returns whether every peer with a certificate of the server's CA can match this rule by its own choice.
    fn proves_nothing(&self) -> bool {
        let is_on_socket = matches!(self.entrance, Some(Entrance::Socket(_)));
        self.certificate.is_none() && self.token.is_none() && !is_on_socket
    }

    fn holds(&self, peer: &Peer, token: Option<&Holder>) -> bool {
        self.entrance
            .as_ref()
            .is_none_or(|one| *one == peer.entrance)
            && self.server_name.as_ref().is_none_or(|pattern| {
                let name = peer.server_name.as_deref();
                name.is_some_and(|name| pattern.matches(name))
            })
            && self.certificate.as_ref().is_none_or(|patterns| {
                peer.subject.as_ref().is_some_and(|subject| {
                    let fields = [
                        &subject.organizations,
                        &subject.organizational_units,
                        &subject.common_names,
                        &subject.uris,
                    ];
                    patterns.iter().zip(fields).all(|(pattern, values)| {
                        pattern
                            .as_ref()
                            .is_none_or(|pattern| values.iter().any(|value| pattern.matches(value)))
                    })
                })
            })
            && self
                .token
                .as_ref()
                .is_none_or(|rule| token.is_some_and(|token| rule.holds(token)))
    }
}

impl TokenRule {
    fn holds(&self, token: &Holder) -> bool {
        let is = |want: &Option<String>, have| want.as_ref().is_none_or(|want| want == have);
        token.audiences.contains(&self.audience)
            && is(&self.namespace, &token.namespace)
            && is(&self.account, &token.account)
    }
}

#[cfg(test)]
mod tests;
