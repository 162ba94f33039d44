// SPDX-License-Identifier: Apache-2.0

//! The programs as processes: ports, health, signals, logs, exit codes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::process::{AGENT, CLIENT, Program, SERVER, Setup, TARGET, get, until, until_connected};
use super::rig::{PROXIED, Scratch};

#[test]
fn requests_in_both_modes_and_what_is_logged() {
    for mode in ["grpc", "http-connect"] {
        let setup = Setup::new();
        let mode = format!("--mode={mode}");
        let server = setup.server(&[&mode]);
        let agent = setup.agent(&["--agent-id=that-one"]);
        let _target = setup.target();
        setup.until_ready();
        let mut client = setup.client(&[&mode, "--test-requests=5"]);
        assert_eq!(client.end().0, Some(0), "{}", client.log());
        assert!(
            client.log().contains("<title>Success</title>"),
            "{}",
            client.log()
        );
        let mut missing = setup.client(&[&mode, "--request-port=1"]);
        assert_eq!(missing.end().0, Some(1));
        assert!(
            missing.log().contains("connection refused"),
            "{}",
            missing.log()
        );
        setup.until_server("established_connections 0");
        for line in [
            "\"Start serving\" serverID=\"this-one\" agentID=\"that-one\"",
            "\"Connect to server\"",
            "\"successfully connected to new proxy server\"",
            "\"Determined server count\"",
            "\"Endpoint connection established\"",
            "\"error dialing backend\"",
        ] {
            agent.until_logged(line);
        }
        for line in [
            "\"Agent connected\" agentID=\"that-one\"",
            "\"Proxy connection established\" dialID=",
            "\"DIAL_RSP contains failure\"",
        ] {
            server.until_logged(line);
        }
        // The head of a klog line: severity, date, time, process, source.
        let log = server.log();
        let first = log.lines().next().unwrap();
        let head: Vec<&str> = first.split_whitespace().take(4).collect();
        assert!(head[0].starts_with('I') && head[0].len() == 5, "{first}");
        assert_eq!(head[1].len(), "19:30:57.048423".len(), "{first}");
        assert_eq!(head[2], server.child.id().to_string());
        assert!(
            head[3].contains(".rs:") && head[3].ends_with(']'),
            "{first}"
        );
    }
}

/// Facts §4, byte by byte.
#[test]
fn health_and_admin_ports() {
    let setup = Setup::new();
    let server = setup.server(&[]);
    assert_eq!(get(setup.health, "/healthz").2, "ok");
    for path in ["/readyz", "/ready"] {
        let (line, _, body) = get(setup.health, path);
        assert_eq!(line, "HTTP/1.1 500 Internal Server Error");
        assert_eq!(body, "no connection to any proxy agent");
    }
    let metrics = get(setup.health, "/metrics").2;
    for family in [
        "http_connections 0",
        "ready_backend_connections 0",
        "ready_backends{proxy_strategy=\"default\"} 0",
        "culled_leases_count 0",
    ] {
        assert!(
            metrics.contains(&format!("\nkonnectivity_network_proxy_server_{family}\n")),
            "{family}"
        );
    }
    assert!(
        !metrics.contains("dial_failure_count{"),
        "no value before it is counted"
    );
    // Without a server the agent keeps running, and serves its health port.
    let lonely = Setup::new();
    let agent = lonely.agent(&[]);
    assert_eq!(get(lonely.agent_health, "/healthz").2, "ok");
    for path in ["/readyz", "/ready", "/readyz?verbose"] {
        let (line, _, body) = get(lonely.agent_health, path);
        assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(
            body,
            "[+]ping ok\n[-]server-connected failed: no servers connected\n"
        );
    }
    let metrics = get(lonely.agent_health, "/metrics").2;
    for family in ["open_server_connections 0", "known_server_count 1"] {
        assert!(
            metrics.contains(&format!("\nkonnectivity_network_proxy_agent_{family}\n")),
            "{family}"
        );
    }
    agent.until_logged("\"cannot connect once\"");
    // The server may start later.
    let _late = lonely.server(&[]);
    lonely.until_ready();
    let (line, head, _) = get(lonely.agent_admin, "/metrics");
    assert_eq!(line, "HTTP/1.1 301 Moved Permanently");
    let location = format!("location: //127.0.0.1:{}/metrics", lonely.agent_health);
    assert!(head.contains(&location), "{head}");
    let metrics = get(setup.admin, "/metrics").2;
    assert!(metrics.contains("server_http_connections 0"), "{metrics}");
    assert!(get(setup.admin, "/debug/pprof/").0.contains("404"));
    let mut client = setup.client(&[]);
    assert_eq!(client.end().0, Some(1), "{}", client.log());
    setup.until_server("dial_failure_count{reason=\"no_agent\"} 1");
    server.until_logged("\"Received DIAL_REQ\"");
    server.until_logged("\"Failed to get a backend\"");
    let connected = setup.agent(&[]);
    setup.until_ready();
    connected.until_logged("\"Start serving\"");
    assert_eq!(get(setup.health, "/readyz").2, "ok");
    let ready = || get(setup.agent_health, "/readyz").2;
    until("the agent is ready", || ready() == "ok", ready);
    assert_eq!(
        get(setup.agent_health, "/readyz?verbose").2,
        "[+]ping ok\n[+]server-connected ok\ncheck passed\n"
    );
}

