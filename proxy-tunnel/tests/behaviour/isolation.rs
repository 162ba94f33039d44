// SPDX-License-Identifier: Apache-2.0

//! One tunnel stalls, in either direction and mode, while others are used: defects 1 and 2 of upstream. With windows
//! nothing is lost; with a peer of upstream only the stalled tunnel is closed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proxy_tunnel::client::{Connection, Endpoint, Mode, Tunnel};
use proxy_tunnel::flow::Limits;
use proxy_tunnel::wire::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::peers::Peer;
use super::rig::{Options, Rig, SOON, Target, round_trip, until};

const MODES: [Mode; 2] = [Mode::Grpc, Mode::HttpConnect];

/// More bytes than the kernel's buffers and ours hold.
const MUCH: usize = 24 << 20;

/// Writes as many bytes as the tunnel accepts.
async fn flood(mut tunnel: Tunnel) -> (Tunnel, usize) {
    let chunk = vec![1; 64 * 1024];
    let mut total = 0;
    while total < MUCH {
        match timeout(Duration::from_millis(300), tunnel.write(&chunk)).await {
            Ok(written) => total += written.unwrap(),
            Err(_) => break,
        }
    }
    (tunnel, total)
}

#[tokio::test]
async fn targets_that_do_not_read_stop_nothing_else() {
    for mode in MODES {
        let (rig, agent) = Rig::with_agent(Options::new(mode)).await;
        let (stalled, echo) = (Target::new().await, Target::echo().await);
        let mut other = rig.dialer().dial(&echo).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..5 {
            let dialer = rig.dialer();
            let (tunnel, accepted) = tokio::join!(dialer.dial(&stalled.address), stalled.accept());
            let (tunnel, total) = flood(tunnel.unwrap()).await;
            assert!(total < MUCH, "it is held back");
            held.push((tunnel, accepted, total));
        }
        round_trip(&mut other, b"not stalled").await;
        round_trip(
            &mut rig.dialer().dial(&echo).await.unwrap(),
            b"nor a new one",
        )
        .await;
        // Nothing is lost: a target that reads again receives all bytes.
        let (mut tunnel, mut accepted, total) = held.pop().unwrap();
        tunnel.shutdown().await.unwrap();
        let mut all = Vec::new();
        let read = timeout(SOON, accepted.read_to_end(&mut all)).await;
        read.expect("it does not end").unwrap();
        assert_eq!(all.len(), total, "{mode:?}");
        drop((held, tunnel, accepted, other));
        until("memory is given back", || agent.shared.budget.used() == 0).await;
        agent.until_counted("open_endpoint_connections 0").await;
    }
}

#[tokio::test]
async fn clients_that_do_not_read_stop_nothing_else() {
    for mode in MODES {
        let (rig, agent) = Rig::with_agent(Options::new(mode)).await;
        let (source, echo) = (Target::new().await, Target::echo().await);
        let mut other = rig.dialer().dial(&echo).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..5 {
            let dialer = rig.dialer();
            let (tunnel, accepted) = tokio::join!(dialer.dial(&source.address), source.accept());
            let sending = tokio::spawn(async move {
                let mut accepted = accepted;
                accepted.write_all(&vec![1; MUCH]).await.unwrap();
            });
            held.push((tunnel.unwrap(), sending));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        round_trip(&mut other, b"not stalled").await;
        round_trip(
            &mut rig.dialer().dial(&echo).await.unwrap(),
            b"nor a new one",
        )
        .await;
        let (mut tunnel, sending) = held.pop().unwrap();
        let mut all = Vec::new();
        timeout(SOON, tunnel.read_to_end(&mut all))
            .await
            .expect("it does not end")
            .unwrap();
        assert_eq!(all.len(), MUCH, "{mode:?}");
        sending.await.unwrap();
        for (_, sending) in &held {
            sending.abort();
        }
        drop((held, tunnel, other));
        until("memory is given back", || rig.budget.used() == 0).await;
        agent.until_counted("open_endpoint_connections 0").await;
        rig.until_counted("established_connections 0").await;
    }
}

/// A client disconnects while its bytes wait for a target: its stream ends, and a connection that it shares with others
/// stays open.
#[tokio::test]
async fn a_client_that_leaves_a_stalled_target_leaves_at_once() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let (stalled, echo) = (Target::new().await, Target::echo().await);
    let shared = Connection::open(&Endpoint::unix(&rig.socket), "test")
        .await
        .unwrap();
    let mut other = shared.dial(&echo).await.unwrap();
    let (mut tunnels, mut targets) = (Vec::new(), Vec::new());
    for is_shared in [false, true] {
        let dialer = rig.dialer();
        let dial = async {
            if is_shared {
                shared.dial(&stalled.address).await
            } else {
                dialer.dial(&stalled.address).await
            }
        };
        let (tunnel, accepted) = tokio::join!(dial, stalled.accept());
        let (tunnel, total) = flood(tunnel.unwrap()).await;
        assert!(total < MUCH, "it is held back");
        tunnels.push(tunnel);
        targets.push(accepted);
    }
    rig.until_counted("established_connections 3").await;
    let left = Instant::now();
    drop(tunnels);
    rig.until_counted("established_connections 1").await;
    rig.until_counted("grpc_connections{service_method=\"Proxy\"} 1")
        .await;
    let took = left.elapsed();
    assert!(took < Limits::default().stall / 2, "{took:?}");
    round_trip(&mut other, b"not ended").await;
    drop((targets, other));
    agent.until_counted("open_endpoint_connections 0").await;
    until("memory is given back", || agent.shared.budget.used() == 0).await;
}

