// SPDX-License-Identifier: Apache-2.0

//! A real Prometheus scrapes the targets of two clusters with the same addresses through one sidecar and one server:
//! node exporters with http, and with https and a client certificate that only Prometheus has. If a cluster loses its
//! agent, only its targets are down at the next scrape, and they are up again when the agent is back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::http;
use tunnel_tests::certs;
use tunnel_tests::cluster::{Cluster, INSIDE};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::prometheus::{query, serve};
use tunnel_tests::tunnel::{Example, PATIENCE, SERVER_HEALTH, Tunnel};

/// The tenants, which are also the names of the jobs.
const CLUSTERS: [&str; 2] = ["alpha", "beta"];

const RULES: &str = "\
tenants:
- name: alpha
  agents: [{certificate: {organization: alpha}}]
  clients: [{certificate: {organization: alpha}}]
- name: beta
  agents: [{certificate: {organization: beta}}]
  clients: [{certificate: {organization: beta}}]
";

const SIDECAR: &str = "\
tenants:
- name: alpha
  listen: 127.0.0.1:8097
  clientCert: certs/frontend/issued/alpha.crt
  clientKey: certs/frontend/private/alpha.key
- name: beta
  listen: 127.0.0.1:8098
  clientCert: certs/frontend/issued/beta.crt
  clientKey: certs/frontend/private/beta.key
";

/// `tls_config` applies to the targets alone; for the connection to the sidecar, Prometheus has only an address.
const PROMETHEUS: &str = "\
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
- job_name: alpha-http
  proxy_url: http://127.0.0.1:8097
  static_configs: [{targets: ['10.0.0.1:9100']}]
- job_name: alpha-https
  scheme: https
  proxy_url: http://127.0.0.1:8097
  tls_config: &tls
    ca_file: certs/agent/issued/ca.crt
    cert_file: certs/agent/issued/prometheus.crt
    key_file: certs/agent/private/prometheus.key
    server_name: localhost
  static_configs: [{targets: ['10.0.0.1:9101']}]
- job_name: beta-http
  proxy_url: http://127.0.0.1:8098
  static_configs: [{targets: ['10.0.0.1:9100']}]
- job_name: beta-https
  scheme: https
  proxy_url: http://127.0.0.1:8098
  tls_config: *tls
  static_configs: [{targets: ['10.0.0.1:9101']}]
";

const EXPORTER: &str = "\
tls_server_config:
  cert_file: certs/agent/issued/proxy-frontend.crt
  key_file: certs/agent/private/proxy-frontend.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: certs/agent/issued/ca.crt
";

const SIDECAR_HEALTH: &str = "127.0.0.1:8096";

/// Starts the two node exporters of a cluster, whose metrics contain the cluster's name.
fn exporters(tunnel: &mut Tunnel, cluster: &Cluster, name: &str) -> Result<()> {
    let directory = tunnel.dir().join(name);
    fs::create_dir(&directory)?;
    let metric = format!("test_cluster{{cluster=\"{name}\"}} 1\n");
    fs::write(directory.join("cluster.prom"), metric)?;
    for (port, tls) in [(9100, None), (9101, Some("--web.config.file=exporter.yml"))] {
        let listen = format!("--web.listen-address={INSIDE}:{port}");
        let text = format!("--collector.textfile.directory={name}");
        let args = [
            "--collector.disable-defaults",
            "--collector.textfile",
            &text,
            &listen,
        ];
        let args: Vec<&str> = args.into_iter().chain(tls).collect();
        let program = Path::new("prometheus-node-exporter");
        tunnel.spawn_in(cluster.netns(), "exporter", program, &args)?;
    }
    Ok(())
}

/// Returns every scrape of the last minutes by job: the time when it began, and whether it succeeded.
fn scrapes(tunnel: &Tunnel) -> Result<BTreeMap<String, Vec<(f64, bool)>>> {
    let series = query(tunnel, "up%5B10m%5D")?;
    let scrapes = series.iter().map(|series| {
        let samples = series["values"].as_array().into_iter().flatten();
        let samples = samples.filter_map(|sample| Some((sample[0].as_f64()?, sample[1] == "1")));
        let job = series["metric"]["job"].as_str().unwrap_or_default();
        (job.to_owned(), samples.collect())
    });
    Ok(scrapes.collect())
}

