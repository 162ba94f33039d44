// SPDX-License-Identifier: Apache-2.0

//! Tests the endpoint from the clients' point of view: responses, slow clients, and the shutdown.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use super::*;
use crate::listen::Bind;

/// A time limit that is long for loopback.
const PATIENCE: Duration = Duration::from_secs(30);

struct Echo;

impl Handler for Echo {
    async fn get(&self, path: &str, query: Option<&str>) -> Reply {
        let body = format!("{path} {query:?}");
        text(StatusCode::OK, body)
    }
}

fn started() -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let any = Bind::One("127.0.0.1:0".parse().unwrap());
    let listener = any.listen("--listen").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stopped = async move { drop(stopped.await) };
    spawn("echo", listener, Echo, stopped).unwrap();
    (address, stop)
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn requests_are_answered() {
    let (address, _stop) = started();
    let answer = ask(address, "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n/a Some(\"b=c\")"), "{answer}");
    let answer = ask(address, "HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.contains("\r\ncontent-length: 7\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = ask(
        address,
        "POST /a HTTP/1.1\r\nHost: x\r\ncontent-length: 0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
}

#[test]
fn a_head_without_an_end_is_refused() {
    let (address, _stop) = started();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let line = format!("GET / HTTP/1.1\r\nx: {}\r\n", "y".repeat(2 * MAX_REQUEST));
    // The server may close the connection before everything is written.
    let _ = stream.write_all(line.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
}

#[test]
fn slow_clients_keep_no_other_out() {
    let (address, _stop) = started();
    let mut slow: Vec<TcpStream> = (0..2 * MAX_CONNECTIONS)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let answer = ask(address, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // The oldest connection has been closed, long before its time limit.
    let first = &mut slow[0];
    first.set_read_timeout(Some(TIME_LIMIT / 2)).unwrap();
    let ended = first.read(&mut [0]);
    let is_over = match &ended {
        Ok(bytes) => *bytes == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    };
    assert!(is_over, "{ended:?}");
}

#[test]
fn it_stops() {
    let (address, stop) = started();
    let mut open = TcpStream::connect(address).unwrap();
    ask(address, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n");
    stop.send(()).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = open.read(&mut [0]);
    let is_over = match &ended {
        Ok(bytes) => *bytes == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    };
    assert!(is_over, "{ended:?}");
    let deadline = std::time::Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_ok() {
        assert!(std::time::Instant::now() < deadline, "it still listens");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn metrics_or_the_error() {
    let good = metrics(Ok::<_, &str>("a 1\n".to_owned()));
    assert_eq!(good.status(), StatusCode::OK);
    assert_eq!(good.headers()[CONTENT_TYPE], prometheus::TEXT_FORMAT);
    let bad = metrics(Err("no"));
    assert_eq!(bad.status(), StatusCode::INTERNAL_SERVER_ERROR);
}
