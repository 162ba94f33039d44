// SPDX-License-Identifier: Apache-2.0

//! Two clusters with the same addresses behind one server: a client reaches the cluster of its own tenant. The test
//! covers every pair of a client and a cluster, and peers that present, dial or advertise names of another tenant.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::http;
use tunnel_tests::certs;
use tunnel_tests::cluster::{Cluster, INSIDE};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{Example, PATIENCE, SERVER_HEALTH, Tunnel};

const RULES: &str = "\
tenants:
- name: alpha
  agents:
  - certificate: {organization: alpha}
    serverName: kubernetes
  clients:
  - certificate: {organization: alpha}
- name: beta
  agents:
  - certificate: {organization: beta}
    serverName: localhost
  clients:
  - certificate: {organization: beta}
";

/// The port of the destination, which is the same in both clusters.
const PORT: u16 = 443;

/// The response of each cluster's target.
const TEXTS: [&str; 2] = ["this is alpha", "this is beta"];

/// Returns the response that a client with this certificate reads from the destination that exists in both clusters.
fn read(tunnel: &Tunnel, certificate: &str, port: u16) -> Result<(bool, String)> {
    let key = format!("certs/frontend/private/{certificate}.key");
    let own = format!("certs/frontend/issued/{certificate}.crt");
    let target = format!("http://{INSIDE}:{port}/");
    let output = tunnel.run(
        Path::new("curl"),
        &[
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--proxytunnel",
            "--proxy-key",
            &key,
            "--proxy-cert",
            &own,
            "--proxy-cacert",
            "certs/frontend/issued/ca.crt",
            "--proxy",
            "https://127.0.0.1:8090",
            &target,
        ],
    )?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&printed).into_owned(),
    ))
}

fn metrics(tunnel: &Tunnel) -> Result<String> {
    Ok(http::ask(tunnel.netns(), SERVER_HEALTH, "/metrics", &[])?.body)
}

#[test]
fn each_client_reaches_its_own_cluster() -> Result<()> {
    let mut tunnel = Tunnel::new()?;
    let directory = tunnel.dir().join("certs");
    for (name, organization) in [
        ("alpha", "alpha"),
        ("beta", "beta"),
        ("forged", "alpha,O=beta"),
    ] {
        for group in ["agent", "frontend"] {
            certs::issue(&directory, group, name, organization)?;
        }
    }
    fs::write(tunnel.dir().join("tenants.yaml"), RULES)?;
    let mut flags = Example::HttpConnect.server();
    flags.extend([
        "--tenants-config=tenants.yaml",
        "--proxy-strategies=destHost,defaultRoute,default",
    ]);
    tunnel.spawn("server", &Part::Server.of(Make::Ours)?, &flags)?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    let clusters = [Cluster::new(&tunnel, 1)?, Cluster::new(&tunnel, 2)?];
    for (cluster, text) in clusters.iter().zip(TEXTS) {
        cluster.serve(PORT, text)?;
    }

    // The first agents have another tenant's certificate or name, or none; no other agents are connected yet.
    for (process, cluster, certificate, name) in [
        ("name of beta", 0, "alpha", "localhost"),
        ("name of alpha", 1, "beta", "kubernetes"),
        ("forged", 1, "forged", "localhost"),
        ("stranger", 1, "proxy-agent", "localhost"),
    ] {
        clusters[cluster].agent(&mut tunnel, process, certificate, name)?;
        tests::cmd::wait_until(PATIENCE, process, || {
            let refused = tunnel.lines(process, "belongs to no tenant");
            Ok((!refused.is_empty()).then_some(()))
        })
        .with_context(|| tunnel.logs())?;
        tunnel.stop(process)?;
    }
    let before = metrics(&tunnel)?;
    ensure!(before.contains("ready_backend_connections 0\n"), "{before}");
    let line = "tenant_refusals_total{peer=\"agent\",reason=\"no_tenant\"}";
    ensure!(before.contains(line), "{before}");

    // The agents are started one after the other, so that each of them is once the only agent while clients of both
    // tenants dial.
    clusters[0].agent(&mut tunnel, "alpha", "alpha", "kubernetes")?;
    tunnel.wait_for(SERVER_HEALTH, "/readyz")?;
    let (is_good, text) = read(&tunnel, "beta", PORT)?;
    ensure!(
        !is_good && text.contains("500"),
        "{text}\n{}",
        tunnel.logs()
    );
    clusters[1].agent(&mut tunnel, "beta", "beta", "localhost")?;
    tests::cmd::wait_until(PATIENCE, "two agents", || {
        let line = "tenant_agents{tenant=\"beta\"} 1
";
        Ok(metrics(&tunnel)?.contains(line).then_some(()))
    })
    .with_context(|| tunnel.logs())?;
    for _ in 0..5 {
        for (certificate, want) in ["alpha", "beta"].into_iter().zip(TEXTS) {
            let (_, text) = read(&tunnel, certificate, PORT)?;
            ensure!(text == want, "{certificate}: {text}\n{}", tunnel.logs());
        }
    }
    for certificate in ["forged", "proxy-client"] {
        let (is_good, text) = read(&tunnel, certificate, PORT)?;
        ensure!(!is_good && text.contains("403"), "{certificate}: {text}");
    }
    let after = metrics(&tunnel)?;
    let line = "tenant_refusals_total{peer=\"client\",reason=\"no_tenant\"} 2\n";
    ensure!(after.contains(line), "{after}");
    Ok(())
}