/// Behind a load balancer that always selects the same server (k0s #5503), or while one of several servers is replaced
/// (hypershift #9260), upstream's agents report no missing server.
#[test]
fn an_agent_that_misses_servers_says_so() {
    let setup = Setup::new();
    let _server = setup.server(&["--server-count=3"]);
    let agent = setup.agent(&[]);
    setup.until_ready();
    agent.until_logged("\"duplicate server connection attempt\"");
    agent.until_logged("--proxy-server-host takes a list");
    let verbose = || get(setup.agent_health, "/readyz?verbose").2;
    let want = "[+]ping ok\n[+]server-connected ok: 1 of 3 servers\ncheck passed\n";
    until("one of three", || verbose() == want, verbose);
    let (line, _, body) = get(setup.agent_health, "/readyz");
    assert!(line.contains("200") && body == "ok", "{line}: {body}");
    let metrics = get(setup.agent_health, "/metrics").2;
    for line in [
        "open_server_connections 1\n",
        "wanted_server_connections 3\n",
    ] {
        assert!(metrics.contains(&format!("_agent_{line}")), "{metrics}");
    }
}

/// Defect 9 of upstream: there, an agent that cannot count leases neither connects nor serves its health port.
#[test]
fn an_agent_that_cannot_count_leases_serves() {
    let setup = Setup::new();
    let _server = setup.server(&[]);
    let agent = setup.agent(&[
        "--count-server-leases",
        "--kubeconfig=/nonexistent/kubeconfig",
    ]);
    assert_eq!(get(setup.agent_health, "/healthz").2, "ok");
    agent.until_logged("leases cannot be counted");
    setup.until_ready();
}

#[test]
fn an_agent_connects_by_ipv6_with_a_name_of_its_environment() {
    let setup = Setup::new();
    let server = setup.server(&["--agent-bind-address=::1"]);
    let args = [
        format!("--ca-cert={}", setup.file("ca.crt")),
        format!("--agent-cert={}", setup.file("client.crt")),
        format!("--agent-key={}", setup.file("client.key")),
        "--proxy-server-host=::1".to_owned(),
        format!("--proxy-server-port={}", setup.agents),
        "--health-server-host=::1".to_owned(),
        format!("--health-server-port={}", setup.agent_health),
        "--admin-bind-address=::1".to_owned(),
        format!("--admin-server-port={}", setup.agent_admin),
        "--sync-interval=10ms".to_owned(),
        "--sync-forever".to_owned(),
    ];
    let name = [("PROXY_AGENT_ID", "of-the-environment")];
    let agent = Program::start_in(&name, AGENT, setup.scratch.file("agent.log"), &args);
    server.until_logged("\"Agent connected\" agentID=\"of-the-environment\"");
    agent.until_logged("\"duplicate server connection attempt\"");
    agent.until_logged(&format!("serverAddress=\"[::1]:{}\"", setup.agents));
    setup.until_ready();
}

#[test]
fn the_test_server_answers_as_upstreams() {
    let setup = Setup::new();
    let _target = setup.target();
    for (path, status, length) in [
        ("/success", "200 OK", 145),
        ("/sleep?time=0", "200 OK", 145),
        ("/error", "500 Internal Server Error", 22),
        ("/missing", "404 Not Found", 19),
    ] {
        let (line, _, body) = get(setup.target, path);
        assert_eq!(line, format!("HTTP/1.1 {status}"), "{path}");
        assert_eq!(body.len(), length, "{path}: {body}");
    }
    let mut stream = until_connected(setup.target);
    stream
        .write_all(b"GET /close HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    // The server sends no response; whether it resets the connection does not matter.
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"");
}

/// With `cluster` alone, kube-apiserver dials webhooks and aggregated API servers directly, and times out (spinifex
/// #991).
#[test]
fn the_documented_selection_has_both_ways() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tunnel.md");
    let docs = fs::read_to_string(docs).unwrap();
    let (_, example) = docs
        .split_once("kind: EgressSelectorConfiguration")
        .unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let values = |key: &str| -> Vec<String> {
        let lines = example
            .lines()
            .map(|line| line.trim_start_matches([' ', '-']));
        let values = lines.filter_map(|line| line.strip_prefix(key));
        values.map(|value| value.trim().to_owned()).collect()
    };
    assert_eq!(values("name:"), ["cluster", "controlplane"]);
    assert_eq!(values("proxyProtocol:"), ["GRPC", "GRPC"]);
    for socket in values("udsName:") {
        assert!(docs.contains(&format!("--uds-name={socket} ")), "{socket}");
    }
    assert_eq!(values("udsName:").len(), 2);
}