/// Waits until both targets of a cluster have been scraped after `since` with this outcome.
fn wait_for_scrapes(tunnel: &Tunnel, cluster: &str, since: f64, is_up: bool) -> Result<()> {
    let what = format!("scrapes of {cluster} that give up = {}", u8::from(is_up));
    let found = wait_until(PATIENCE, &what, || {
        let scrapes = scrapes(tunnel)?;
        let own = scrapes.iter().filter(|(job, _)| job.starts_with(cluster));
        let with =
            own.filter(|(_, samples)| samples.iter().any(|(at, up)| *at > since && *up == is_up));
        Ok((with.count() == 2).then_some(()))
    });
    found.with_context(|| {
        let targets = http::ask(tunnel.netns(), "127.0.0.1:9090", "/api/v1/targets", &[]);
        let targets = targets.map(|answer| answer.body).unwrap_or_default();
        format!("{targets}\n{}", tunnel.logs())
    })
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

#[test]
fn all_targets_of_two_clusters_through_a_sidecar() -> Result<()> {
    let mut tunnel = Tunnel::new()?;
    let directory = tunnel.dir().join("certs");
    for name in CLUSTERS {
        for group in ["agent", "frontend"] {
            certs::issue(&directory, group, name, name)?;
        }
    }
    certs::issue(&directory, "agent", "prometheus", "monitoring")?;
    for (file, text) in [
        ("tenants.yaml", RULES),
        ("sidecar.yaml", SIDECAR),
        ("exporter.yml", EXPORTER),
    ] {
        fs::write(tunnel.dir().join(file), text)?;
    }
    let mut flags = Example::HttpConnect.server();
    flags.push("--tenants-config=tenants.yaml");
    tunnel.spawn("server", &Part::Server.of(Make::Ours)?, &flags)?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    let clusters = [Cluster::new(&tunnel, 1)?, Cluster::new(&tunnel, 2)?];
    for (cluster, name) in clusters.iter().zip(CLUSTERS) {
        exporters(&mut tunnel, cluster, name)?;
        cluster.agent(&mut tunnel, name, name, "localhost")?;
    }
    let sidecar = [
        "--tenants-config=sidecar.yaml",
        "--mode=http-connect",
        "--proxy-host=localhost",
        "--ca-cert=certs/frontend/issued/ca.crt",
        "--allow-destination=10.0.0.0/8:9100-9101",
    ];
    tunnel.spawn("sidecar", &Part::Sidecar.of(Make::Ours)?, &sidecar)?;
    tunnel.wait_for(SIDECAR_HEALTH, "/readyz")?;
    serve(&mut tunnel, PROMETHEUS)?;
    for name in CLUSTERS {
        wait_for_scrapes(&tunnel, name, 0.0, true)?;
    }
    // Each job has reached its own cluster.
    let found = query(&tunnel, "test_cluster")?;
    ensure!(found.len() == 4, "{found:?}");
    for sample in &found {
        let metric = &sample["metric"];
        let (job, cluster) = (metric["job"].as_str(), metric["cluster"].as_str());
        let is_own = job
            .zip(cluster)
            .is_some_and(|(job, name)| job.starts_with(name));
        ensure!(is_own, "{metric}");
    }

    tunnel.stop("alpha")?;
    let killed = now()?;
    wait_for_scrapes(&tunnel, "alpha", killed, false)?;
    wait_for_scrapes(&tunnel, "beta", killed, true)?;
    let seen = scrapes(&tunnel)?;
    for (job, samples) in seen.iter().filter(|(job, _)| job.starts_with("alpha")) {
        let after = samples.iter().filter(|(at, _)| *at > killed);
        // The first scrape after the loss fails, and so does every other one.
        ensure!(
            after.clone().count() > 0 && after.clone().all(|(_, up)| !up),
            "{job}: {samples:?}"
        );
    }
    clusters[0].agent(&mut tunnel, "alpha again", "alpha", "localhost")?;
    wait_for_scrapes(&tunnel, "alpha", now()?, true)?;
    let metrics = http::ask(tunnel.netns(), SIDECAR_HEALTH, "/metrics", &[])?.body;
    let counted = "konnectivity_network_proxy_sidecar_dials_total{result=\"ok\",tenant=\"beta\"}";
    ensure!(metrics.contains(counted), "{metrics}");
    Ok(())
}
