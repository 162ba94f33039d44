// SPDX-License-Identifier: Apache-2.0

//! The dashboard and the alerts of `deploy/tunnel/monitoring`: a real Prometheus scrapes a server with tenants that
//! renews a lease, an agent that counts leases, and a sidecar, while they carry, refuse and lose connections. Every
//! query of the dashboard returns data, and every metric that the dashboard or an alert uses is served.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::cmd::wait_until;
use tests::http;
use tests::manifests::repository;
use tunnel_tests::program::{Make, Part, lacks_peers};
use tunnel_tests::prometheus;
use tunnel_tests::target;
use tunnel_tests::tunnel::{
    AGENT_HEALTH, CONNECT_ON_SOCKET, PATIENCE, SERVER_HEALTH, TARGET, Tunnel,
};

use super::site::Site;

const PREFIX: &str = "konnectivity_network_proxy_";
const SIDECAR_HEALTH: &str = "127.0.0.1:8096";

/// The metrics of connections that are closed because their reader does not read; this does not happen between two of
/// our programs.
const WITH_UPSTREAM: [&str; 2] = [
    "konnectivity_network_proxy_agent_tunnels_closed_total",
    "konnectivity_network_proxy_server_tunnels_closed_total",
];

const RULES: &str = "\
tenants:
- name: shoot-a
  agents: [{certificate: {organization: shoot-a}}]
  clients: [{certificate: {organization: shoot-a}}]
  limits: {dialsPerSecond: 5}
";

const SERVER: [&str; 12] = [
    "--mode=http-connect",
    "--server-cert=made/server.crt",
    "--server-key=made/server.key",
    "--server-ca-cert=made/clients-ca.crt",
    "--cluster-cert=made/server-for-agents.crt",
    "--cluster-key=made/server-for-agents.key",
    "--cluster-ca-cert=made/agents-ca.crt",
    "--tenants-config=tenants.yaml",
    "--enable-lease-controller",
    "--kubeconfig=made/kubeconfig",
    "--lease-namespace=konnectivity-leases",
    "--server-id=a",
];

const SIDECAR: [&str; 4] = [
    "--mode=http-connect",
    "--ca-cert=made/clients-ca.crt",
    "--client-cert=made/shoot-a-prometheus.crt",
    "--client-key=made/shoot-a-prometheus.key",
];

/// A port on the agent's side where nothing listens.
const REFUSED: &str = "http://localhost:8001/";

fn monitoring(file: &str) -> Result<String> {
    let path = repository().join("deploy/tunnel/monitoring").join(file);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Returns the queries of the dashboard by panel, with Grafana's variables expanded.
fn queries() -> Result<BTreeMap<String, String>> {
    let dashboard: Value = serde_json::from_str(&monitoring("konnectivity.json")?)?;
    let mut queries = BTreeMap::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("no expression")?;
            let query = query
                .replace("$instance", ".*")
                .replace("$__rate_interval", "1m");
            let panel = format!("{} {} {}", panel["id"], panel["title"], target["refId"]);
            queries.insert(panel, query);
        }
    }
    ensure!(queries.len() > 40, "only {} queries", queries.len());
    Ok(queries)
}

/// Returns the metrics in a text; those of histograms are without their suffix.
fn metrics(text: &str) -> BTreeSet<String> {
    let names = text.match_indices(PREFIX).map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        let name = &rest[..end.unwrap_or(rest.len())];
        name.strip_suffix("_bucket").unwrap_or(name).to_owned()
    });
    // The prefix alone is the beginning of a pattern for all programs.
    names.filter(|name| name != PREFIX).collect()
}

/// Returns the metrics that an endpoint serves.
fn served(tunnel: &Tunnel, netns: &tests::netns::Netns, address: &str) -> Result<BTreeSet<String>> {
    let answer = http::ask(netns, address, "/metrics", &[])?;
    ensure!(answer.code == 200, "{answer:?}\n{}", tunnel.logs());
    let types = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|line| Some(line.split_once(' ')?.0.to_owned()));
    Ok(names.collect())
}

fn in_url(query: &str) -> String {
    let quoted = query.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    quoted.collect()
}

/// The panels and metrics that have not shown data yet.
struct Wanted {
    queries: BTreeMap<String, String>,
    metrics: BTreeSet<String>,
}

impl Wanted {
    fn new() -> Result<Self> {
        let queries = queries()?;
        let named = metrics(&monitoring("prometheusrule.yaml")?);
        let named = named
            .into_iter()
            .chain(queries.values().flat_map(|query| metrics(query)));
        let is_of_ours = |name: &String| !WITH_UPSTREAM.contains(&name.as_str());
        Ok(Self {
            metrics: named.filter(is_of_ours).collect(),
            queries: queries
                .into_iter()
                .filter(|(_, query)| !WITH_UPSTREAM.iter().any(|name| query.contains(name)))
                .collect(),
        })
    }

    /// Removes the panels that show data now, which means numbers other than NaN.
    fn look(&mut self, site: &Site) -> Result<()> {
        let mut seen = Vec::new();
        for (panel, query) in &self.queries {
            let samples = prometheus::query(&site.tunnel, &in_url(query))?;
            if samples.iter().any(|sample| sample["value"][1] != "NaN") {
                seen.push(panel.clone());
            }
        }
        self.queries.retain(|panel, _| !seen.contains(panel));
        let tunnel = &site.tunnel;
        for (netns, address) in [
            (tunnel.netns(), SERVER_HEALTH),
            (site.cluster.netns(), AGENT_HEALTH),
            (tunnel.netns(), SIDECAR_HEALTH),
        ] {
            // A killed program serves nothing.
            for name in served(tunnel, netns, address).unwrap_or_default() {
                self.metrics.remove(&name);
            }
        }
        Ok(())
    }

