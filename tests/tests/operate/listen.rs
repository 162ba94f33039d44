// SPDX-License-Identifier: Apache-2.0

//! A client that misuses the HTTP server disturbs neither the agent's work nor the responses to other clients.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::http::{self, wait_for};
use tests::netns::Netns;
use tests::node::{Node, Topology};
use tests::{Family, client, cmd};

const TIMEOUT: Duration = Duration::from_secs(10);
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);
/// The number of connections of each kind of bad client.
const MANY: usize = 100;

/// The bytes that a bad client sends before it becomes silent.
const REQUESTS: [&str; 4] = [
    "",
    "GET /metrics HTTP/1.1\r\nHost: a\r\n",
    // This client does not read the response either.
    "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /status HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
];

fn has_vip(netns: &Netns) -> bool {
    netns.run(|| UdpSocket::bind((Family::V4.vip(), 0)).is_ok())
}

fn bad_clients(node: &Node) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for request in REQUESTS.iter().cycle().take(REQUESTS.len() * MANY) {
        let mut stream = client::connect(&node.netns, SERVER, TIMEOUT)?;
        // The agent may have closed the connection already.
        let _ = stream.write_all(request.as_bytes());
        streams.push(stream);
    }
    Ok(streams)
}

#[test]
fn hundreds_of_slow_clients_delay_no_other() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&[])?;
        wait_for(&node.netns, "/readyz", 200)?;
        let before = agent.resident_memory()? / 1024;
        let bad = bad_clients(node)?;
        for path in ["/metrics", "/healthz", "/readyz", "/status"] {
            let answer = http::get(&node.netns, path)?;
            ensure!(answer.code == 200, "{path}: {answer:?}");
        }
        node.netns.exec("ip address del 10.96.0.2/32 dev lo")?;
        let start = Instant::now();
        cmd::wait_until(TIMEOUT, "the VIP to be back", || {
            Ok(has_vip(&node.netns).then_some(()))
        })?;
        println!(
            "repaired after {:?}, among {} bad clients",
            start.elapsed(),
            bad.len()
        );
        println!(
            "resident: {before} KiB, then {} KiB",
            agent.resident_memory()? / 1024
        );
        let sockets = std::fs::read_dir(format!("/proc/{}/fd", agent.id()))?.count();
        ensure!(sockets < 100, "{sockets} open files");
        // A client that waits sees the end of the connection.
        for mut stream in bad {
            stream.set_read_timeout(Some(4 * TIMEOUT))?;
            let mut rest = Vec::new();
            if let Err(error) = stream.read_to_end(&mut rest) {
                ensure!(
                    error.kind() == std::io::ErrorKind::ConnectionReset,
                    "a bad client is still connected: {error}"
                );
            }
        }
        Ok(())
    });
}

/// A client that has sent its request and closed its sending side receives the response.
#[test]
fn half_closed_clients_are_answered() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&[])?;
        wait_for(&node.netns, "/readyz", 200)?;
        let mut stream = client::connect(&node.netns, SERVER, TIMEOUT)?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        Ok(())
    });
}

/// The VIP has priority: the agent tries to listen on the address again until it is free.
#[test]
fn a_taken_address_is_logged_and_retried() {
    Node::test(Topology::Veth, |node| {
        let taken = node.netns.run(|| TcpListener::bind(SERVER))?;
        let agent = node.start_agent(&[])?;
        ensure!(has_vip(&node.netns), "no VIP");
        cmd::wait_until(TIMEOUT, "the log line", || {
            Ok(agent
                .log()
                .contains("cannot serve metrics and health")
                .then_some(()))
        })?;
        for text in ["ERROR", "127.0.0.1:9465", "already in use", "--listen"] {
            let is_logged = agent
                .log()
                .lines()
                .any(|line| line.contains("cannot listen") && line.contains(text));
            ensure!(is_logged, "{text} is not logged:\n{}", agent.log());
        }
        drop(taken);
        wait_for(&node.netns, "/readyz", 200)?;
        let count = agent
            .log()
            .matches("cannot serve metrics and health")
            .count();
        ensure!(count == 1, "logged {count} times:\n{}", agent.log());
        Ok(())
    });
}
