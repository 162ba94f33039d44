// SPDX-License-Identifier: Apache-2.0

//! Each pair of our and upstream's server and agent runs upstream's three examples with our and upstream's client, a
//! program that uses kube-apiserver's client library, and curl.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tunnel_tests::program::{Make, Part, lacks_peers, library_client};
use tunnel_tests::target;
use tunnel_tests::tunnel::{CURL, Example, SOCKET, TARGET, Tunnel};

fn examples(server: Make, agent: Make) -> Result<()> {
    let name = format!("tunnel-{}-{}", server.name(), agent.name());
    if lacks_peers(&name)? {
        return Ok(());
    }
    for example in Example::ALL {
        let tunnel = Tunnel::start(example, server, agent)?;
        for client in Make::ALL {
            tunnel
                .request(&Part::TestClient.of(client)?, &example.client())
                .with_context(|| format!("{}, {} client", example.name(), client.name()))?;
        }
        match example {
            Example::Grpc => {}
            Example::GrpcUds => library(&tunnel)?,
            Example::HttpConnect => {
                let args = [CURL.as_slice(), &[TARGET]].concat();
                tunnel.request(Path::new("curl"), &args)?;
            }
        }
    }
    Ok(())
}

/// Tests the client library: one tunnel and many concurrent ones, bytes in both directions, and a target that refuses.
fn library(tunnel: &Tunnel) -> Result<()> {
    let program = library_client()?;
    let uds = format!("--uds={}", tunnel.dir().join(SOCKET).display());
    let request = [&uds, "--target=localhost:8000", "--path=/success"];
    let printed = tunnel.request(&program, &request)?;
    ensure!(printed.starts_with("200 OK\n"), "{printed}");
    let many = [&request[..], &["--tunnels=20"]].concat();
    let printed = tunnel.request(&program, &many)?;
    let answers = printed.matches("200 OK").count();
    ensure!(answers == 20, "{answers} answers\n{printed}");
    let target = format!("--target={}", target::echo(tunnel.netns())?);
    let output = tunnel.run(
        &program,
        &[
            &uds,
            &target,
            "--mode=echo",
            "--bytes=4000000",
            "--tunnels=8",
        ],
    )?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        tunnel.logs()
    );
    let output = tunnel.run(&program, &[&uds, "--target=127.0.0.1:1"])?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "port 1 answers");
    ensure!(complaint.contains("connection refused"), "{complaint}");
    Ok(())
}

#[test]
fn our_server_our_agent() -> Result<()> {
    examples(Make::Ours, Make::Ours)
}

#[test]
fn our_server_upstreams_agent() -> Result<()> {
    examples(Make::Ours, Make::Upstream)
}

#[test]
fn upstreams_server_our_agent() -> Result<()> {
    examples(Make::Upstream, Make::Ours)
}

#[test]
fn upstreams_server_upstreams_agent() -> Result<()> {
    examples(Make::Upstream, Make::Upstream)
}
