// SPDX-License-Identifier: Apache-2.0

//! Metric families with types, labels and buckets: facts §4. Where upstream's programs are built, `tests/tunnel`
//! compares their metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use proxy_tunnel::client::Mode;
use proxy_tunnel::cluster::counting::Counter;
use proxy_tunnel::cluster::lease;
use proxy_tunnel::cluster::publishing::{Publisher, WATCHED};
use proxy_tunnel::metrics::agent::Direction;
use proxy_tunnel::metrics::packets::Segment;
use tonic::Code;

use super::peers::Peer;
use super::rig::{Options, Rig, Target, round_trip, until};
use super::stub::Stub;

/// The default buckets of Prometheus: 5 ms to 10 s.
const LATENCY: &str = "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10";
const DIAL: &str = "0.000001 0.00001 0.0001 0.005 0.025 0.1 0.5 2.5 12.5";
const LIFETIME: &str = "1 5 15 30 60 300 900 1800 3600 14400 43200 86400";

/// The name, type, labels and, for histograms, buckets.
type Family = (&'static str, &'static str, &'static str, &'static str);

const SERVER: [Family; 21] = [
    ("dial_duration_seconds", "histogram", "", DIAL),
    ("frontend_write_duration_seconds", "histogram", "", DIAL),
    ("connection_duration_seconds", "histogram", "", LIFETIME),
    ("grpc_connections", "gauge", "service_method", ""),
    ("http_connections", "gauge", "", ""),
    ("ready_backend_connections", "gauge", "", ""),
    ("ready_backends", "gauge", "proxy_strategy", ""),
    ("pending_backend_dials", "gauge", "", ""),
    ("established_connections", "gauge", "", ""),
    ("full_receive_channels", "gauge", "service_method", ""),
    ("dial_failure_count", "counter", "reason", ""),
    ("stream_packets_total", "counter", "packet_type segment", ""),
    (
        "stream_errors_total",
        "counter",
        "code packet_type segment",
        "",
    ),
    ("culled_leases_count", "counter", "", ""),
    ("lease_list_total", "counter", "http_status_code reason", ""),
    (
        "lease_delete_total",
        "counter",
        "http_status_code reason",
        "",
    ),
    (
        "lease_list_latency_seconds",
        "histogram",
        "http_status_code",
        LATENCY,
    ),
    (
        "lease_delete_latency_seconds",
        "histogram",
        "http_status_code",
        LATENCY,
    ),
    ("full_frontend_write_queues", "gauge", "", ""),
    ("blocked_frontend_write_channels", "gauge", "", ""),
    ("buffered_bytes", "gauge", "", ""),
];

const AGENT: [Family; 10] = [
    (
        "dial_duration_seconds",
        "histogram",
        "",
        "0.005 0.025 0.1 0.5 2.5 10 30",
    ),
    ("endpoint_dial_failure_total", "counter", "reason", ""),
    (
        "server_connection_failure_count",
        "counter",
        "direction",
        "",
    ),
    ("open_server_connections", "gauge", "", ""),
    ("open_endpoint_connections", "gauge", "", ""),
    ("known_server_count", "gauge", "", ""),
    (
        "lease_lists_total",
        "counter",
        "http_response_code reason",
        "",
    ),
    (
        "lease_list_latency_seconds",
        "histogram",
        "http_response_code",
        LATENCY,
    ),
    ("stream_packets_total", "counter", "packet_type segment", ""),
    (
        "stream_errors_total",
        "counter",
        "code packet_type segment",
        "",
    ),
];

/// Returns type, labels and buckets of a family in a text.
fn family(text: &str, name: &str) -> (String, String, String) {
    let typed = format!("# TYPE {name} ");
    let kind = text.lines().find_map(|line| line.strip_prefix(&typed));
    let kind = kind.unwrap_or_else(|| panic!("no {name}: {text}"));
    assert!(
        text.contains(&format!("# HELP {name} ")),
        "{name} has no help"
    );
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut labels = BTreeMap::new();
    for sample in samples {
        let (full, pairs) = sample.split_once('{').unwrap_or((sample, ""));
        let full = full.split(' ').next().unwrap();
        if full != name && (kind != "histogram" || full != format!("{name}_bucket")) {
            continue;
        }
        for pair in pairs
            .split_once('}')
            .map_or("", |(pairs, _)| pairs)
            .split(',')
        {
            if let Some((label, value)) = pair.split_once('=') {
                let values: &mut Vec<String> = labels.entry(label.to_owned()).or_default();
                let value = value.trim_matches('"').to_owned();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
    }
    let mut buckets = labels.remove("le").unwrap_or_default();
    assert_eq!(
        buckets.pop().as_deref(),
        (kind == "histogram").then_some("+Inf")
    );
    let names: Vec<String> = labels.into_keys().collect();
    (kind.to_owned(), names.join(" "), buckets.join(" "))
}

fn compare(prefix: &str, families: &[Family], text: &str) {
    for (name, kind, labels, buckets) in families {
        let found = family(text, &format!("konnectivity_network_proxy_{prefix}_{name}"));
        let want = (kind.to_string(), labels.to_string(), buckets.to_string());
        assert_eq!(found, want, "{name}");
    }
}

#[tokio::test]
async fn families_have_upstreams_types_labels_and_buckets() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let echo = Target::echo().await;
    round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"x").await;
    rig.dialer().dial("127.0.0.1:1").await.unwrap_err();
    rig.until_counted("established_connections 0").await;
    agent.until_counted("open_endpoint_connections 0").await;
    let stub = Stub::new().await;
    let labels = lease::parse_labels("k8s-app=konnectivity-server").unwrap();
    let metrics = Arc::clone(&rig.server.metrics);
    let client = stub.client().await;
    let publisher = Publisher::new(client.clone(), "kube-system", "a".into(), labels, metrics);
    stub.put("old", 100);
    let now = Instant::now();
    publisher.delete_expired(now).await;
    publisher.delete_expired(now + WATCHED).await;
    let selector = "k8s-app=konnectivity-server".to_owned();
    let metrics = Arc::clone(&agent.shared.metrics);
    let counter = Counter::new(client, "kube-system", selector, metrics, Arc::default());
    let counting = tokio::spawn(counter.run());
    until("a list", || agent.metrics().contains("lease_lists_total{")).await;
    counting.abort();
    // A stream of each kind that fails.
    Peer::accepted_agent(&rig).await.vanish();
    until("an error", || {
        rig.metrics().contains("stream_errors_total{")
    })
    .await;
    let packets = &agent.shared.metrics.packets;
    packets.receive_error(Segment::ToAgent, Code::Unavailable);
    agent.shared.metrics.server_failed(Direction::FromServer);
    compare("server", &SERVER, &rig.metrics());
    compare("agent", &AGENT, &agent.metrics());
    let help = "# HELP konnectivity_network_proxy_server_dial_failure_count Number of dial failures observed. Multiple \
                failures can occur for a single dial request.\n";
    assert!(rig.metrics().contains(help));
}
