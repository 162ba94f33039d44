// SPDX-License-Identifier: Apache-2.0

//! Runs Prometheus, which scrapes a node exporter with TLS through the tunnel: `proxy_url` with HTTP CONNECT and mTLS.
//! Both are Debian packages. Tests with other targets use [`serve`] and [`query`].
//!
//! Go uses one TLS configuration for the proxy and for the target behind it. Thus the file of CAs contains both CAs,
//! and the same client certificate is sent to both.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{cmd, http};

use crate::tunnel::{PATIENCE, Tunnel};

/// The address that Prometheus listens on.
const ADDRESS: &str = "127.0.0.1:9090";

/// The target's address, as Prometheus and the agent use it.
const TARGET: &str = "localhost:9100";

/// The job's settings. Paths are relative to the configuration file.
pub const CONFIGURATION: &str = "\
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: node
    scheme: https
    proxy_url: https://127.0.0.1:8090
    tls_config:
      ca_file: certs/both-ca.crt
      cert_file: certs/frontend/issued/proxy-client.crt
      key_file: certs/frontend/private/proxy-client.key
    static_configs:
      - targets: [localhost:9100]
";

/// The settings of the node exporter: a certificate of the agents' CA, because the target is on the agents' side.
const EXPORTER: &str = "\
tls_server_config:
  cert_file: certs/agent/issued/proxy-frontend.crt
  key_file: certs/agent/private/proxy-frontend.key
";

/// Starts a node exporter and a Prometheus that scrapes it through the tunnel's HTTP CONNECT frontend.
///
/// # Errors
/// Returns an error if one of them is not installed, or if Prometheus does not become ready.
pub fn start(tunnel: &mut Tunnel) -> Result<()> {
    let write = |name: &str, text: &str| {
        fs::write(tunnel.dir().join(name), text).with_context(|| format!("writing {name}"))
    };
    write("exporter.yml", EXPORTER)?;
    let authority =
        |group: &str| fs::read_to_string(tunnel.dir().join(format!("certs/{group}/issued/ca.crt")));
    let both = authority("frontend")? + &authority("agent")?;
    write("certs/both-ca.crt", &both)?;
    tunnel.spawn(
        "node exporter",
        Path::new("prometheus-node-exporter"),
        &[
            "--web.listen-address=127.0.0.1:9100",
            "--web.config.file=exporter.yml",
            // This collector works on every machine.
            "--collector.disable-defaults",
            "--collector.uname",
        ],
    )?;
    serve(tunnel, CONFIGURATION)
}

/// Starts a Prometheus with this configuration.
///
/// # Errors
/// Returns an error if Prometheus is not installed, or does not become ready.
pub fn serve(tunnel: &mut Tunnel, configuration: &str) -> Result<()> {
    let path = tunnel.dir().join("prometheus.yml");
    fs::write(&path, configuration).with_context(|| format!("writing {}", path.display()))?;
    tunnel.spawn(
        "prometheus",
        Path::new("prometheus"),
        &[
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=prometheus-data",
            "--web.listen-address=127.0.0.1:9090",
        ],
    )?;
    tunnel.wait_for(ADDRESS, "/-/ready")
}

/// Waits until a scrape of the target has succeeded; returns its `node_uname_info`.
///
/// # Errors
/// Returns an error with the reason that Prometheus reports if no scrape succeeds.
pub fn scraped(tunnel: &Tunnel) -> Result<Value> {
    let found = cmd::wait_until(PATIENCE, "a scrape through the tunnel", || {
        let up = query(tunnel, "up")?;
        let is_up = up.iter().any(|sample| sample["value"][1] == "1");
        Ok(is_up
            .then(|| query(tunnel, "node_uname_info"))
            .transpose()?
            .and_then(|samples| samples.into_iter().next()))
    });
    let sample = found.with_context(|| {
        let targets = http::ask(tunnel.netns(), ADDRESS, "/api/v1/targets", &[]);
        let targets = targets.map(|answer| answer.body).unwrap_or_default();
        format!("{targets}\n{}", tunnel.logs())
    })?;
    ensure!(sample["metric"]["instance"] == TARGET, "{sample}");
    Ok(sample["metric"].clone())
}

/// Returns the samples of an expression that is already quoted for a URL where necessary.
///
/// # Errors
/// Returns an error if Prometheus does not reply.
pub fn query(tunnel: &Tunnel, expression: &str) -> Result<Vec<Value>> {
    let path = format!("/api/v1/query?query={expression}");
    let answer = http::ask(tunnel.netns(), ADDRESS, &path, &[])?;
    let answer: Value = serde_json::from_str(&answer.body)
        .with_context(|| format!("Prometheus answers {answer:?}"))?;
    let samples = answer["data"]["result"].as_array();
    Ok(samples.cloned().unwrap_or_default())
}
