// SPDX-License-Identifier: Apache-2.0

//! One of our programs with one of upstream's at the other end: slow readers do not block other connections, and a
//! closed sending side loses no response. Clients use HTTP CONNECT on a Unix socket, which any program can speak.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tunnel_tests::program::{Make, lacks_peers};
use tunnel_tests::target;
use tunnel_tests::tunnel::{CONNECT_ON_SOCKET, Tunnel};

/// The number of round trips of the others while one connection is stalled.
const ROUNDS: usize = 200;

/// The maximum time of all of them together: they take milliseconds if nothing blocks them.
const LIMIT: Duration = Duration::from_secs(5);

/// More bytes than all buffers on the path hold.
const MUCH: usize = 64 << 20;

/// Makes round trips with an echo server through a separate connection.
fn others_go_on(tunnel: &Tunnel, echo: SocketAddr) -> Result<()> {
    let mut stream = tunnel.connect(echo)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let start = Instant::now();
    let mut received = [0; 100];
    for round in 0..ROUNDS {
        let sent = [u8::try_from(round % 251)?; 100];
        stream.write_all(&sent)?;
        stream
            .read_exact(&mut received)
            .context("another one is stopped")?;
        ensure!(sent == received, "other bytes than were sent");
    }
    let took = start.elapsed();
    ensure!(took < LIMIT, "{ROUNDS} round trips took {took:?}");
    Ok(())
}

/// Tests a target that sends to a client that does not read.
fn slow_client(server: Make, agent: Make) -> Result<()> {
    if lacks_peers(&format!("tunnel-slow-client-{}", agent.name()))? {
        return Ok(());
    }
    let tunnel = Tunnel::start_with(&CONNECT_ON_SOCKET, server, agent)?;
    let (flood, echo) = (
        target::flood(tunnel.netns())?,
        target::echo(tunnel.netns())?,
    );
    let _stalled = tunnel.connect(flood)?;
    // The others are checked now, and again when the buffers are full.
    for _ in 0..3 {
        others_go_on(&tunnel, echo).with_context(|| tunnel.logs())?;
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// Tests a client that sends to a target that does not read.
fn slow_target(server: Make, agent: Make) -> Result<()> {
    if lacks_peers(&format!("tunnel-slow-target-{}", server.name()))? {
        return Ok(());
    }
    let tunnel = Tunnel::start_with(&CONNECT_ON_SOCKET, server, agent)?;
    let (silent, echo) = (
        target::silent(tunnel.netns())?,
        target::echo(tunnel.netns())?,
    );
    let mut stalled = tunnel.connect(silent)?;
    stalled.set_write_timeout(Some(Duration::from_millis(500)))?;
    let piece = vec![0; 64 << 10];
    let mut sent = 0;
    while sent < MUCH {
        match stalled.write(&piece) {
            Ok(bytes) => sent += bytes,
            // The connection blocks, or the server or agent has closed it because its target does not read.
            Err(error) => {
                let is_blocked = error.kind() == ErrorKind::WouldBlock;
                let is_closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
                ensure!(is_blocked || is_closed.contains(&error.kind()), "{error}");
                break;
            }
        }
    }
    others_go_on(&tunnel, echo).with_context(|| tunnel.logs())
}

/// Tests a client that closes its sending side and waits for the response.
fn half_close(server: Make, agent: Make) -> Result<()> {
    let tunnel = Tunnel::start_with(&CONNECT_ON_SOCKET, server, agent)?;
    let mut stream = tunnel.connect(target::count(tunnel.netns())?)?;
    stream.write_all(&vec![0; 100_000])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| tunnel.logs())?;
    ensure!(answer == "100000 bytes", "{answer:?}\n{}", tunnel.logs());
    Ok(())
}

#[test]
fn a_slow_client_of_our_server_with_our_agent() -> Result<()> {
    slow_client(Make::Ours, Make::Ours)
}

#[test]
fn a_slow_client_of_our_server_with_upstreams_agent() -> Result<()> {
    slow_client(Make::Ours, Make::Upstream)
}

#[test]
fn a_slow_target_of_our_agent_with_our_server() -> Result<()> {
    slow_target(Make::Ours, Make::Ours)
}

#[test]
fn a_slow_target_of_our_agent_with_upstreams_server() -> Result<()> {
    slow_target(Make::Upstream, Make::Ours)
}

#[test]
fn a_closed_sending_side_between_two_of_ours() -> Result<()> {
    half_close(Make::Ours, Make::Ours)
}
