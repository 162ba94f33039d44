// SPDX-License-Identifier: Apache-2.0

//! Prometheus scrapes a target with TLS through the tunnel, by `proxy_url` with HTTP CONNECT and mTLS.

use anyhow::{Result, ensure};
use tests::http;
use tunnel_tests::program::{Make, lacks_peers};
use tunnel_tests::prometheus;
use tunnel_tests::tunnel::{Example, SERVER_HEALTH, Tunnel};

fn scrapes(server: Make, agent: Make) -> Result<()> {
    let mut tunnel = Tunnel::start(Example::HttpConnect, server, agent)?;
    prometheus::start(&mut tunnel)?;
    let found = prometheus::scraped(&tunnel)?;
    ensure!(found["sysname"] == "Linux", "{found}");
    // The scrape used the tunnel, because Prometheus keeps its connection open.
    let metrics = http::ask(tunnel.netns(), SERVER_HEALTH, "/metrics", &[])?.body;
    let open = "konnectivity_network_proxy_server_http_connections 1\n";
    ensure!(metrics.contains(open), "{metrics}");
    Ok(())
}

#[test]
fn through_our_server_and_agent() -> Result<()> {
    scrapes(Make::Ours, Make::Ours)
}

#[test]
fn through_upstreams_server_and_agent() -> Result<()> {
    if lacks_peers("tunnel-prometheus-upstream")? {
        return Ok(());
    }
    scrapes(Make::Upstream, Make::Upstream)
}