#[test]
fn an_agent_without_its_token_lives_and_says_so() {
    let setup = Setup::new();
    let _server = setup.server(&[]);
    let missing = setup.file("token");
    let mut agent = setup.agent(&[&format!("--service-account-token-path={missing}")]);
    agent.until_logged(&format!("cannot read the token {missing}"));
    assert_eq!(get(setup.agent_health, "/healthz").2, "ok");
    fs::write(&missing, "any\n").unwrap();
    setup.until_ready();
    assert!(agent.ended().is_none());
}

#[test]
fn bad_usage_is_named_with_the_flags_on_stderr() {
    let scratch = Scratch::new();
    for (program, args, want) in [
        (SERVER, &["--unknown"][..], "--unknown"),
        (SERVER, &["--log_dir=/tmp"], "--log_dir"),
        (SERVER, &["--keepalive-time=60"], "--keepalive-time"),
        (SERVER, &["positional"], "--server-cert"),
        (AGENT, &["--sync-interval=soon"], "--sync-interval"),
        (
            AGENT,
            &[
                "--ca-cert=/nonexistent/ca.crt",
                "--health-server-port=12001",
                "--admin-server-port=12002",
            ],
            "ca.crt",
        ),
        (CLIENT, &["--mode=carrier-pigeon", "--ca-cert=x"], "mode"),
        (TARGET, &["--server-port=80"], "--server-port"),
    ] {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let mut program = Program::start(program, scratch.file("log"), &args);
        assert_eq!(program.end().0, Some(1), "{args:?}");
        assert!(program.log().contains(want), "{args:?}: {}", program.log());
    }
}

#[test]
fn a_taken_port_is_named_with_its_flag() {
    let setup = Setup::new();
    let _taken = TcpListener::bind(("127.0.0.1", setup.agents)).unwrap();
    let mut server = setup.server(&[]);
    assert_eq!(server.end().0, Some(1));
    assert!(server.log().contains("--agent-port"), "{}", server.log());
}

#[test]
fn the_log_goes_to_a_file_where_it_is_asked_to() {
    let setup = Setup::new();
    let log = setup.file("file.log");
    let server = setup.server(&[
        "--logtostderr=false",
        &format!("--log-file={log}"),
        "--log-file-max-size=0",
    ]);
    until(
        "a line in the file",
        || {
            fs::read_to_string(&log)
                .unwrap_or_default()
                .contains("Starting proxy server")
        },
        || server.log(),
    );
    assert!(
        !server.log().contains("Starting proxy server"),
        "{}",
        server.log()
    );
}

#[test]
fn a_full_disk_for_the_log_stops_nothing() {
    let setup = Setup::new();
    let server = setup.server(&["--logtostderr=false", "--log-file=/dev/full"]);
    let _agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    let mut client = setup.client(&[]);
    assert_eq!(client.end().0, Some(0), "{}", client.log());
    // The log is written to a place that is writable.
    server.until_logged("\"Proxy connection established\"");
}

/// Starts an HTTP proxy for one connection to this port; its thread returns the request that it received.
fn proxy(to: u16) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:secret@{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let far = TcpStream::connect(("127.0.0.1", to)).unwrap();
        for (mut from, mut to) in [
            (near.try_clone().unwrap(), far.try_clone().unwrap()),
            (far, near),
        ] {
            // The threads end with the programs.
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
        String::from_utf8(request).unwrap()
    });
    (url, serving)
}

#[test]
fn an_agent_takes_the_proxy_of_its_environment() {
    let setup = Setup::new();
    let _server = setup.server(&[]);
    until_connected(setup.agents);
    let (url, asked) = proxy(setup.agents);
    let args = [
        format!("--ca-cert={}", setup.file("ca.crt")),
        format!("--agent-cert={}", setup.file("client.crt")),
        format!("--agent-key={}", setup.file("client.key")),
        format!("--proxy-server-host={PROXIED}"),
        format!("--proxy-server-port={}", setup.agents),
        format!("--health-server-port={}", setup.agent_health),
        format!("--admin-server-port={}", setup.agent_admin),
    ];
    let log = setup.scratch.file("agent.log");
    let _agent = Program::start_in(&[("HTTPS_PROXY", &url)], AGENT, log, &args);
    setup.until_ready();
    let request = asked.join().unwrap();
    let first = format!("CONNECT {PROXIED}:{} HTTP/1.1\r\n", setup.agents);
    assert!(request.starts_with(&first), "{request}");
    assert!(
        request.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n"),
        "{request}"
    );
}
