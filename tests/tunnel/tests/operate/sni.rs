// SPDX-License-Identifier: Apache-2.0

//! The HAProxy of deploy/tunnel/sni in front of two servers: agents of two clusters connect to one address, and HAProxy
//! selects their server by the server name that they request.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::manifests::repository;
use tunnel_tests::certs::{self, Existing};
use tunnel_tests::cluster::{Cluster, INSIDE};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{Example, PATIENCE, Tunnel};

/// The port of the destination, which is the same in both clusters.
const PORT: u16 = 443;

/// A server: its name in the example, its ports in the test, and the response of its cluster's target.
struct Server {
    process: &'static str,
    example: &'static str,
    first_port: u16,
    text: &'static str,
}

const SERVERS: [Server; 2] = [
    Server {
        process: "server a",
        example: "shoot-a.konnectivity.svc:8091",
        first_port: 8190,
        text: "this is a",
    },
    Server {
        process: "server b",
        example: "shoot-b.konnectivity.svc:8091",
        first_port: 8290,
        text: "this is b",
    },
];

impl Server {
    fn start(&self, tunnel: &mut Tunnel) -> Result<()> {
        let port = |flag: &str, offset| format!("--{flag}-port={}", self.first_port + offset);
        let ports = [("server", 0), ("agent", 1), ("health", 2), ("admin", 5)];
        let ports = ports.map(|(flag, offset)| port(flag, offset));
        let mut flags = Example::HttpConnect.server();
        flags.extend(ports.iter().map(String::as_str));
        tunnel.spawn(self.process, &Part::Server.of(Make::Ours)?, &flags)?;
        tunnel.wait_for(&self.health(), "/healthz")
    }

    fn health(&self) -> String {
        format!("127.0.0.1:{}", self.first_port + 2)
    }

    /// Returns the response that a client of this server reads from the destination that exists in both clusters.
    fn read(&self, tunnel: &Tunnel) -> Result<String> {
        let proxy = format!("https://127.0.0.1:{}", self.first_port);
        let output = tunnel.run(
            Path::new("curl"),
            &[
                "--silent",
                "--show-error",
                "--max-time",
                "30",
                "--proxytunnel",
                "--proxy-cacert",
                "certs/frontend/issued/ca.crt",
                "--proxy-cert",
                "certs/frontend/issued/proxy-client.crt",
                "--proxy-key",
                "certs/frontend/private/proxy-client.key",
                "--proxy",
                &proxy,
                &format!("http://{INSIDE}:{PORT}/"),
            ],
        )?;
        let printed = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }
}

#[test]
fn each_agent_gets_the_server_that_it_names() -> Result<()> {
    let mut tunnel = Tunnel::new()?;
    let names = ["a", "b", "c"].map(|name| format!("{name}.tunnel.example"));
    certs::write(&tunnel.dir().join("certs"), &names, Existing::Replace)?;
    let example = repository().join("deploy/tunnel/sni/haproxy.cfg");
    let mut text = fs::read_to_string(&example).context("reading haproxy.cfg")?;
    for server in &SERVERS {
        ensure!(
            text.matches(server.example).count() == 1,
            "{}",
            server.example
        );
        let here = format!("127.0.0.1:{}", server.first_port + 1);
        text = text.replace(server.example, &here);
    }
    fs::write(tunnel.dir().join("haproxy.cfg"), text)?;
    for server in &SERVERS {
        server.start(&mut tunnel)?;
    }
    tunnel.spawn(
        "haproxy",
        Path::new("haproxy"),
        &["-db", "-f", "haproxy.cfg"],
    )?;

    let clusters = [Cluster::new(&tunnel, 1)?, Cluster::new(&tunnel, 2)?];
    for (cluster, server) in clusters.iter().zip(&SERVERS) {
        cluster.serve(PORT, server.text)?;
    }
    for (number, process) in ["agent a", "agent b"].into_iter().enumerate() {
        clusters[number].agent(&mut tunnel, process, "proxy-agent", &names[number])?;
        tunnel
            .wait_for(&SERVERS[number].health(), "/readyz")
            .with_context(|| tunnel.logs())?;
        if number == 0 {
            let other = SERVERS[1].read(&tunnel)?;
            ensure!(other.contains("500"), "{other}\n{}", tunnel.logs());
        }
    }
    // HAProxy selects no server for a name that is not in its configuration.
    let stranger = Cluster::new(&tunnel, 3)?;
    stranger.agent(&mut tunnel, "stranger", "proxy-agent", &names[2])?;
    wait_until(PATIENCE, "an agent without a server", || {
        let failed = tunnel.lines("stranger", "cannot connect once");
        Ok((failed.len() > 1).then_some(()))
    })
    .with_context(|| tunnel.logs())?;
    tunnel.stop("stranger")?;

    for server in &SERVERS {
        let text = server.read(&tunnel)?;
        ensure!(text == server.text, "{text}\n{}", tunnel.logs());
        ensure!(
            tunnel.lines(server.process, "Agent connected").len() == 1,
            "{}",
            tunnel.logs()
        );
    }
    Ok(())
}
