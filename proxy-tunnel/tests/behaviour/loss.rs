// SPDX-License-Identifier: Apache-2.0

//! A part of the tunnel disappears while connections are open: an interrupted connection must not look complete, and
//! nothing of it is left. Upstream #748, #914 and defect 4.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use proxy_tunnel::client::{DialError, Dialer, Mode, Tunnel};
use proxy_tunnel::wire::Message;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::peers::Peer;
use super::rig::{Options, Rig, SOON, Target, load, until};

#[tokio::test]
async fn a_lost_agent_is_an_error_for_grpc_clients() {
    let rig = Rig::new(Mode::Grpc).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut client = Peer::client(&rig).await;
    client.dial(1, "a:1");
    agent.accept(1).await;
    client.answered().await;
    let mut pending = Peer::client(&rig).await;
    pending.dial(2, "b:1");
    agent.asked().await;
    drop(agent);
    let Message::CloseResponse(closed) = client.message().await else {
        panic!("no close");
    };
    assert_eq!(closed.connect_id, 1);
    assert!(!closed.error.is_empty());
    assert_eq!(
        client.next().await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
    let answer = pending.answered().await;
    assert_eq!(answer.error, "Backend context error: context canceled");
    rig.until_counted("established_connections 0").await;
    rig.until_counted("pending_backend_dials 0").await;
}

/// Opens a tunnel with this connection ID whose target has sent the first bytes of a response.
async fn begun(rig: &Rig, agent: &mut Peer, number: i64) -> Tunnel {
    let dialer = Dialer::new(rig.tls_endpoint(), rig.mode);
    let (tunnel, _) = tokio::join!(dialer.dial("a:1"), agent.accept(number));
    let mut tunnel = tunnel.unwrap();
    agent.send(Message::Data(number, Bytes::from_static(b"half of")));
    let mut got = [0; 7];
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"half of");
    tunnel
}

/// For clients of CONNECT, an interruption is a TCP reset, or the end of TLS without `close_notify`: curl and Go report
/// an error.
#[tokio::test]
async fn only_a_closed_connection_looks_complete() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let rig = Rig::new(mode).await;
        let mut agent = Peer::accepted_agent(&rig).await;
        let mut closed = begun(&rig, &mut agent, 1).await;
        agent.send(Message::Data(1, Bytes::from_static(b" it")));
        agent.send(Message::closed(1, ""));
        let mut rest = String::new();
        let read = timeout(SOON, closed.read_to_string(&mut rest)).await;
        read.unwrap().unwrap();
        assert_eq!(rest, " it", "{mode:?}");
        let mut failed = begun(&rig, &mut agent, 2).await;
        agent.send(Message::closed(2, "read tcp: connection reset by peer"));
        let mut cut = begun(&rig, &mut agent, 3).await;
        drop(agent);
        for tunnel in [&mut failed, &mut cut] {
            let read = timeout(SOON, tunnel.read(&mut [0])).await.unwrap();
            let kind = read.unwrap_err().kind();
            assert!(
                matches!(kind, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
                "{mode:?}: {kind:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_target_that_resets_resets_the_client() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let target = Target::new().await;
    let dialer = rig.dialer();
    let (tunnel, accepted) = tokio::join!(dialer.dial(&target.address), target.accept());
    socket2::SockRef::from(&accepted)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(accepted);
    let read = timeout(SOON, tunnel.unwrap().read(&mut [0])).await.unwrap();
    let error = read.unwrap_err();
    assert!(
        error.to_string().contains("connection reset by peer"),
        "{error}"
    );
}

/// Upstream #914: an agent disconnects while many dials are pending.
#[tokio::test]
async fn an_agent_that_goes_with_500_pending_dials_leaves_nothing() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let rig = Rig::new(mode).await;
        let mut agent = Peer::accepted_agent(&rig).await;
        let mut dials = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let dialer = rig.dialer();
            dials.spawn(async move { dialer.dial("a:1").await });
        }
        for _ in 0..500 {
            agent.asked().await;
        }
        drop(agent);
        while let Some(outcome) = timeout(SOON, dials.join_next())
            .await
            .expect("a dial hangs")
        {
            let error = outcome.unwrap().unwrap_err();
            assert!(
                matches!(
                    error,
                    DialError::Endpoint { .. } | DialError::Refused { .. }
                ),
                "{error:?}"
            );
        }
        rig.until_counted("pending_backend_dials 0").await;
        rig.until_counted("dial_failure_count{reason=\"backend_close\"} 500")
            .await;
        rig.until_counted("http_connections 0").await;
    }
}

#[tokio::test]
async fn a_lost_server_resets_targets_and_is_connected_to_again() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let target = Target::new().await;
    let dialer = rig.dialer();
    let (tunnel, accepted) = tokio::join!(dialer.dial(&target.address), target.accept());
    let (_tunnel, mut accepted) = (tunnel.unwrap(), accepted);
    rig.server.streams()[0].outbox.end();
    let read = timeout(SOON, accepted.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    agent.until_counted("open_endpoint_connections 0").await;
    until("another stream", || {
        rig.server.is_ready() && agent.sync.is_connected()
    })
    .await;
}

/// Upstream #889: there, a close from both ends at once makes the server exit.
#[tokio::test]
async fn closes_from_both_ends_at_once() {
    let rig = Rig::new(Mode::Grpc).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let count = load(300, 100_000);
    for number in 1..=i64::try_from(count).unwrap() {
        let mut client = Peer::client(&rig).await;
        client.dial(number, "a:1");
        agent.accept(number).await;
        client.answered().await;
        client.send(Message::CloseRequest(number));
        agent.send(Message::closed(number, ""));
        agent.send(Message::closed(number, ""));
        while client.message().await != Message::closed(number, "") {}
        client.send(Message::CloseRequest(number));
    }
    rig.until_counted("established_connections 0").await;
    rig.until_counted(&format!("connection_duration_seconds_count {count}"))
        .await;
}

#[tokio::test]
async fn a_dial_that_is_dropped_leaves_no_connection() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let target = Target::new().await;
    for _ in 0..50 {
        let dialer = rig.dialer();
        let dial = dialer.dial(&target.address);
        // The client cancels sometimes before, sometimes after the response.
        let _ = timeout(Duration::from_micros(fastrand::u64(1..3000)), dial).await;
    }
    until("all streams have ended", || {
        let text = rig.metrics();
        text.contains("established_connections 0")
            && text.contains("grpc_connections{service_method=\"Proxy\"} 0")
            || !text.contains("established_connections")
    })
    .await;
    agent.until_counted("open_endpoint_connections 0").await;
    rig.until_counted("pending_backend_dials 0").await;
}

#[tokio::test]
async fn refused_targets_are_named() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let target = Target::new().await;
    let address = target.address.clone();
    drop(target);
    // Nothing listens on this address any more.
    TcpStream::connect(&address).await.unwrap_err();
    let error = rig.dialer().dial(&address).await.unwrap_err();
    assert_eq!(error.reason(), "endpoint");
    let text = error.to_string();
    assert!(
        text.contains(&format!("dial tcp {address}: connect: connection refused")),
        "{text}"
    );
}
