// SPDX-License-Identifier: Apache-2.0

//! The network between a server and an agent is cut silently: no FIN, no reset, no ICMP. Both detect it, although they
//! have nothing to send and pings are an hour apart, close the connections across the cut, and reconnect when the
//! network works again.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::http;
use tunnel_tests::cluster::Cluster;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::target;
use tunnel_tests::tunnel::{
    AGENT, AGENT_HEALTH, CONNECT_ON_SOCKET, PATIENCE, SERVER_HEALTH, Tunnel,
};

/// The kernel sends a keepalive probe after 15 s, and expects a reply within 20 s.
const NOTICED: Duration = Duration::from_secs(30);

/// A MAC address that no link here has: the receiver drops frames to it.
const NOWHERE: &str = "02:00:00:00:00:01";

/// Waits for a line in the metrics of a program.
fn until_counted(ask: impl Fn() -> Result<http::Answer>, line: &str) -> Result<()> {
    let line = format!("_{line}\n");
    wait_until(PATIENCE, &line, || {
        Ok(ask()?.body.contains(&line).then_some(()))
    })
}

#[test]
fn both_ends_notice_a_network_that_is_cut() -> Result<()> {
    let mut tunnel = Tunnel::new()?;
    let cluster = Cluster::new(&tunnel, 0)?;
    cut(&mut tunnel, &cluster).with_context(|| tunnel.logs())
}

fn cut(tunnel: &mut Tunnel, cluster: &Cluster) -> Result<()> {
    tunnel.spawn("server", &Part::Server.of(Make::Ours)?, &CONNECT_ON_SOCKET)?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    let host = format!("--proxy-server-host={}", cluster.server());
    let agent = [AGENT.as_slice(), &[&host, "--proxy-server-name=localhost"]].concat();
    tunnel.spawn_in(
        cluster.netns(),
        "agent",
        &Part::Agent.of(Make::Ours)?,
        &agent,
    )?;
    tunnel.wait_for(SERVER_HEALTH, "/readyz")?;
    let at_server = || http::ask(tunnel.netns(), SERVER_HEALTH, "/metrics", &[]);
    let at_agent = || http::ask(cluster.netns(), AGENT_HEALTH, "/metrics", &[]);

    let mut stream = tunnel.connect(target::echo(cluster.netns())?)?;
    until_counted(at_agent, "open_endpoint_connections 1")?;
    let begun = Instant::now();
    for (netns, peer, link) in [
        (tunnel.netns(), "192.168.0.2", "cluster0"),
        (cluster.netns(), "192.168.0.1", "eth0"),
    ] {
        netns.ip(&format!(
            "neighbour replace {peer} lladdr {NOWHERE} dev {link} nud permanent\n"
        ))?;
    }
    // On a Unix socket the loss of the connection looks like a regular end of the stream.
    ensure!(stream.read(&mut [0])? == 0, "bytes came through the cut");
    let took = begun.elapsed();
    ensure!(took < NOTICED, "the server noticed after {took:?}");
    until_counted(at_server, "established_connections 0")?;
    until_counted(at_agent, "open_server_connections 0")?;
    until_counted(at_agent, "open_endpoint_connections 0")?;

    for (netns, peer, link) in [
        (tunnel.netns(), "192.168.0.2", "cluster0"),
        (cluster.netns(), "192.168.0.1", "eth0"),
    ] {
        netns.ip(&format!("neighbour del {peer} dev {link}\n"))?;
    }
    until_counted(at_agent, "open_server_connections 1")?;
    tunnel.connect(target::echo(cluster.netns())?)?;
    Ok(())
}
