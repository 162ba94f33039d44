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

/// Declares each metric with its type, name, labels and help text, which is its documentation too, and the list of them.
macro_rules! metrics {
    ($($metric:ident: $kind:ident $name:literal [$($label:literal),*], $help:literal;)+) => {
        /// All metrics, in the order in which they are served.
        pub static ALL: &[&Metric] = &[$(&$metric),+];

        $(
            #[doc = $help]
            pub static $metric: Metric = Metric {
                name: $name,
                kind: MetricType::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )+
    };
}

metrics! {
    BUILD_INFO: GAUGE "proxy_agent_build_info" ["version", "arch"],
        "The version of the agent; always 1.";
    START_TIME: GAUGE "proxy_agent_start_time_seconds" [],
        "Start time of the agent, in seconds since 1970.";
    READY: GAUGE "proxy_agent_ready" [],
        "Whether /readyz answers 200.";
    READY_CONDITION: GAUGE "proxy_agent_ready_condition" ["condition"],
        "Whether a condition of /readyz holds.";
    DEGRADED: GAUGE "proxy_agent_degraded" [],
        "Whether --backend=auto found no usable backend: connections are tracked.";
    UNREADABLE: GAUGE "proxy_agent_unreadable" ["source"],
        "Whether a source of samples could not be read; its samples are missing then.";
    DURATION: HISTOGRAM "proxy_agent_reconcile_duration_seconds" ["cause"],
        "Duration of passes, by cause.";
    FAILED_PASSES: COUNTER "proxy_agent_reconcile_failures_total" [],
        "Passes with at least one failure.";
    LAST_PASS: GAUGE "proxy_agent_reconcile_last_timestamp_seconds" [],
        "End of the last pass, in seconds since 1970.";
    LAST_SUCCESS: GAUGE "proxy_agent_reconcile_last_success_timestamp_seconds" [],
        "End of the last pass without failures, in seconds since 1970; 0 before the first.";
    INTERVAL: GAUGE "proxy_agent_sync_interval_seconds" [],
        "Interval of full resyncs, in seconds.";
    REPAIRS: COUNTER "proxy_agent_repairs_total" ["part"],
        "Changes that repaired interference by other programs, by part of the node.";
    ERRORS: COUNTER "proxy_agent_errors_total" ["part"],
        "Failed observations and operations, by part of the node.";
    FAILING: GAUGE "proxy_agent_failing" ["part"],
        "Failures of the last pass, by part of the node.";
    VIP_PRESENT: GAUGE "proxy_agent_vip_present" ["vip", "link"],
        "Whether the VIP was usable on its link after the last pass.";
    LINK_UP: GAUGE "proxy_agent_vip_link_up" ["link"],
        "Whether the link of the VIPs was up after the last pass.";
    LISTENER_UP: GAUGE "proxy_agent_listener_up" ["vip"],
        "Whether a socket listens on the VIP and port.";
    SERVICE_INFO: GAUGE "proxy_agent_service_info" ["cluster_ip", "vip"],
        "A ClusterIP whose connections end on the proxy; always 1.";
    PACKETS: COUNTER "proxy_agent_packets_total" ["vip", "direction"],
        "Untracked packets to and from the VIP.";
    BYTES: COUNTER "proxy_agent_bytes_total" ["vip", "direction"],
        "Bytes of untracked packets, from the IP header on.";
    DECISIONS: COUNTER "proxy_agent_decisions_total" ["vip"],
        "SYNs with a decision: their connections are untracked.";
    TRANSLATIONS: COUNTER "proxy_agent_translations_total" ["vip"],
        "SYNs and connect(2) calls to a ClusterIP whose connections end on the proxy.";
    UNDECIDED: COUNTER "proxy_agent_undecided_total" ["vip", "reason"],
        "SYNs without a decision, left to conntrack, by reason.";
    GUARD_DROPS: COUNTER "proxy_agent_guard_drops_total" ["vip", "cause"],
        "Dropped packets to the VIP, by cause.";
    LINK_DECISIONS: COUNTER "proxy_agent_link_decisions_total" ["vip", "link"],
        "SYNs with a decision, by the link on which they arrived.";
    LINK_TRANSLATIONS: COUNTER "proxy_agent_link_translations_total" ["vip", "link"],
        "SYNs and connect(2) calls to a ClusterIP whose connections end on the proxy, by link.";
    LINK_UNDECIDED: COUNTER "proxy_agent_link_undecided_total" ["vip", "link"],
        "SYNs without a decision, left to conntrack, by link.";
    GUARD_LINK_INFO: GAUGE "proxy_agent_guard_link_info" ["link", "how"],
        "A link on which packets for the VIPs are dropped, and the mechanism; always 1.";
    UPSTREAM_UNTRACKED: GAUGE "proxy_agent_upstream_untracked" ["endpoint", "reason"],
        "Whether the proxy's own new connections to an endpoint of --proxy-upstream are untracked, with the reason if not.";
    UPSTREAM_LEARNING: GAUGE "proxy_agent_upstream_learning" ["reason"],
        "With --proxy-upstream=auto: whether endpoints are learned from the proxy's connections, with the reason if not.";
    BACKEND_INFO: GAUGE "proxy_agent_backend_info" ["asked", "backend", "detail"],
        "The backend in use; always 1.";
    BACKEND_REJECTED: GAUGE "proxy_agent_backend_rejected" ["backend"],
        "A backend that is preferred over the one in use but cannot be used; always 1.";
    BACKEND_BREAKS: GAUGE "proxy_agent_backend_breaks" ["by"],
        "A DNAT to the VIP whose connections the stateless rules break; always 1.";
    MAP_ENTRIES: GAUGE "proxy_agent_bpf_map_entries" ["map"],
        "Entries of a map of the eBPF programs.";
    MAP_MAX: GAUGE "proxy_agent_bpf_map_max_entries" ["map"],
        "Capacity of a map of the eBPF programs.";
    CONNTRACK_ENTRIES: GAUGE "proxy_agent_conntrack_entries" [],
        "Entries of the conntrack table.";
    CONNTRACK_MAX: GAUGE "proxy_agent_conntrack_max_entries" [],
        "Capacity of the conntrack table.";
    CONNTRACK_DROPS: COUNTER "proxy_agent_conntrack_drops_total" [],
        "Packets dropped because the conntrack table was full.";
    CONNTRACK_EARLY_DROPS: COUNTER "proxy_agent_conntrack_early_drops_total" [],
        "Conntrack entries evicted because the table was full.";
    CONNTRACK_INSERT_FAILURES: COUNTER "proxy_agent_conntrack_insert_failures_total" [],
        "Conntrack entries that could not be added.";
}
