// SPDX-License-Identifier: Apache-2.0

//! Every metric that is served: name, type, labels and help. docs/metrics.md explains them; a test
//! holds both to each other.

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
    /// What it is, in one line.
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

/// All of them, in the order in which they are served.
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
/// Whether --backend=auto has found no backend that works: connections are tracked.
pub static DEGRADED: Metric = gauge(
    "proxy_agent_degraded",
    &[],
    "Whether --backend=auto has found no backend that works: connections are tracked.",
);
/// Whether something could not be read and is missing from this answer.
pub static UNREADABLE: Metric = gauge(
    "proxy_agent_unreadable",
    &["source"],
    "Whether something could not be read and is missing from this answer.",
);
/// How long passes took, by why they were due.
pub static DURATION: Metric = histogram(
    "proxy_agent_reconcile_duration_seconds",
    &["cause"],
    "How long passes took, by why they were due.",
);
/// Passes that could not do something.
pub static FAILED_PASSES: Metric = counter(
    "proxy_agent_reconcile_failures_total",
    &[],
    "Passes that could not do something.",
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
/// Changes that somebody else made necessary, by part of the node.
pub static REPAIRS: Metric = counter(
    "proxy_agent_repairs_total",
    &["part"],
    "Changes that somebody else made necessary, by part of the node.",
);
/// What passes could not do, by part of the node.
pub static ERRORS: Metric = counter(
    "proxy_agent_errors_total",
    &["part"],
    "What passes could not do, by part of the node.",
);
/// Things that the last pass could not do, by part of the node.
pub static FAILING: Metric = gauge(
    "proxy_agent_failing",
    &["part"],
    "Things that the last pass could not do, by part of the node.",
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
/// SYNs that were decided: their connections are untracked.
pub static DECISIONS: Metric = counter(
    "proxy_agent_decisions_total",
    &["vip"],
    "SYNs that were decided: their connections are untracked.",
);
/// SYNs and calls of connect(2) to a ClusterIP that ended on the proxy.
pub static TRANSLATIONS: Metric = counter(
    "proxy_agent_translations_total",
    &["vip"],
    "SYNs and calls of connect(2) to a ClusterIP that ended on the proxy.",
);
/// SYNs that were left to conntrack, by reason.
pub static UNDECIDED: Metric = counter(
    "proxy_agent_undecided_total",
    &["vip", "reason"],
    "SYNs that were left to conntrack, by reason.",
);
/// Packets for the VIP that were dropped, by cause.
pub static GUARD_DROPS: Metric = counter(
    "proxy_agent_guard_drops_total",
    &["vip", "cause"],
    "Packets for the VIP that were dropped, by cause.",
);
/// SYNs that were decided, by the link that saw them first.
pub static LINK_DECISIONS: Metric = counter(
    "proxy_agent_link_decisions_total",
    &["vip", "link"],
    "SYNs that were decided, by the link that saw them first.",
);
/// SYNs and calls of connect(2) to a ClusterIP that ended on the proxy, by link.
pub static LINK_TRANSLATIONS: Metric = counter(
    "proxy_agent_link_translations_total",
    &["vip", "link"],
    "SYNs and calls of connect(2) to a ClusterIP that ended on the proxy, by link.",
);
/// SYNs that were left to conntrack, by link.
pub static LINK_UNDECIDED: Metric = counter(
    "proxy_agent_link_undecided_total",
    &["vip", "link"],
    "SYNs that were left to conntrack, by link.",
);
/// A link on which packets for the VIPs are dropped, and by what; always 1.
pub static GUARD_LINK_INFO: Metric = gauge(
    "proxy_agent_guard_link_info",
    &["link", "how"],
    "A link on which packets for the VIPs are dropped, and by what; always 1.",
);
/// Whether the proxy's own new connections to an endpoint are untracked; the label says why not.
pub static UPSTREAM_UNTRACKED: Metric = gauge(
    "proxy_agent_upstream_untracked",
    &["endpoint", "reason"],
    "Whether the proxy's own new connections to an endpoint of --proxy-upstream are untracked, and why not.",
);
/// Whether endpoints are learned from the proxy's connections; the label says why not.
pub static UPSTREAM_LEARNING: Metric = gauge(
    "proxy_agent_upstream_learning",
    &["reason"],
    "With --proxy-upstream=auto: whether endpoints are learned from the proxy's connections, and why not.",
);
/// The backend in use; always 1.
pub static BACKEND_INFO: Metric = gauge(
    "proxy_agent_backend_info",
    &["asked", "backend", "detail"],
    "The backend in use; always 1.",
);
/// A backend that comes before the one in use and cannot be used; always 1.
pub static BACKEND_REJECTED: Metric = gauge(
    "proxy_agent_backend_rejected",
    &["backend"],
    "A backend that comes before the one in use and cannot be used; always 1.",
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
/// The most entries that a map of the eBPF programs takes.
pub static MAP_MAX: Metric = gauge(
    "proxy_agent_bpf_map_max_entries",
    &["map"],
    "The most entries that a map of the eBPF programs takes.",
);
/// Entries of the conntrack table.
pub static CONNTRACK_ENTRIES: Metric = gauge(
    "proxy_agent_conntrack_entries",
    &[],
    "Entries of the conntrack table.",
);
/// The most entries that the conntrack table takes.
pub static CONNTRACK_MAX: Metric = gauge(
    "proxy_agent_conntrack_max_entries",
    &[],
    "The most entries that the conntrack table takes.",
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
