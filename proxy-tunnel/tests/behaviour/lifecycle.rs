// SPDX-License-Identifier: Apache-2.0

//! Programs are terminated, killed, or run out of files, while connections are open.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::process::{Setup, get, until, until_connected};

/// Defect 7 of upstream: there, an open stream of a client keeps the server alive for ever.
#[test]
fn a_server_ends_in_bounded_time_with_tunnels_open() {
    for (timeout, least, most) in [("0s", 0, 5), ("2s", 2, 8)] {
        let setup = Setup::new();
        let mut server = setup.server(&[&format!("--graceful-shutdown-timeout={timeout}")]);
        let mut agent = setup.agent(&[]);
        let _target = setup.target();
        setup.until_ready();
        let mut client = setup.client(&["--request-path=/sleep?time=60"]);
        setup.until_server("established_connections 1");
        server.signal(libc::SIGTERM);
        let (code, took) = server.end();
        assert_eq!(code, Some(0), "{}", server.log());
        assert!(
            took >= Duration::from_secs(least) && took < Duration::from_secs(most),
            "{timeout}: {took:?}"
        );
        assert!(
            !setup.scratch.file("socket").exists(),
            "the socket is removed"
        );
        // The client exits with an error.
        assert_eq!(client.end().0, Some(1), "{}", client.log());
        assert!(agent.ended().is_none(), "the agent lives on");
    }
}

#[test]
fn a_server_that_drains_lets_requests_end() {
    let setup = Setup::new();
    let mut server = setup.server(&["--graceful-shutdown-timeout=30s"]);
    let _agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    let mut client = setup.client(&["--request-path=/sleep?time=2"]);
    setup.until_server("established_connections 1");
    server.signal(libc::SIGTERM);
    assert_eq!(client.end().0, Some(0), "{}", client.log());
    let (code, took) = server.end();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn the_second_signal_ends_a_server_at_once() {
    let setup = Setup::new();
    let mut server = setup.server(&["--graceful-shutdown-timeout=1h"]);
    let _agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    let _client = setup.client(&["--request-path=/sleep?time=60"]);
    setup.until_server("established_connections 1");
    server.signal(libc::SIGTERM);
    server.until_logged("Shutting down server.");
    server.signal(libc::SIGINT);
    assert_eq!(server.end().0, Some(1));
}

#[test]
fn an_agent_drains_at_the_first_signal_and_ends_at_the_second() {
    let setup = Setup::new();
    let server = setup.server(&[]);
    let mut agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    agent.until_logged("\"Start serving\"");
    agent.signal(libc::SIGTERM);
    server.until_logged("\"agent is draining\"");
    let mut client = setup.client(&[]);
    assert_eq!(client.end().0, Some(0), "it still serves: {}", client.log());
    assert!(agent.ended().is_none());
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.end().0, Some(0));
}

/// Upstream #748: there, the response looks complete.
#[test]
fn an_agent_that_is_killed_is_an_error_for_its_clients() {
    for mode in ["--mode=grpc", "--mode=http-connect"] {
        let setup = Setup::new();
        let _server = setup.server(&[mode]);
        let mut agent = setup.agent(&[]);
        let _target = setup.target();
        setup.until_ready();
        let mut client = setup.client(&[mode, "--request-path=/sleep?time=60"]);
        setup.until_server("established_connections 1");
        agent.signal(libc::SIGKILL);
        agent.end();
        assert_eq!(client.end().0, Some(1), "{}", client.log());
        setup.until_server("established_connections 0");
        setup.until_server("ready_backends{proxy_strategy=\"default\"} 0");
        let _again = setup.agent(&[]);
        setup.until_ready();
        let mut client = setup.client(&[mode]);
        assert_eq!(client.end().0, Some(0), "{}", client.log());
    }
}

/// The agent's counters of the server are checked too.
#[test]
fn a_server_that_is_killed_is_an_error_for_all_and_found_again() {
    let setup = Setup::new();
    let mut server = setup.server(&[]);
    let _agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    let mut client = setup.client(&["--request-path=/sleep?time=60"]);
    setup.until_agent("open_endpoint_connections 1");
    server.signal(libc::SIGKILL);
    server.end();
    assert_eq!(client.end().0, Some(1), "{}", client.log());
    for line in [
        "open_endpoint_connections 0",
        "open_server_connections 0",
        "server_connection_failure_count{direction=\"from_server\"} 1",
        "stream_errors_total{code=\"Unavailable\",packet_type=\"Unknown\",segment=\"to_agent\"} 1",
    ] {
        setup.until_agent(line);
    }
    // The socket's file of the killed server still exists.
    let _again = setup.server(&[]);
    setup.until_ready();
    let mut client = setup.client(&[]);
    assert_eq!(client.end().0, Some(0), "{}", client.log());
}

#[test]
fn a_server_without_files_says_so_and_recovers() {
    let setup = Setup::new();
    let server = setup.server(&["--mode=http-connect"]);
    let _agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    server.limit_files(5);
    let socket = setup.scratch.file("socket");
    let idle: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    server.until_logged("cannot accept a connection, trying again");
    drop(idle);
    server.until_logged("connections are accepted again");
    let mut client = setup.client(&["--mode=http-connect"]);
    assert_eq!(client.end().0, Some(0), "{}", client.log());
}

#[test]
fn an_agent_without_files_fails_dials_and_recovers() {
    let setup = Setup::new();
    let _server = setup.server(&["--mode=http-connect"]);
    let agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    until_connected(setup.agent_health);
    let connect = |host: &str| setup.connect(&format!("{host}:{}", setup.target));
    agent.limit_files(6);
    // The C library reports that a name does not exist if it cannot read its files.
    for (host, failing) in [
        ("localhost", "dial tcp: lookup localhost"),
        ("127.0.0.1", "dial tcp 127.0.0.1:"),
    ] {
        let mut open = Vec::new();
        let refused = loop {
            match connect(host) {
                Ok(stream) => open.push(stream),
                Err(refused) => break refused,
            }
            assert!(open.len() < 20, "there is no limit");
        };
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains(failing), "{refused}");
        let why = ": socket: too many open files";
        assert!(refused.ends_with(why), "{refused}");
        assert!(!open.is_empty());
        drop(open);
        until(
            "a connection again",
            || connect(host).is_ok(),
            || agent.log(),
        );
    }
}

#[test]
fn what_is_held_for_a_slow_target_is_counted() {
    let setup = Setup::new();
    let _server = setup.server(&["--mode=http-connect"]);
    let _agent = setup.agent(&[]);
    setup.until_ready();
    setup.until_agent("buffered_bytes 0");
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = UnixStream::connect(setup.scratch.file("socket")).unwrap();
    write!(
        stream,
        "CONNECT {} HTTP/1.1\r\n\r\n",
        target.local_addr().unwrap()
    )
    .unwrap();
    let (accepted, _) = target.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let buffered = || {
        // Writes as many bytes as the stream accepts.
        while stream.write(&[0; 8192]).is_ok() {}
        let metrics = get(setup.agent_health, "/metrics").2;
        !metrics.contains("agent_buffered_bytes 0\n")
    };
    until("bytes that are held", buffered, String::new);
    drop(accepted);
    setup.until_agent("buffered_bytes 0");
}