    /// Makes requests until only queries of these metrics are left.
    fn until_left(&mut self, site: &Site, left: &[&str]) -> Result<()> {
        let is_left = |text: &String| left.iter().any(|name| text.contains(name));
        let seen = wait_until(PATIENCE, "data for every query", || {
            traffic(site)?;
            self.look(site)?;
            let is_done = self.queries.values().all(is_left) && self.metrics.iter().all(is_left);
            Ok(is_done.then_some(()))
        });
        seen.with_context(|| {
            format!(
                "{:#?} {:#?}\n{}",
                self.queries,
                self.metrics,
                site.tunnel.logs()
            )
        })
    }
}

/// Makes requests that succeed, requests that the target, the limit or the tenant's rules refuse, and some through the
/// sidecar. The limit may refuse any of them.
fn traffic(site: &Site) -> Result<()> {
    let curl = |words: &[&str]| site.tunnel.run(Path::new("curl"), words);
    let own = Site::curl();
    let of_stranger = own.map(|word| match word {
        "made/shoot-a-kube-apiserver.crt" => "made/shoot-b-kube-apiserver.crt",
        "made/shoot-a-kube-apiserver.key" => "made/shoot-b-kube-apiserver.key",
        word => word,
    });
    for _ in 0..8 {
        curl(&[&own[..], &[TARGET]].concat())?;
    }
    curl(&[&of_stranger[..], &[TARGET]].concat())?;
    thread::sleep(Duration::from_secs(1));
    for target in [TARGET, REFUSED] {
        curl(&[&own[..], &[target]].concat())?;
        // These requests use CONNECT, with one dial each; the sidecar keeps connections of requests with whole URLs.
        let by_sidecar = [
            "--silent",
            "--proxytunnel",
            "--proxy",
            "http://127.0.0.1:8097",
        ];
        curl(&[&by_sidecar[..], &[target]].concat())?;
        curl(&["--silent", "--proxy", "http://127.0.0.1:8097", target])?;
    }
    Ok(())
}

fn agent(site: &mut Site, process: &'static str) -> Result<()> {
    let host = format!("--proxy-server-host={}", site.cluster.server());
    let words = [
        "--ca-cert=made/agents-ca.crt",
        "--agent-cert=made/shoot-a-konnectivity-agent.crt",
        "--agent-key=made/shoot-a-konnectivity-agent.key",
        "--proxy-server-name=localhost",
        "--count-server-leases",
        "--kubeconfig=made/agent.kubeconfig",
        "--lease-namespace=konnectivity-leases",
        "--sync-interval=100ms",
        "--sync-interval-cap=500ms",
        &host,
    ];
    let netns = site.cluster.netns();
    let program = Part::Agent.of(Make::Ours)?;
    site.tunnel.spawn_in(netns, process, &program, &words)?;
    site.tunnel.wait_for(SERVER_HEALTH, "/readyz")
}

#[test]
fn every_query_answers_with_data() -> Result<()> {
    let mut site = Site::new()?;
    fs::write(site.tunnel.dir().join("tenants.yaml"), RULES)?;
    site.api
        .put_expired_lease("konnectivity-leases", "long-gone");
    site.tunnel
        .spawn("server", &Part::Server.of(Make::Ours)?, &SERVER)?;
    site.tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    agent(&mut site, "agent")?;
    site.tunnel
        .spawn("sidecar", &Part::Sidecar.of(Make::Ours)?, &SIDECAR)?;
    site.tunnel.wait_for(SIDECAR_HEALTH, "/readyz")?;
    let configuration = "\
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
- job_name: tunnel
  static_configs: [{targets: ['127.0.0.1:8092', '192.168.1.2:8093', '127.0.0.1:8096']}]
";
    prometheus::serve(&mut site.tunnel, configuration)?;

    let mut wanted = Wanted::new()?;
    let errors = ["stream_errors_total"];
    wanted.until_left(&site, &errors)?;
    site.tunnel.stop("agent")?;
    let of_agent = ["agent_stream_errors_total"];
    wanted.until_left(&site, &of_agent)?;
    agent(&mut site, "agent again")?;
    wanted.until_left(&site, &of_agent)?;
    site.tunnel.stop("server")?;
    wanted.until_left(&site, &[])
}

/// The series that appear only with a program of upstream: connections that are closed because their reader does not
/// read.
#[test]
fn connections_that_are_closed_for_their_reader() -> Result<()> {
    if lacks_peers("tunnel-dashboard-upstream")? {
        return Ok(());
    }
    let wait = |tunnel: &Tunnel, address: &str, name: &str| {
        wait_until(PATIENCE, name, || {
            let served = served(tunnel, tunnel.netns(), address)?;
            Ok(served.contains(name).then_some(()))
        })
        .with_context(|| tunnel.logs())
    };
    let [of_agent, of_server] = WITH_UPSTREAM;
    // The client does not read.
    let tunnel = Tunnel::start_with(&CONNECT_ON_SOCKET, Make::Ours, Make::Upstream)?;
    let stream = tunnel.connect(target::flood(tunnel.netns())?)?;
    wait(&tunnel, SERVER_HEALTH, of_server)?;
    drop((stream, tunnel));
    // The target does not read.
    let tunnel = Tunnel::start_with(&CONNECT_ON_SOCKET, Make::Upstream, Make::Ours)?;
    let mut stream = tunnel.connect(target::silent(tunnel.netns())?)?;
    thread::spawn(move || {
        let piece = vec![b'x'; 64 << 10];
        while stream.write_all(&piece).is_ok() {}
    });
    wait(&tunnel, AGENT_HEALTH, of_agent)
}
