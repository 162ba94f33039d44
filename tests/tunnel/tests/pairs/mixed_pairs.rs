// SPDX-License-Identifier: Apache-2.0

//! One end of ours with upstream's at the other: slow readers stop no other connection, a closed sending side loses no
//! answer. By HTTP CONNECT on a Unix socket, which any program can speak.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tunnel_tests::program::{Make, lacks_peers};
use tunnel_tests::target;
use tunnel_tests::tunnel::{CONNECT_ON_SOCKET, Tunnel};

/// Round trips of the others while one is stalled.
const ROUNDS: usize = 200;

/// How long all of them may take together: they take milliseconds if they wait for nothing.
const LIMIT: Duration = Duration::from_secs(5);

/// More than all buffers on the way hold.
const MUCH: usize = 64 << 20;

/// Round trips with an echo server through a connection of its own.
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

/// A target sends and its client does not read.
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
    // Now, and when its buffers are full.
    for _ in 0..3 {
        others_go_on(&tunnel, echo).with_context(|| tunnel.logs())?;
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// A client sends and its target does not read.
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
            // It blocks, or has been closed for it.
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

/// A client closes its sending side and waits for the answer.
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
