// SPDX-License-Identifier: Apache-2.0

//! Name, type, labels and help text of every metric. A test compares them with docs/metrics.md.

use prometheus::proto::MetricType;

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricType,
    /// The names of its labels, in the order of their values.
    pub labels: &'static [&'static str],
    /// The help text: one line.
    pub help: &'static str,
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    let kind = MetricType::COUNTER;
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    let kind = MetricType::GAUGE;
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    let kind = MetricType::HISTOGRAM;
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

/// All metrics, in the order in which they are served.
pub static ALL: [&Metric; 40] = [
    &BUILD_INFO,
    &START_TIME,
    &READY,
    &READY_CONDITION,
    &DEGRADED,
    &UNREADABLE,
    &DURATION,
    &FAILED_PASSES,
    &LAST_PASS,
    &LAST_SUCCESS,
    &INTERVAL,
    &REPAIRS,
    &ERRORS,
    &FAILING,
    &VIP_PRESENT,
    &LINK_UP,
    &LISTENER_UP,
    &SERVICE_INFO,
    &PACKETS,
    &BYTES,
    &DECISIONS,
    &TRANSLATIONS,
    &UNDECIDED,
    &GUARD_DROPS,
    &LINK_DECISIONS,
    &LINK_TRANSLATIONS,
    &LINK_UNDECIDED,
    &GUARD_LINK_INFO,
    &UPSTREAM_UNTRACKED,
    &UPSTREAM_LEARNING,
    &BACKEND_INFO,
    &BACKEND_REJECTED,
    &BACKEND_BREAKS,
    &MAP_ENTRIES,
    &MAP_MAX,
    &CONNTRACK_ENTRIES,
    &CONNTRACK_MAX,
    &CONNTRACK_DROPS,
    &CONNTRACK_EARLY_DROPS,
    &CONNTRACK_INSERT_FAILURES,
];

