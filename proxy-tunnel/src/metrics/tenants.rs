// SPDX-License-Identifier: Apache-2.0

//! The server's families about tenants. Values of the label `tenant` are the names in the rules, and go with them;
//! a server with one tenant has none of these families.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Maker, NONE};

/// The families.
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

/// The lines of one tenant.
#[derive(Debug)]
pub struct TenantMetrics {
    /// Streams of its agents.
    pub agents: IntGauge,
    /// Its tunnels.
    pub tunnels: IntGauge,
    /// Bytes that it holds.
    pub buffered: IntGauge,
    /// Its dials.
    pub dials: IntCounter,
    limited: IntCounterVec,
    name: String,
}

impl TenantMetrics {
    /// Refusals by this limit.
    #[must_use]
    pub fn limited(&self, limit: &str) -> IntCounter {
        self.limited.with_label_values(&[self.name.as_str(), limit])
    }
}

/// The limits, as the label `limit` has them.
const LIMITS: [&str; 5] = ["agents", "connections", "tunnels", "dials", "buffered"];

/// The outcome of a changed file, as the label `result`.
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

    /// The lines of a tenant.
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

    /// A tenant is gone, and its lines with it.
    pub fn forget(&self, name: &str) {
        let label = [name];
        // A line that was never counted is not there.
        let _ = self.agents.remove_label_values(&label);
        let _ = self.tunnels.remove_label_values(&label);
        let _ = self.buffered.remove_label_values(&label);
        let _ = self.dials.remove_label_values(&label);
        for limit in LIMITS {
            let _ = self.limited.remove_label_values(&[name, limit]);
        }
    }

    /// How many tenants there are.
    pub fn count(&self, tenants: usize) {
        let tenants = i64::try_from(tenants).unwrap_or(i64::MAX);
        self.count.with_label_values(&NONE).set(tenants);
        // There before the first change, so that an increase can be seen.
        for result in RESULTS {
            let _ = self.reloads.with_label_values(&[result]);
        }
    }

    /// The file has changed; true: its rules are in force.
    pub fn reloaded(&self, is_used: bool) {
        let [used, refused] = RESULTS;
        let result = if is_used { used } else { refused };
        self.reloads.with_label_values(&[result]).inc();
    }

    /// A peer was refused.
    pub fn refused(&self, peer: &str, reason: &str) {
        self.refusals.with_label_values(&[peer, reason]).inc();
    }
}
