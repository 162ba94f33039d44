// SPDX-License-Identifier: Apache-2.0

//! HTTP CONNECT, byte by byte: facts §2 and the defects of upstream that only this mode has.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proxy_tunnel::client::Mode;
use proxy_tunnel::wire::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::peers::Peer;
use super::rig::{Options, Rig, SOON, Target, WHILE, round_trip};

const ESTABLISHED: &str = "HTTP/1.1 200 Connection Established\r\n\r\n";

async fn client(rig: &Rig, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(&rig.socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

async fn connect(rig: &Rig, address: &str) -> UnixStream {
    client(
        rig,
        format!("CONNECT {address} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes(),
    )
    .await
}

/// Reads until the server closes the connection.
async fn rest(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("it stays open")
        .unwrap();
    String::from_utf8(all).unwrap()
}

async fn established(stream: &mut UnixStream) {
    let mut head = vec![0; ESTABLISHED.len()];
    timeout(SOON, stream.read_exact(&mut head))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8(head).unwrap(), ESTABLISHED);
}

#[tokio::test]
async fn without_an_agent() {
    let rig = Rig::new(Mode::HttpConnect).await;
    assert_eq!(
        rest(&mut connect(&rig, "a:1").await).await,
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n\
         currently no tunnels available: No agent available"
    );
    rig.until_counted("dial_failure_count{reason=\"no_agent\"} 1")
        .await;
    rig.until_counted("http_connections 0").await;
}

#[tokio::test]
async fn the_agents_error() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    for (error, status) in [
        (
            "dial tcp 10.0.0.1:1: connect: connection refused",
            "502 Bad Gateway",
        ),
        ("dial tcp 10.0.0.1:1: i/o timeout", "504 Gateway Timeout"),
        (
            "dial tcp 10.0.0.1:1: socket: too many open files",
            "503 Service Unavailable",
        ),
    ] {
        let mut stream = connect(&rig, "10.0.0.1:1").await;
        let request = agent.asked().await;
        assert_eq!(
            (request.protocol.as_str(), request.address.as_str()),
            ("tcp", "10.0.0.1:1")
        );
        assert!(request.random > 0);
        agent.send(Message::dial_error(request.random, error));
        assert_eq!(
            rest(&mut stream).await,
            format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{error}"
            )
        );
    }
}

#[tokio::test]
async fn a_dial_that_is_not_answered() {
    let mut options = Options::new(Mode::HttpConnect);
    options.dial_timeout = Some(Duration::from_millis(100));
    let rig = Rig::with(options).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = connect(&rig, "a:1").await;
    let request = agent.asked().await;
    assert_eq!(
        rest(&mut stream).await,
        "HTTP/1.1 504 Gateway Timeout\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\
         Backend dial timeout: timed out waiting for backend dial\r\n"
    );
    assert_eq!(agent.message().await, Message::CloseDial(request.random));
}

/// Defect 4 of upstream, in this mode.
#[tokio::test]
async fn the_agent_ends_while_the_dial_is_pending() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = connect(&rig, "a:1").await;
    agent.asked().await;
    drop(agent);
    assert_eq!(
        rest(&mut stream).await,
        "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\
         Backend context error: context canceled\r\n"
    );
    rig.until_counted("dial_failure_count{reason=\"backend_close\"} 1")
        .await;
    rig.until_counted("pending_backend_dials 0").await;
}

#[tokio::test]
async fn a_dial_that_the_agent_gives_up_ends_without_bytes() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = connect(&rig, "a:1").await;
    let request = agent.asked().await;
    agent.send(Message::CloseDial(request.random));
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn other_methods_and_bad_targets() {
    let rig = Rig::new(Mode::HttpConnect).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a:1/ HTTP/1.1\r\nHost: a:1\r\n\r\n",
    ] {
        let answer = rest(&mut client(&rig, request.as_bytes()).await).await;
        assert!(
            answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
            "{answer}"
        );
        assert!(
            answer.ends_with("\r\n\r\nthis proxy only supports CONNECT passthrough\n"),
            "{answer}"
        );
    }
    let answer = rest(&mut connect(&rig, "host:notaport").await).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n400 Bad Request"), "{answer}");
}

#[tokio::test]
async fn the_host_field_is_ignored_and_bytes_behind_the_head_are_forwarded() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = client(&rig, b"CONNECT b:2 HTTP/1.1\r\nHost: a:1\r\n\r\nearly").await;
    assert_eq!(agent.asked().await.address, "b:2");
    stream.write_all(b" and late").await.unwrap();
    // The dial is still pending: the server writes nothing before the response.
    let silent = timeout(WHILE, stream.read_u8()).await;
    assert!(silent.is_err(), "{silent:?}");
    drop(agent);
    rest(&mut stream).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = client(&rig, b"CONNECT b:2 HTTP/1.1\r\n\r\nearly").await;
    agent.accept(1).await;
    established(&mut stream).await;
    assert_eq!(
        agent.message().await,
        Message::Data(1, Bytes::from_static(b"early"))
    );
}

/// Defect 3 of upstream: there, the target's bytes arrive before the 200, or in one read with it.
#[tokio::test]
async fn the_200_comes_alone_and_first() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    for number in 1..=100 {
        let mut stream = connect(&rig, "a:1").await;
        agent.accept(number).await;
        agent.send(Message::Data(number, Bytes::from_static(b"banner")));
        // The client reads like kube-apiserver: all bytes that have arrived, at irregular times.
        if number % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        let mut first = [0; 4096];
        let length = timeout(SOON, stream.read(&mut first))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            &first[..length],
            ESTABLISHED.as_bytes(),
            "connection {number}"
        );
        let length = timeout(SOON, stream.read(&mut first))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&first[..length], b"banner");
    }
}

