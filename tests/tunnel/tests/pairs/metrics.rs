// SPDX-License-Identifier: Apache-2.0

//! After the same requests, every metric family of upstream's server and agent exists in ours too: name, type, label
//! names and buckets. Label values may differ: between two of our programs, a packet of its own reports a closed
//! sending side.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use tests::{cmd, http};
use tunnel_tests::program::{Make, Part, lacks_peers};
use tunnel_tests::tunnel::{AGENT_HEALTH, Example, PATIENCE, SERVER_HEALTH, Tunnel};

const PREFIX: &str = "konnectivity_network_proxy_";

/// Families that upstream's server has for gRPC clients and ours only for HTTP CONNECT clients: our gRPC transport
/// accepts packets only when it can send them, so no write takes long.
const NOT_OF_GRPC: [&str; 1] =
    ["konnectivity_network_proxy_server_frontend_write_duration_seconds"];

/// Types by family, and samples without their values.
type Families = (BTreeMap<String, String>, BTreeSet<String>);

fn families(text: &str) -> Families {
    let (mut types, mut samples) = (BTreeMap::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|line| line.split_once(' '))
        {
            types.insert(name.to_owned(), kind.to_owned());
        } else if let Some((sample, _)) = line.rsplit_once(' ') {
            samples.insert(normalised(sample));
        }
    }
    types.retain(|name, _| name.starts_with(PREFIX));
    samples.retain(|name| name.starts_with(PREFIX));
    (types, samples)
}

/// Returns a sample with the names of its labels. A bucket keeps its bound, which Go writes as 1e-06 where Rust writes
/// 0.000001.
fn normalised(sample: &str) -> String {
    let Some((name, labels)) = sample.split_once('{') else {
        return sample.to_owned();
    };
    let labels = labels.trim_end_matches('}').split(',').map(|label| {
        let (label, value) = label.split_once('=').unwrap_or((label, ""));
        let bound = value.trim_matches('"').parse::<f64>();
        match bound {
            Ok(bound) if label == "le" => format!("le={bound}"),
            _ => label.to_owned(),
        }
    });
    format!("{name}{{{}}}", labels.collect::<Vec<_>>().join(","))
}

/// Returns the metrics of server and agent after a request.
fn after_a_request(example: Example, make: Make) -> Result<[Families; 2]> {
    let tunnel = Tunnel::start(example, make, make)?;
    let client = Part::TestClient.of(Make::Upstream)?;
    tunnel.request(&client, &example.client())?;
    let read = |address| -> Result<String> {
        let answer = http::ask(tunnel.netns(), address, "/metrics", &[])?;
        ensure!(answer.code == 200, "{answer:?}");
        Ok(answer.body)
    };
    // The agent receives the end of the connection a moment after the client.
    let closed = r#"packet_type="CLOSE_RSP""#;
    cmd::wait_until(PATIENCE, "the connection's end", || {
        Ok(read(AGENT_HEALTH)?.contains(closed).then_some(()))
    })?;
    Ok([
        families(&read(SERVER_HEALTH)?),
        families(&read(AGENT_HEALTH)?),
    ])
}

fn compare(example: Example) -> Result<()> {
    if lacks_peers(&format!("tunnel-metrics-{example:?}"))? {
        return Ok(());
    }
    let upstreams = after_a_request(example, Make::Upstream)?;
    let ours = after_a_request(example, Make::Ours)?;
    for ((types, samples), (our_types, our_samples)) in upstreams.iter().zip(&ours) {
        ensure!(!samples.is_empty(), "upstream has no metrics");
        let is_compared = |name: &str| {
            let is_left_out = NOT_OF_GRPC.iter().any(|family| name.starts_with(family));
            example == Example::HttpConnect || !is_left_out
        };
        for (name, kind) in types.iter().filter(|(name, _)| is_compared(name)) {
            let own = our_types.get(name);
            let own = own.with_context(|| format!("{name} is missing in {our_types:#?}"))?;
            ensure!(own == kind, "{name} is a {own}, upstream's a {kind}");
        }
        let missing: Vec<_> = samples
            .difference(our_samples)
            .filter(|name| is_compared(name))
            .collect();
        ensure!(
            missing.is_empty(),
            "missing: {missing:#?} in {our_samples:#?}"
        );
    }
    Ok(())
}

#[test]
fn of_a_grpc_client() -> Result<()> {
    compare(Example::Grpc)
}

#[test]
fn of_an_http_connect_client() -> Result<()> {
    compare(Example::HttpConnect)
}