/// An agent without windows continues to send: the server closes its tunnel when the buffer has been full for too long.
#[tokio::test]
async fn a_client_that_does_not_read_is_closed_alone_with_an_agent_of_upstream() {
    for mode in MODES {
        let mut options = Options::new(mode);
        options.limits = Limits {
            stall: Duration::from_millis(200),
            ..Limits::default()
        };
        let rig = Rig::with(options).await;
        let mut agent = Peer::accepted_agent(&rig).await;
        let dialer = rig.dialer();
        let (stalled, _) = tokio::join!(dialer.dial("a:1"), agent.accept(1));
        let (other, _) = tokio::join!(dialer.dial("b:1"), agent.accept(2));
        let (mut stalled, mut other) = (stalled.unwrap(), other.unwrap());
        let chunk = Bytes::from(vec![0; 32 * 1024]);
        let mut rounds = 0;
        let mut was_full = false;
        let closed = loop {
            agent.send(Message::Data(1, chunk.clone()));
            rounds += 1;
            assert!(rounds < 5000, "it is never closed");
            tokio::time::sleep(Duration::from_millis(1)).await;
            let metrics = rig.metrics();
            was_full |= metrics.contains("server_full_frontend_write_queues 1\n");
            if metrics.contains("tunnels_closed_total{reason=\"stalled\"} 1") {
                break agent.message().await;
            }
        };
        assert_eq!(was_full, mode == Mode::HttpConnect);
        for gauge in [
            "full_frontend_write_queues",
            "blocked_frontend_write_channels",
        ] {
            rig.until_counted(&format!("{gauge} 0")).await;
        }
        assert_eq!(closed, Message::CloseRequest(1));
        agent.send(Message::Data(2, Bytes::from_static(b"other")));
        let mut got = [0; 5];
        timeout(SOON, other.read_exact(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&got, b"other");
        let mut all = Vec::new();
        let end = timeout(SOON, stalled.read_to_end(&mut all)).await.unwrap();
        if mode == Mode::Grpc {
            assert!(end.is_err(), "it must not look complete");
        }
        drop(stalled);
        until("memory is given back", || rig.budget.used() == 0).await;
    }
}

#[tokio::test]
async fn bulk_in_both_directions_arrives_whole() {
    for mode in MODES {
        let (rig, _agent) = Rig::with_agent(Options::new(mode)).await;
        let echo = Target::echo().await;
        let tunnel = rig.dialer().dial(&echo).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(tunnel);
        let sent: Vec<u8> = (0..251_u8).cycle().take(MUCH).collect();
        let want = sent.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        timeout(SOON, reader.read_to_end(&mut got))
            .await
            .expect("it does not end")
            .unwrap();
        writing.await.unwrap();
        assert!(got == want, "{mode:?}: {} bytes of {MUCH}", got.len());
    }
}