#[tokio::test]
async fn the_agents_close_is_a_regular_end_and_an_error_is_none() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = connect(&rig, "a:1").await;
    agent.accept(1).await;
    established(&mut stream).await;
    agent.send(Message::Data(1, Bytes::from_static(b"all")));
    agent.send(Message::closed(1, ""));
    assert_eq!(rest(&mut stream).await, "all");
    rig.until_counted("established_connections 0").await;
}

/// Defect 15 of upstream: there, tunnel and target stay open.
#[tokio::test]
async fn a_client_that_leaves_while_its_dial_is_pending_leaves_nothing() {
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    for number in 1..=20 {
        let stream = connect(&rig, "a:1").await;
        let request = agent.asked().await;
        drop(stream);
        assert_eq!(agent.message().await, Message::CloseDial(request.random));
        agent.send(Message::DialResponse(proxy_tunnel::wire::DialResponse {
            error: String::new(),
            connect_id: number,
            random: request.random,
        }));
        assert_eq!(agent.message().await, Message::CloseRequest(number));
    }
    rig.until_counted("http_connections 0").await;
    rig.until_counted("pending_backend_dials 0").await;
}

/// Defect 6 of upstream: there, the response is lost.
#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    // Upstream's agent cannot close the sending side towards the target; the response must still
    // arrive.
    let rig = Rig::new(Mode::HttpConnect).await;
    let mut agent = Peer::accepted_agent(&rig).await;
    let mut stream = connect(&rig, "a:1").await;
    agent.accept(1).await;
    established(&mut stream).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(
        agent.message().await,
        Message::Data(1, Bytes::from_static(b"question"))
    );
    agent.nothing().await;
    agent.send(Message::Data(1, Bytes::from_static(b"answer")));
    agent.send(Message::closed(1, ""));
    assert_eq!(rest(&mut stream).await, "answer");
}

#[tokio::test]
async fn a_half_close_reaches_the_target_between_ours() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let target = Target::new().await;
    let (stream, accepted) = tokio::join!(connect(&rig, &target.address), target.accept());
    let (mut stream, mut accepted) = (stream, accepted);
    established(&mut stream).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut question = String::new();
    timeout(SOON, accepted.read_to_string(&mut question))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(question, "question");
    tokio::time::sleep(WHILE).await;
    accepted.write_all(b"answer").await.unwrap();
    drop(accepted);
    assert_eq!(rest(&mut stream).await, "answer");
    rig.until_counted("established_connections 0").await;
}

#[tokio::test]
async fn a_target_that_half_closes_still_gets_bytes() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let target = Target::new().await;
    let (stream, accepted) = tokio::join!(connect(&rig, &target.address), target.accept());
    let (mut stream, mut accepted) = (stream, accepted);
    established(&mut stream).await;
    accepted.write_all(b"bye").await.unwrap();
    accepted.shutdown().await.unwrap();
    let mut bye = [0; 3];
    stream.read_exact(&mut bye).await.unwrap();
    assert_eq!(stream.read(&mut bye).await.unwrap(), 0);
    stream.write_all(b"more").await.unwrap();
    drop(stream);
    let mut more = String::new();
    timeout(SOON, accepted.read_to_string(&mut more))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(more, "more");
}

#[tokio::test]
async fn a_client_that_leaves_closes_its_target() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let target = Target::new().await;
    let (stream, accepted) = tokio::join!(connect(&rig, &target.address), target.accept());
    let mut accepted = accepted;
    drop(stream);
    let start = Instant::now();
    let end = timeout(SOON, accepted.read(&mut [0])).await.unwrap();
    assert_eq!(end.unwrap(), 0);
    drop(accepted);
    agent.until_counted("open_endpoint_connections 0").await;
    assert!(start.elapsed() < Duration::from_secs(5));
    rig.until_counted("http_connections 0").await;
}

#[tokio::test]
async fn many_connections_at_once_each_with_its_own_bytes() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let echo = Target::echo().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100_u8 {
        let (dialer, echo) = (rig.dialer(), echo.clone());
        tasks.spawn(async move {
            let mut tunnel = dialer.dial(&echo).await.unwrap();
            round_trip(&mut tunnel, &vec![number; 100_000]).await;
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.unwrap();
    }
    rig.until_counted("established_connections 0").await;
}

/// Go's clients offer h2 too.
#[tokio::test]
async fn http_1_is_chosen_whatever_else_is_offered() {
    let rig = Rig::new(Mode::HttpConnect).await;
    for (offered, want) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"http/1.1"[..])),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let current = rig.scratch.client_tls().current();
        let mut config = rustls::ClientConfig::clone(&current.get().config);
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio::net::TcpStream::connect(rig.tls).await.unwrap();
        let mut session = connector.connect(name, stream).await.unwrap();
        assert_eq!(session.get_ref().1.alpn_protocol(), want);
        session
            .write_all(b"CONNECT a:1 HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        let read = timeout(SOON, session.read_to_string(&mut answer)).await;
        read.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.ends_with("No agent available"), "{answer}");
    }
}
