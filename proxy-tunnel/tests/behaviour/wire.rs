// SPDX-License-Identifier: Apache-2.0

//! The server between a client and an agent that both speak upstream's protocol: which packet the server sends in reply
//! to which, on both of its sides.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proxy_tunnel::channel::Settings;
use proxy_tunnel::client::Mode;
use proxy_tunnel::wire::schema::Packet;
use proxy_tunnel::wire::{DialResponse, Message, PacketType};
use tokio::time::sleep;
use tonic::Code;

use super::peers::Peer;
use super::rig::{Options, Rig};

pub async fn pair() -> (Rig, Peer, Peer) {
    let rig = Rig::new(Mode::Grpc).await;
    let agent = Peer::accepted_agent(&rig).await;
    let client = Peer::client(&rig).await;
    (rig, agent, client)
}

pub fn data(connect_id: i64, text: &'static str) -> Message {
    Message::Data(connect_id, Bytes::from_static(text.as_bytes()))
}

/// Returns a client and an agent with an established connection, whose connection ID is 3.
pub async fn established() -> (Rig, Peer, Peer) {
    let (rig, mut agent, mut client) = pair().await;
    client.dial(7, "10.0.0.1:443");
    let request = agent.accept(3).await;
    assert_eq!(
        (request.random, request.address.as_str()),
        (7, "10.0.0.1:443")
    );
    let answer = client.answered().await;
    assert_eq!(
        (answer.random, answer.connect_id, answer.error.as_str()),
        (7, 3, "")
    );
    (rig, agent, client)
}

#[tokio::test]
async fn agents_learn_the_servers_name_and_count() {
    let rig = Rig::new(Mode::Grpc).await;
    let agent = Peer::accepted_agent(&rig).await;
    assert_eq!(agent.headers.get("serverid").unwrap(), "server");
    assert_eq!(agent.headers.get("servercount").unwrap(), "1");
    assert!(agent.headers.get("konnectivity-extensions").is_none());
}

#[tokio::test]
async fn a_dial_bytes_and_a_close_by_the_client() {
    let (rig, mut agent, mut client) = established().await;
    client.send(data(3, "ping"));
    assert_eq!(agent.message().await, data(3, "ping"));
    agent.send(data(3, "pong"));
    assert_eq!(client.message().await, data(3, "pong"));
    client.send(Message::CloseRequest(3));
    assert_eq!(agent.message().await, Message::CloseRequest(3));
    // Until the agent confirms the close, its data are forwarded.
    agent.send(data(3, "rest"));
    agent.send(Message::closed(3, ""));
    assert_eq!(client.message().await, data(3, "rest"));
    assert_eq!(client.message().await, Message::closed(3, ""));
    rig.until_counted("established_connections 0").await;
    rig.until_counted("stream_packets_total{packet_type=\"DATA\",segment=\"from_agent\"} 2")
        .await;
}

#[tokio::test]
async fn without_an_agent() {
    let rig = Rig::new(Mode::Grpc).await;
    let mut client = Peer::client(&rig).await;
    client.dial(7, "a:1");
    let answer = client.answered().await;
    assert_eq!(
        (answer.random, answer.error.as_str()),
        (7, "No agent available")
    );
    client.send(Message::CloseRequest(1));
    client.nothing().await;
    rig.until_counted("dial_failure_count{reason=\"no_agent\"} 1")
        .await;
}

#[tokio::test]
async fn an_agents_error_is_passed_on() {
    let (rig, mut agent, mut client) = pair().await;
    client.dial(7, "a:1");
    let request = agent.asked().await;
    agent.send(Message::dial_error(request.random, "dial tcp: no"));
    let answer = client.answered().await;
    assert_eq!(
        (answer.connect_id, answer.error.as_str()),
        (0, "dial tcp: no")
    );
    rig.until_counted("dial_failure_count{reason=\"error_response\"} 1")
        .await;
    client.finish();
    assert_eq!(client.next().await.unwrap(), None);
    agent.nothing().await;
}

#[tokio::test]
async fn packets_before_a_dial() {
    let rig = Rig::new(Mode::Grpc).await;
    let mut client = Peer::client(&rig).await;
    client.send(Message::CloseRequest(4));
    assert_eq!(
        client.message().await,
        Message::closed(4, "backend uninitialized")
    );
    client.send(data(5, "x"));
    assert_eq!(
        client.message().await,
        Message::closed(5, "backend not initialized")
    );
    // From now on the server only drains the stream.
    client.dial(7, "a:1");
    client.nothing().await;
}