/// The version of the agent; always 1.
pub static BUILD_INFO: Metric = gauge(
    "proxy_agent_build_info",
    &["version", "arch"],
    "The version of the agent; always 1.",
);
/// When the agent started, in seconds since 1970.
pub static START_TIME: Metric = gauge(
    "proxy_agent_start_time_seconds",
    &[],
    "When the agent started, in seconds since 1970.",
);
/// Whether /readyz answers 200.
pub static READY: Metric = gauge("proxy_agent_ready", &[], "Whether /readyz answers 200.");
/// Whether a condition of /readyz holds.
pub static READY_CONDITION: Metric = gauge(
    "proxy_agent_ready_condition",
    &["condition"],
    "Whether a condition of /readyz holds.",
);
/// Whether --backend=auto found no usable backend: connections are tracked.
pub static DEGRADED: Metric = gauge(
    "proxy_agent_degraded",
    &[],
    "Whether --backend=auto found no usable backend: connections are tracked.",
);
/// Whether a source could not be read, so that its samples are missing.
pub static UNREADABLE: Metric = gauge(
    "proxy_agent_unreadable",
    &["source"],
    "Whether a source could not be read, so that its samples are missing.",
);
/// Duration of passes, by their cause.
pub static DURATION: Metric = histogram(
    "proxy_agent_reconcile_duration_seconds",
    &["cause"],
    "Duration of passes, by their cause.",
);
/// Passes with at least one failure.
pub static FAILED_PASSES: Metric = counter(
    "proxy_agent_reconcile_failures_total",
    &[],
    "Passes with at least one failure.",
);
/// When the last pass ended, in seconds since 1970.
pub static LAST_PASS: Metric = gauge(
    "proxy_agent_reconcile_last_timestamp_seconds",
    &[],
    "When the last pass ended, in seconds since 1970.",
);
/// When the last pass without failures ended, in seconds since 1970; 0 before the first.
pub static LAST_SUCCESS: Metric = gauge(
    "proxy_agent_reconcile_last_success_timestamp_seconds",
    &[],
    "When the last pass without failures ended, in seconds since 1970; 0 before the first.",
);
/// The time between two full resyncs.
pub static INTERVAL: Metric = gauge(
    "proxy_agent_sync_interval_seconds",
    &[],
    "The time between two full resyncs.",
);
/// Changes that repaired interference by others, by part of the node.
pub static REPAIRS: Metric = counter(
    "proxy_agent_repairs_total",
    &["part"],
    "Changes that repaired interference by others, by part of the node.",
);
/// Failed observations and operations, by part of the node.
pub static ERRORS: Metric = counter(
    "proxy_agent_errors_total",
    &["part"],
    "Failed observations and operations, by part of the node.",
);
/// Failures of the last pass, by part of the node.
pub static FAILING: Metric = gauge(
    "proxy_agent_failing",
    &["part"],
    "Failures of the last pass, by part of the node.",
);
/// Whether the last pass left the VIP usable on its link.
pub static VIP_PRESENT: Metric = gauge(
    "proxy_agent_vip_present",
    &["vip", "link"],
    "Whether the last pass left the VIP usable on its link.",
);
/// Whether the link of the VIPs was up after the last pass.
pub static LINK_UP: Metric = gauge(
    "proxy_agent_vip_link_up",
    &["link"],
    "Whether the link of the VIPs was up after the last pass.",
);
/// Whether a socket listens on the VIP with its port.
pub static LISTENER_UP: Metric = gauge(
    "proxy_agent_listener_up",
    &["vip"],
    "Whether a socket listens on the VIP with its port.",
);
/// A ClusterIP whose connections end on the proxy; always 1.
pub static SERVICE_INFO: Metric = gauge(
    "proxy_agent_service_info",
    &["cluster_ip", "vip"],
    "A ClusterIP whose connections end on the proxy; always 1.",
);
/// Untracked packets to the VIP and from it.
pub static PACKETS: Metric = counter(
    "proxy_agent_packets_total",
    &["vip", "direction"],
    "Untracked packets to the VIP and from it.",
);
/// Bytes of untracked packets, from the IP header on.
pub static BYTES: Metric = counter(
    "proxy_agent_bytes_total",
    &["vip", "direction"],
    "Bytes of untracked packets, from the IP header on.",
);
/// SYNs with a decision: their connections are untracked.
pub static DECISIONS: Metric = counter(
    "proxy_agent_decisions_total",
    &["vip"],
    "SYNs with a decision: their connections are untracked.",
);
/// SYNs and calls of connect(2) to a ClusterIP that ended on the proxy.
pub static TRANSLATIONS: Metric = counter(
    "proxy_agent_translations_total",
    &["vip"],
    "SYNs and calls of connect(2) to a ClusterIP that ended on the proxy.",
);
/// SYNs without a decision, left to conntrack, by reason.
pub static UNDECIDED: Metric = counter(
    "proxy_agent_undecided_total",
    &["vip", "reason"],
    "SYNs without a decision, left to conntrack, by reason.",
);
/// Packets for the VIP that were dropped, by cause.
pub static GUARD_DROPS: Metric = counter(
    "proxy_agent_guard_drops_total",
    &["vip", "cause"],
    "Packets for the VIP that were dropped, by cause.",
);
/// SYNs with a decision, by the link on which they arrived.
pub static LINK_DECISIONS: Metric = counter(
    "proxy_agent_link_decisions_total",
    &["vip", "link"],
    "SYNs with a decision, by the link on which they arrived.",
);
/// SYNs and calls of connect(2) to a ClusterIP that ended on the proxy, by link.
pub static LINK_TRANSLATIONS: Metric = counter(
    "proxy_agent_link_translations_total",
    &["vip", "link"],
    "SYNs and calls of connect(2) to a ClusterIP that ended on the proxy, by link.",
);
/// SYNs without a decision, left to conntrack, by link.
pub static LINK_UNDECIDED: Metric = counter(
    "proxy_agent_link_undecided_total",
    &["vip", "link"],
    "SYNs without a decision, left to conntrack, by link.",
);
/// A link on which packets for the VIPs are dropped, and the mechanism; always 1.
pub static GUARD_LINK_INFO: Metric = gauge(
    "proxy_agent_guard_link_info",
    &["link", "how"],
    "A link on which packets for the VIPs are dropped, and the mechanism; always 1.",
);
/// Whether the proxy's own new connections to an endpoint are untracked, with the reason if not.
pub static UPSTREAM_UNTRACKED: Metric = gauge(
    "proxy_agent_upstream_untracked",
    &["endpoint", "reason"],
    "Whether the proxy's own new connections to an endpoint of --proxy-upstream are untracked, with the reason if not.",
);
/// Whether endpoints are learned from the proxy's connections, with the reason if not.
pub static UPSTREAM_LEARNING: Metric = gauge(
    "proxy_agent_upstream_learning",
    &["reason"],
    "With --proxy-upstream=auto: whether endpoints are learned from the proxy's connections, with the reason if not.",
);
/// The backend in use; always 1.
pub static BACKEND_INFO: Metric = gauge(
    "proxy_agent_backend_info",
    &["asked", "backend", "detail"],
    "The backend in use; always 1.",
);
/// A backend that is preferred over the one in use but cannot be used; always 1.
pub static BACKEND_REJECTED: Metric = gauge(
    "proxy_agent_backend_rejected",
    &["backend"],
    "A backend that is preferred over the one in use but cannot be used; always 1.",
);
/// A DNAT to the VIP whose connections the stateless rules break; always 1.
pub static BACKEND_BREAKS: Metric = gauge(
    "proxy_agent_backend_breaks",
    &["by"],
    "A DNAT to the VIP whose connections the stateless rules break; always 1.",
);
/// Entries of a map of the eBPF programs.
pub static MAP_ENTRIES: Metric = gauge(
    "proxy_agent_bpf_map_entries",
    &["map"],
    "Entries of a map of the eBPF programs.",
);
/// Capacity of a map of the eBPF programs.
pub static MAP_MAX: Metric = gauge(
    "proxy_agent_bpf_map_max_entries",
    &["map"],
    "Capacity of a map of the eBPF programs.",
);
/// Entries of the conntrack table.
pub static CONNTRACK_ENTRIES: Metric = gauge(
    "proxy_agent_conntrack_entries",
    &[],
    "Entries of the conntrack table.",
);
/// Capacity of the conntrack table.
pub static CONNTRACK_MAX: Metric = gauge(
    "proxy_agent_conntrack_max_entries",
    &[],
    "Capacity of the conntrack table.",
);
/// Packets that were dropped because the conntrack table was full.
pub static CONNTRACK_DROPS: Metric = counter(
    "proxy_agent_conntrack_drops_total",
    &[],
    "Packets that were dropped because the conntrack table was full.",
);
/// Conntrack entries that were evicted because the table was full.
pub static CONNTRACK_EARLY_DROPS: Metric = counter(
    "proxy_agent_conntrack_early_drops_total",
    &[],
    "Conntrack entries that were evicted because the table was full.",
);
/// Conntrack entries that could not be added.
pub static CONNTRACK_INSERT_FAILURES: Metric = counter(
    "proxy_agent_conntrack_insert_failures_total",
    &[],
    "Conntrack entries that could not be added.",
);
