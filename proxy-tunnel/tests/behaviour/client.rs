// SPDX-License-Identifier: Apache-2.0

//! The client library: both modes, both sockets, reused connections, typed failures.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use hyper::body::Incoming;
use proxy_tunnel::client::{Connection, DialError, Dialer, Endpoint, Mode};
use proxy_tunnel::server::transport::{self, Answer, Settings};
use proxy_tunnel::wire::{DialResponse, Message, TUNNEL};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tonic::async_trait;
use tonic::body::Body;

use super::rig::{Agent, Options, Rig, Scratch, Target, round_trip};

#[expect(dead_code, reason = "its command line is not used here")]
#[path = "../../examples/dial.rs"]
mod example;

#[tokio::test]
async fn the_example_works() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let target = Target::new().await;
    let answering = async {
        let mut stream = target.accept().await;
        let mut head = vec![0; 4096];
        let length = stream.read(&mut head).await.unwrap();
        assert!(head[..length].starts_with(b"GET /success HTTP/1.0\r\n"));
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nhello")
            .await
            .unwrap();
    };
    let asking = example::request(&rig.socket, &target.address, "/success");
    let (answer, ()) = tokio::join!(asking, answering);
    assert!(answer.unwrap().ends_with("\r\n\r\nhello"));
    let error = example::request(&rig.socket, "127.0.0.1:1", "/").await;
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with("connect: connection refused"), "{error}");
}

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

/// The client starts before its server and the agent (hypershift #8579).
#[tokio::test]
async fn a_client_that_starts_first_is_served_when_the_others_are_there() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let mut options = Options::new(mode);
        let scratch = Arc::new(Scratch::new());
        let dialer = Dialer::new(Endpoint::unix(scratch.file(&options.id)), mode);
        options.scratch = Some(scratch);
        let echo = Target::echo().await;
        let error = dialer.dial(&echo).await.unwrap_err();
        assert!(matches!(error, DialError::Server { .. }), "{error}");
        let rig = Rig::with(options).await;
        let error = format!("{:?}", dialer.dial(&echo).await.unwrap_err());
        assert!(error.contains("No agent available"), "{error}");
        let _agent = Agent::start(&rig, &[rig.agents.port()]);
        rig.until_ready().await;
        round_trip(&mut dialer.dial(&echo).await.unwrap(), b"served").await;
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
    // A tunnel that ends does not end others, nor does a dial that fails.
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

/// A server that replies to every dial with this connection ID, and also sends packets of other
/// connections.
struct Confused(i64);

#[async_trait]
impl Answer for Confused {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let connect_id = self.0;
        transport::streaming(TUNNEL, request, |request| async move {
            let mut inbound = request.into_inner();
            let Ok(Some(Ok(Message::DialRequest(dial)))) = inbound.message().await else {
                panic!("no dial");
            };
            let answer = |random| {
                Message::DialResponse(DialResponse {
                    error: String::new(),
                    connect_id,
                    random,
                })
            };
            let data =
                |id, text: &'static str| Message::Data(id, Bytes::from_static(text.as_bytes()));
            let other = connect_id + 1;
            let messages = [
                answer(dial.random.wrapping_add(1)),
                Message::CloseDial(dial.random.wrapping_add(1)),
                answer(dial.random),
                data(other, "another's"),
                Message::Finish(other),
                Message::closed(other, ""),
                Message::closed(other, "another's"),
                answer(dial.random),
                data(connect_id, "own"),
                Message::closed(connect_id, ""),
            ];
            Ok(tonic::Response::new(stream::iter(messages.map(Ok))))
        })
        .await
    }
}

#[tokio::test]
async fn what_is_sent_for_others_is_ignored() {
    let scratch = Scratch::new();
    for connect_id in [3, 0] {
        let path = scratch.file(&format!("socket-{connect_id}"));
        let listener = UnixListener::bind(&path).unwrap();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let settings = Settings::tunnels(Duration::from_hours(1));
            // The client closes the stream.
            let _ =
                transport::serve(stream, settings, Arc::new(Confused(connect_id)), pending()).await;
        });
        let dialed = Dialer::new(Endpoint::unix(&path), Mode::Grpc)
            .dial("a:1")
            .await;
        if connect_id == 0 {
            assert_eq!(dialed.unwrap_err().reason(), "endpoint");
        } else {
            let mut all = String::new();
            dialed.unwrap().read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "own");
        }
        serving.await.unwrap();
    }
}
