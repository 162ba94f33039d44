// SPDX-License-Identifier: Apache-2.0

//! The server's families about tenants. The values of the label `tenant` are the names in the rules; the series of a
//! tenant are removed together with the tenant. A server with one tenant has none of these families.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Maker, NONE};

/// The metric families.
#[derive(Debug)]
pub struct Tenants {
    count: IntGaugeVec,
    reloads: IntCounterVec,
    refusals: IntCounterVec,
    agents: IntGaugeVec,
    tunnels: IntGaugeVec,
    buffered: IntGaugeVec,
    dials: IntCounterVec,
    limited: IntCounterVec,
}

/// The series of one tenant.
#[derive(Debug)]
pub struct TenantMetrics {
    /// The number of agent streams.
    pub agents: IntGauge,
    /// The number of tunnels.
    pub tunnels: IntGauge,
    /// The number of bytes that the tenant's tunnels hold.
    pub buffered: IntGauge,
    /// The number of dials.
    pub dials: IntCounter,
    limited: IntCounterVec,
    name: String,
}

impl TenantMetrics {
    /// Returns the counter of refusals because of this limit.
    #[must_use]
    pub fn limited(&self, limit: &str) -> IntCounter {
        self.limited.with_label_values(&[self.name.as_str(), limit])
    }
}

/// The values of the label `limit`.
const LIMITS: [&str; 5] = ["agents", "connections", "tunnels", "dials", "buffered"];

/// The values of the label `result`: the result of reloading a changed file.
const RESULTS: [&str; 2] = ["used", "refused"];

impl Tenants {
    pub(super) fn new(maker: &Maker) -> Self {
        Self {
            count: maker.gauges("tenants", "Tenants in the rules that are in force.", &NONE),
            reloads: maker.counters(
                "tenants_config_reloads_total",
                "Changes of the file of --tenants-config, by what became of them.",
                &["result"],
            ),
            refusals: maker.counters(
                "tenant_refusals_total",
                "Agents and clients that were refused because they belong to no tenant, by reason.",
                &["peer", "reason"],
            ),
            agents: maker.gauges(
                "tenant_agents",
                "Streams of a tenant's agents.",
                &["tenant"],
            ),
            tunnels: maker.gauges(
                "tenant_tunnels",
                "A tenant's tunnels, dialled or established.",
                &["tenant"],
            ),
            buffered: maker.gauges(
                "tenant_buffered_bytes",
                "Bytes received from a tenant's agents that clients have not yet taken.",
                &["tenant"],
            ),
            dials: maker.counters("tenant_dials_total", "A tenant's dials.", &["tenant"]),
            limited: maker.counters(
                "tenant_limited_total",
                "Agents, dials and data of a tenant that a limit has refused, by limit.",
                &["tenant", "limit"],
            ),
        }
    }

    /// Returns the series of a tenant.
    #[must_use]
    pub fn of(&self, name: &str) -> TenantMetrics {
        let label = [name];
        TenantMetrics {
            agents: self.agents.with_label_values(&label),
            tunnels: self.tunnels.with_label_values(&label),
            buffered: self.buffered.with_label_values(&label),
            dials: self.dials.with_label_values(&label),
            limited: self.limited.clone(),
            name: name.to_owned(),
        }
    }

    /// Removes the series of a removed tenant.
    pub fn forget(&self, name: &str) {
        let label = [name];
        // The removal fails for a series that does not exist because it was never counted.
        let _ = self.agents.remove_label_values(&label);
        let _ = self.tunnels.remove_label_values(&label);
        let _ = self.buffered.remove_label_values(&label);
        let _ = self.dials.remove_label_values(&label);
        for limit in LIMITS {
            let _ = self.limited.remove_label_values(&[name, limit]);
        }
    }

    /// Sets the number of tenants.
    pub fn count(&self, tenants: usize) {
        let tenants = i64::try_from(tenants).unwrap_or(i64::MAX);
        self.count.with_label_values(&NONE).set(tenants);
        // Created before the first change, so that the first increase is visible.
        for result in RESULTS {
            let _ = self.reloads.with_label_values(&[result]);
        }
    }

    /// Counts a changed file; `is_used` is true if its rules are now in force.
    pub fn reloaded(&self, is_used: bool) {
        let [used, refused] = RESULTS;
        let result = if is_used { used } else { refused };
        self.reloads.with_label_values(&[result]).inc();
    }

    /// Counts a refused peer.
    pub fn refused(&self, peer: &str, reason: &str) {
        self.refusals.with_label_values(&[peer, reason]).inc();
    }
}
