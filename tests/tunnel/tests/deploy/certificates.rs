// SPDX-License-Identifier: Apache-2.0

//! The certificates of deploy/tunnel/certificates/make-certificates.sh at work: server, agent and sidecar of a tenant,
//! before and after the certificates and keys are replaced.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::http;
use tests::manifests::repository;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{AGENT_HEALTH, PATIENCE, SERVER_HEALTH, TARGET, Tunnel};

const RULES: &str = "\
tenants:
- name: shoot-a
  agents: [{certificate: {organization: shoot-a, commonName: konnectivity-agent}}]
  clients: [{certificate: {organization: shoot-a, commonName: prometheus}}]
";

const SIDECAR_HEALTH: &str = "127.0.0.1:8096";

/// The flags of curl for a request through the sidecar.
const CURL: [&str; 5] = [
    "--silent",
    "--show-error",
    "--proxy",
    "http://127.0.0.1:8097",
    TARGET,
];

fn make(tunnel: &Tunnel) -> Result<()> {
    let script = repository().join("deploy/tunnel/certificates/make-certificates.sh");
    let output = tunnel.run(&script, &["made", "localhost", "shoot-a", "shoot-b"])?;
    ensure!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in [
        "server.crt: ",
        "server-for-agents.crt: ",
        "shoot-b-prometheus.crt: ",
    ] {
        ensure!(printed.contains(name), "{printed}");
    }
    Ok(())
}

#[test]
fn certificates_by_hand() -> Result<()> {
    let mut tunnel = Tunnel::new()?;
    make(&tunnel)?;
    let authority = fs::read(tunnel.dir().join("made/clients-ca.crt"))?;
    fs::write(tunnel.dir().join("tenants.yaml"), RULES)?;
    tunnel.spawn("test server", &Part::TestServer.of(Make::Ours)?, &[])?;
    let server = [
        "--mode=http-connect",
        "--server-cert=made/server.crt",
        "--server-key=made/server.key",
        "--server-ca-cert=made/clients-ca.crt",
        "--cluster-cert=made/server-for-agents.crt",
        "--cluster-key=made/server-for-agents.key",
        "--cluster-ca-cert=made/agents-ca.crt",
        "--tenants-config=tenants.yaml",
    ];
    tunnel.spawn("server", &Part::Server.of(Make::Ours)?, &server)?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    let agent = [
        "--ca-cert=made/agents-ca.crt",
        "--agent-cert=made/shoot-a-konnectivity-agent.crt",
        "--agent-key=made/shoot-a-konnectivity-agent.key",
        "--proxy-server-name=localhost",
    ];
    tunnel.spawn("agent", &Part::Agent.of(Make::Ours)?, &agent)?;
    let sidecar = [
        "--mode=http-connect",
        "--ca-cert=made/clients-ca.crt",
        "--client-cert=made/shoot-a-prometheus.crt",
        "--client-key=made/shoot-a-prometheus.key",
    ];
    tunnel.spawn("sidecar", &Part::Sidecar.of(Make::Ours)?, &sidecar)?;
    for (address, path) in [
        (AGENT_HEALTH, "/readyz"),
        (SERVER_HEALTH, "/readyz"),
        (SIDECAR_HEALTH, "/readyz"),
    ] {
        tunnel
            .wait_for(address, path)
            .with_context(|| tunnel.logs())?;
    }
    tunnel.request(Path::new("curl"), &CURL)?;

    // The script replaces certificates and keys, which the same CAs sign.
    make(&tunnel)?;
    ensure!(fs::read(tunnel.dir().join("made/clients-ca.crt"))? == authority);
    for address in [AGENT_HEALTH, SERVER_HEALTH, SIDECAR_HEALTH] {
        wait_until(PATIENCE, &format!("new certificates at {address}"), || {
            let metrics = http::ask(tunnel.netns(), address, "/metrics", &[])?.body;
            let mut used = metrics.lines().filter(|line| {
                line.contains("certificate_reloads_total{") && line.contains("result=\"used\"")
            });
            Ok(used.all(|line| !line.ends_with(" 0")).then_some(()))
        })
        .with_context(|| tunnel.logs())?;
    }
    tunnel.request(Path::new("curl"), &CURL)?;
    Ok(())
}
