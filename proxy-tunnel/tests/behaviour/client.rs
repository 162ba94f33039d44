// SPDX-License-Identifier: Apache-2.0

//! The client library: both modes, both sockets, reused connections, typed failures.

use std::time::Duration;

use proxy_tunnel::client::{Connection, DialError, Dialer, Endpoint, Mode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{Options, Rig, Target, round_trip};

#[tokio::test]
async fn both_modes_over_both_sockets() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, _agent) = Rig::with_agent(Options::new(mode)).await;
        let echo = Target::echo().await;
        for endpoint in [Endpoint::unix(&rig.socket), rig.tls_endpoint()] {
            let dialer = Dialer::new(endpoint, mode).user_agent("test");
            let mut tunnel = dialer.dial(&echo).await.unwrap();
            round_trip(&mut tunnel, b"hello").await;
            tunnel.shutdown().await.unwrap();
            assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn one_connection_for_many_tunnels() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let echo = Target::echo().await;
    let connection = Connection::open(&Endpoint::unix(&rig.socket), "test")
        .await
        .unwrap();
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        tunnels.push(connection.dial(&echo).await.unwrap());
    }
    for tunnel in &mut tunnels {
        round_trip(tunnel, b"hello").await;
    }
    rig.until_counted("established_connections 20").await;
    // One that ends does not end others, nor does a dial that fails.
    tunnels.truncate(1);
    connection.dial("127.0.0.1:1").await.unwrap_err();
    rig.until_counted("established_connections 1").await;
    round_trip(&mut tunnels[0], b"still here").await;
    drop(connection);
    round_trip(&mut tunnels[0], b"and still").await;
    drop(tunnels);
    rig.until_counted("established_connections 0").await;
}

#[tokio::test]
async fn failures_have_types() {
    let nowhere = Dialer::new(Endpoint::unix("/nonexistent/socket"), Mode::Grpc);
    let error = nowhere.dial("a:1").await.unwrap_err();
    assert!(matches!(error, DialError::Server { .. }), "{error:?}");
    assert_eq!(error.reason(), "tunnelstarted");
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let rig = Rig::new(mode).await;
        let error = rig.dialer().dial("a:1").await.unwrap_err();
        assert_eq!(error.reason(), "endpoint");
        assert!(
            format!("{error:?}").contains("No agent available"),
            "{error:?}"
        );
        let agent = super::peers::Peer::accepted_agent(&rig).await;
        let limit = Duration::from_millis(100);
        let error = rig.dialer().limit(limit).dial("a:1").await.unwrap_err();
        assert_eq!(error.reason(), "timeout");
        drop(agent);
    }
    let other = Rig::new(Mode::HttpConnect).await;
    let wrong = Dialer::new(Endpoint::unix(&other.socket), Mode::Grpc);
    let error = wrong.dial("a:1").await.unwrap_err();
    assert!(
        matches!(
            error,
            DialError::StreamSetup { .. } | DialError::Server { .. }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_dropped_tunnel_sends_what_was_written() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, _agent) = Rig::with_agent(Options::new(mode)).await;
        let target = Target::new().await;
        let dialer = rig.dialer();
        let (tunnel, accepted) = tokio::join!(dialer.dial(&target.address), target.accept());
        let (mut tunnel, mut accepted) = (tunnel.unwrap(), accepted);
        tunnel.write_all(&vec![7; 200_000]).await.unwrap();
        tunnel.flush().await.unwrap();
        drop(tunnel);
        let mut all = Vec::new();
        accepted.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 200_000);
    }
}