#[tokio::test]
async fn an_answer_to_an_unknown_dial_is_closed() {
    let (_rig, mut agent, _client) = pair().await;
    agent.send(Message::DialResponse(DialResponse {
        error: String::new(),
        connect_id: 9,
        random: 1,
    }));
    assert_eq!(agent.message().await, Message::CloseRequest(9));
    agent.send(data(0, "x"));
    // The target may send until it is closed, so the server does not reply to the first packet.
    agent.send(data(9, "x"));
    agent.send(data(8, "x"));
    assert_eq!(agent.message().await, Message::CloseRequest(8));
}

#[tokio::test]
async fn a_dial_that_the_client_gives_up() {
    let (rig, mut agent, client) = pair().await;
    client.dial(7, "a:1");
    agent.asked().await;
    client.send(Message::CloseDial(7));
    assert_eq!(agent.message().await, Message::CloseDial(7));
    // Upstream's agent ignores this packet.
    agent.send(Message::DialResponse(DialResponse {
        error: String::new(),
        connect_id: 3,
        random: 7,
    }));
    assert_eq!(agent.message().await, Message::CloseRequest(3));
    rig.until_counted("dial_failure_count{reason=\"frontend_close\"} 1")
        .await;
    rig.until_counted("pending_backend_dials 0").await;
}

#[tokio::test]
async fn a_dial_that_the_agent_gives_up() {
    let (_rig, mut agent, mut client) = pair().await;
    client.dial(7, "a:1");
    agent.asked().await;
    agent.send(Message::CloseDial(7));
    assert_eq!(client.message().await, Message::CloseDial(7));
}

/// This is also defect 5 of upstream, where the gauge is not decremented.
#[tokio::test]
async fn a_clients_stream_that_ends_closes_its_connection() {
    let (rig, mut agent, mut client) = established().await;
    rig.until_counted("established_connections 1").await;
    rig.until_counted("grpc_connections{service_method=\"Proxy\"} 1")
        .await;
    client.finish();
    assert_eq!(agent.message().await, Message::CloseRequest(3));
    assert_eq!(client.next().await.unwrap(), None);
    rig.until_counted("established_connections 0").await;
    rig.until_counted("connection_duration_seconds_count 1")
        .await;
    drop(client);
    rig.until_counted("grpc_connections{service_method=\"Proxy\"} 0")
        .await;
    let client = Peer::client(&rig).await;
    client.dial(8, "a:1");
    agent.asked().await;
    drop(client);
    assert_eq!(agent.message().await, Message::CloseDial(8));
}

/// Go's gRPC cancels the stream of a peer that has vanished, and counts it as canceled.
#[tokio::test]
async fn peers_that_vanish_are_counted_as_canceled() {
    let (rig, mut agent, client) = established().await;
    client.vanish();
    assert_eq!(agent.message().await, Message::CloseRequest(3));
    let canceled = |segment| {
        format!(
            "stream_errors_total{{code=\"Canceled\",packet_type=\"Unknown\",segment=\"{segment}\"}} 1"
        )
    };
    rig.until_counted(&canceled("from_client")).await;
    agent.vanish();
    rig.until_counted(&canceled("from_agent")).await;
    rig.until_counted("established_connections 0").await;
    // A regular end is not an error.
    let (rig, agent, mut client) = established().await;
    client.finish();
    assert_eq!(client.next().await.unwrap(), None);
    drop(client);
    rig.until_counted("grpc_connections{service_method=\"Proxy\"} 0")
        .await;
    assert!(!rig.metrics().contains("stream_errors_total{"));
    drop(agent);
}

/// Upstream's server closes the connection of an agent that pings more often than every 30 s, and that of a client that
/// pings more often than every 5 minutes, with all tunnels on it. Our server replies to the pings.
#[tokio::test]
async fn peers_that_ping_often_are_not_cut() {
    let often = Settings {
        keepalive: Duration::from_millis(2),
        ..Settings::link(Duration::ZERO)
    };
    let rig = Rig::new(Mode::Grpc).await;
    let mut agent = Peer::agent_by(&rig, &[("agentid", "raw")], often).await;
    agent.opened().await.unwrap();
    let mut client = Peer::client_by(&rig, often).await;
    client.dial(7, "a:1");
    agent.accept(3).await;
    client.answered().await;
    // The peers send some hundred pings.
    sleep(Duration::from_secs(1)).await;
    client.send(data(3, "ping"));
    assert_eq!(agent.message().await, data(3, "ping"));
    agent.send(data(3, "pong"));
    assert_eq!(client.message().await, data(3, "pong"));
    assert!(!rig.metrics().contains("stream_errors_total{"));
}

