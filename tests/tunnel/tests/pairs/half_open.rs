// SPDX-License-Identifier: Apache-2.0

//! Idle connections of a client and of a target whose other end has vanished silently. The kernel sends keepalive
//! probes to that end. Each run checks the kernel's timers; `PROXY_AGENT_TEST_LOAD=full` waits until the connections
//! are closed, two and a half minutes. `cut.rs` tests the connection between server and agent.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::cmd::wait_until;
use tests::http;
use tests::netns::Netns;
use tests::slow_machine::{self, is_load_full};
use tunnel_tests::cluster::Cluster;
use tunnel_tests::load;
use tunnel_tests::load::rig::{Rig, Transport};
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{
    AGENT, AGENT_HEALTH, CONNECT_ON_SOCKET, PATIENCE, SERVER_HEALTH, Tunnel,
};

/// The server's port for clients, and below it the port for agents.
const CLIENTS: u16 = 8090;
const AGENTS: u16 = 8091;

/// The idle time before the kernel's first keepalive probe, in hundredths of a second.
const IDLE: u32 = 1_500;

/// A timer below this value, in hundredths of a second, is another one, for the acknowledgement of bytes.
const SHORT: u32 = 100;

/// The first probe is sent after 15 s, nine more follow in steps of 15 s, and none of them receives a reply.
const NOTICED: Duration = Duration::from_secs(150);

/// A MAC address that no link here has: the receiver drops frames to it.
const NOWHERE: &str = "02:00:00:00:00:01";

/// An established connection, as the kernel lists it.
#[derive(Debug)]
struct Connection {
    local: u16,
    remote: u16,
    /// The time until the next keepalive probe, in hundredths of a second, if that timer runs.
    asks: Option<u32>,
}

/// An end of a connection: its name, and a predicate that selects it, given the target's port.
type End = (&'static str, fn(&Connection, u16) -> bool);

/// Parses a line of /proc/net/tcp.
fn connection(line: &str) -> Option<Connection> {
    let port = |field: &str| u16::from_str_radix(field.rsplit_once(':')?.1, 16).ok();
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, "01", _, timer, ..] = fields[..] else {
        return None;
    };
    let (kind, after) = timer.split_once(':')?;
    let after = u32::from_str_radix(after, 16).ok()?;
    Some(Connection {
        local: port(local)?,
        remote: port(remote)?,
        asks: (kind == "02" && (SHORT..=IDLE).contains(&after)).then_some(after),
    })
}

fn connections(netns: &Netns) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for file in ["tcp", "tcp6"] {
        // The file of this thread is read, because the thread is in the namespace.
        let text = netns.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        all.extend(text.lines().filter_map(connection));
    }
    Ok(all)
}

#[test]
fn the_kernel_asks_for_clients_and_targets() -> Result<()> {
    for transport in [Transport::GrpcTls, Transport::ConnectTls] {
        let rig = Rig::new(transport, Make::Ours)?;
        let (dialer, target) = (rig.dialer.clone(), rig.target);
        let _held = rig.run(load::resting(dialer, target, 1))?;
        let ends: [End; 5] = [
            ("the client's of its server", |one, _| one.remote == CLIENTS),
            ("the server's of its client", |one, _| one.local == CLIENTS),
            ("the server's of its agent", |one, _| one.local == AGENTS),
            ("the agent's of its server", |one, _| one.remote == AGENTS),
            ("the agent's of its target", |one, port| one.remote == port),
        ];
        for (name, is_it) in ends {
            wait_until(PATIENCE, name, || {
                let all = connections(rig.tunnel.netns())?;
                let mut own = all
                    .iter()
                    .filter(|one| is_it(one, target.port()))
                    .peekable();
                let is_there = own.peek().is_some();
                Ok((is_there && own.all(|one| one.asks.is_some())).then_some(()))
            })
            .with_context(|| {
                format!(
                    "{}: {:?}",
                    transport.name(),
                    connections(rig.tunnel.netns())
                )
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_target_that_has_gone_is_noticed() -> Result<()> {
    let mut tunnel = Tunnel::new()?;
    let cluster = Cluster::new(&tunnel, 0)?;
    target_goes(&mut tunnel, &cluster).with_context(|| tunnel.logs())
}

fn target_goes(tunnel: &mut Tunnel, cluster: &Cluster) -> Result<()> {
    tunnel.spawn("server", &Part::Server.of(Make::Ours)?, &CONNECT_ON_SOCKET)?;
    tunnel.wait_for(SERVER_HEALTH, "/healthz")?;
    tunnel.spawn("agent", &Part::Agent.of(Make::Ours)?, &AGENT)?;
    tunnel.wait_for(SERVER_HEALTH, "/readyz")?;
    let listener = cluster.netns().run(|| TcpListener::bind("192.168.0.2:0"))?;
    let mut stream = tunnel.connect(listener.local_addr()?)?;
    let (_target, _) = listener.accept()?;
    tunnel.netns().ip(&format!(
        "neighbour replace 192.168.0.2 lladdr {NOWHERE} dev cluster0 nud permanent\n"
    ))?;
    if is_load_full() {
        stream.set_read_timeout(Some(NOTICED + slow_machine::of(PATIENCE)))?;
        let begun = Instant::now();
        // On a Unix socket the loss of the connection looks like a regular end of the stream.
        ensure!(stream.read(&mut [0])? == 0, "bytes came from nowhere");
        let took = begun.elapsed();
        ensure!(took > NOTICED / 2, "it is not given up early: {took:?}");
    } else {
        // The kernel does not close the connection early, so that it survives a short interruption of the network.
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        ensure!(stream.read(&mut [0]).is_err(), "it has ended");
        drop(stream);
    }
    for (address, line) in [
        (SERVER_HEALTH, "_established_connections 0\n"),
        (AGENT_HEALTH, "_open_endpoint_connections 0\n"),
    ] {
        wait_until(PATIENCE, line, || {
            let metrics = http::ask(tunnel.netns(), address, "/metrics", &[])?.body;
            Ok(metrics.contains(line).then_some(()))
        })?;
    }
    Ok(())
}