/// The server cannot distinguish this from a suspended agent, or from an agent behind a network that is cut silently.
#[tokio::test]
async fn an_agent_that_answers_no_pings_is_lost() {
    let mut options = Options::new(Mode::Grpc);
    options.pings = (Duration::from_millis(100), Duration::from_millis(100));
    let rig = Rig::with(options).await;
    let (mut sender, mut connection) = h2::client::handshake(Peer::session(&rig).await)
        .await
        .unwrap();
    let request = http::Request::post("https://localhost/AgentService/Connect")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("agentid", "suspended")
        .body(())
        .unwrap();
    let (response, _stream) = sender.send_request(request, false).unwrap();
    tokio::select! {
        response = response => assert_eq!(response.unwrap().headers()["serverid"], "server"),
        ended = &mut connection => panic!("{ended:?}"),
    }
    // From now on nothing reads from the connection.
    let mut client = Peer::client(&rig).await;
    client.dial(7, "a:1");
    let answer = client.answered().await;
    assert_eq!(answer.error, "Backend context error: context canceled");
    rig.until_counted("ready_backends{proxy_strategy=\"default\"} 0")
        .await;
}

/// Defect 13 of upstream: there, each of these packets makes its receiver exit.
#[tokio::test]
async fn packets_without_payload_and_of_unknown_types_are_ignored() {
    let (_rig, mut agent, mut client) = established().await;
    for kind in PacketType::ALL {
        let bytes = Packet {
            kind: kind as i32,
            payload: None,
        }
        .encode_to_vec();
        client.send_bytes(bytes.clone());
        if kind != PacketType::Drain {
            agent.send_bytes(bytes);
        }
    }
    for unknown in [&b"\x08\x63"[..], b"\x08\x63\x22\x02\x08\x03", b""] {
        client.send_bytes(unknown.to_vec());
        agent.send_bytes(unknown.to_vec());
    }
    client.send(data(3, "ping"));
    assert_eq!(agent.message().await, data(3, "ping"));
    agent.send(data(3, "pong"));
    assert_eq!(client.message().await, data(3, "pong"));
}

#[tokio::test]
async fn messages_beyond_four_mebibytes_end_one_stream_only() {
    let (rig, mut agent, mut client) = established().await;
    let mut other = Peer::client(&rig).await;
    other.dial(8, "a:1");
    agent.accept(4).await;
    other.answered().await;
    let large = Bytes::from(vec![0; 4 * 1024 * 1024 - 100]);
    client.send(Message::Data(3, large.clone()));
    // The server forwards it in parts, as they arrive.
    let mut left = large.len();
    while left > 0 {
        let Message::Data(3, part) = agent.message().await else {
            panic!("no bytes");
        };
        left -= part.len();
    }
    client.send(Message::Data(3, Bytes::from(vec![0; 4 * 1024 * 1024])));
    let status = client.next().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    rig.until_counted(
        "stream_errors_total{code=\"ResourceExhausted\",packet_type=\"Unknown\",segment=\"from_client\"} 1",
    )
    .await;
    assert_eq!(agent.message().await, Message::CloseRequest(3));
    other.send(data(4, "x"));
    assert_eq!(agent.message().await, data(4, "x"));
}

#[tokio::test]
async fn bytes_that_are_no_packet_end_one_stream_only() {
    let (_rig, mut agent, mut client) = established().await;
    client.send_bytes(vec![0xff; 10]);
    let status = client.next().await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(agent.message().await, Message::CloseRequest(3));
}

/// Defect 10 of upstream's client library: it may lose bytes that arrive directly after the response.
#[tokio::test]
async fn bytes_of_a_target_that_speaks_first_are_held_back() {
    let (_rig, mut agent, mut client) = pair().await;
    client.dial(7, "a:1");
    agent.accept(3).await;
    agent.send(data(3, "banner"));
    client.answered().await;
    let answered = std::time::Instant::now();
    assert_eq!(client.message().await, data(3, "banner"));
    assert!(answered.elapsed() > Duration::from_millis(4));
}

#[tokio::test]
async fn a_silent_agent_is_not_waited_for() {
    let mut options = Options::new(Mode::Grpc);
    options.dial_timeout = Some(Duration::from_millis(100));
    let rig = Rig::with(options).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut client = Peer::client(&rig).await;
    client.dial(7, "a:1");
    agent.asked().await;
    let answer = client.answered().await;
    assert_eq!(answer.error, "timed out waiting for backend dial");
    assert_eq!(agent.message().await, Message::CloseDial(7));
    rig.until_counted("dial_failure_count{reason=\"backend_dial_timeout\"} 1")
        .await;
    rig.until_counted("pending_backend_dials 0").await;
}
