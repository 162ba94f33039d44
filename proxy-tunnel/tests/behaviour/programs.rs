// SPDX-License-Identifier: Apache-2.0

//! The programs as processes: ports, health, signals, logs, exit codes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::rig::{PROXIED, SOON, Scratch};

const SERVER: &str = env!("CARGO_BIN_EXE_konnectivity-server");
const AGENT: &str = env!("CARGO_BIN_EXE_konnectivity-agent");
const CLIENT: &str = env!("CARGO_BIN_EXE_konnectivity-test-client");
const TARGET: &str = env!("CARGO_BIN_EXE_http-test-server");

/// A process with its log, killed at the end.
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    fn start(program: &str, log: PathBuf, args: &[String]) -> Self {
        Self::start_by(None, program, log, args)
    }

    /// With a proxy in its environment.
    fn start_by(proxy: Option<&str>, program: &str, log: PathBuf, args: &[String]) -> Self {
        let file = fs::File::create(&log).unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        // A proxy of this machine is not part of a test.
        for variable in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(variable);
        }
        if let Some(proxy) = proxy {
            command.env("HTTPS_PROXY", proxy);
        }
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn until_logged(&self, text: &str) {
        until(text, || self.log().contains(text), || self.log());
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: it is a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The exit code, and how long it took.
    fn end(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return (status.code(), start.elapsed());
            }
            assert!(start.elapsed() < SOON, "it does not end:\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool, detail: impl Fn() -> String) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "never came: {what}\n{}", detail());
        sleep(Duration::from_millis(10));
    }
}

/// A port of the range that the programs accept, outside of the one that the kernel gives to connections.
fn port() -> u16 {
    loop {
        let port = fastrand::u16(12_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Status line, head and body of an answer.
fn get(port: u16, path: &str) -> (String, String, String) {
    let mut stream = until_connected(port);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (line, fields) = head.split_once("\r\n").unwrap();
    (
        line.to_owned(),
        fields.to_ascii_lowercase(),
        body.to_owned(),
    )
}

fn until_connected(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < SOON, "port {port}: {error}"),
        }
        sleep(Duration::from_millis(10));
    }
}

/// All programs of a tunnel with their ports.
struct Setup {
    scratch: Scratch,
    agents: u16,
    health: u16,
    agent_health: u16,
    agent_admin: u16,
    target: u16,
}

impl Setup {
    fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            agents: port(),
            health: port(),
            agent_health: port(),
            agent_admin: port(),
            target: port(),
        }
    }

    fn file(&self, name: &str) -> String {
        self.scratch.file(name).display().to_string()
    }

    fn server(&self, more: &[&str]) -> Program {
        let mut args = vec![
            "--server-port=0".to_owned(),
            format!("--uds-name={}", self.file("socket")),
            format!("--cluster-ca-cert={}", self.file("ca.crt")),
            format!("--cluster-cert={}", self.file("server.crt")),
            format!("--cluster-key={}", self.file("server.key")),
            format!("--agent-port={}", self.agents),
            "--agent-bind-address=127.0.0.1".to_owned(),
            format!("--health-port={}", self.health),
            "--health-bind-address=127.0.0.1".to_owned(),
            format!("--admin-port={}", port()),
            "--server-id=this-one".to_owned(),
        ];
        args.extend(more.iter().map(ToString::to_string));
        Program::start(SERVER, self.scratch.file("server.log"), &args)
    }

    fn agent(&self, more: &[&str]) -> Program {
        let mut args = vec![
            format!("--ca-cert={}", self.file("ca.crt")),
            format!("--agent-cert={}", self.file("client.crt")),
            format!("--agent-key={}", self.file("client.key")),
            "--proxy-server-host=127.0.0.1".to_owned(),
            format!("--proxy-server-port={}", self.agents),
            format!("--health-server-port={}", self.agent_health),
            "--health-server-host=127.0.0.1".to_owned(),
            format!("--admin-server-port={}", self.agent_admin),
            "--sync-interval=50ms".to_owned(),
            "--sync-interval-cap=200ms".to_owned(),
        ];
        args.extend(more.iter().map(ToString::to_string));
        Program::start(AGENT, self.scratch.file("agent.log"), &args)
    }

    fn target(&self) -> Program {
        let args = [format!("--server-port={}", self.target)];
        let program = Program::start(TARGET, self.scratch.file("target.log"), &args);
        until_connected(self.target);
        program
    }

    fn client(&self, more: &[&str]) -> Program {
        let mut args = vec![
            "--proxy-host=".to_owned(),
            "--proxy-port=0".to_owned(),
            format!("--proxy-uds={}", self.file("socket")),
            "--request-host=127.0.0.1".to_owned(),
            format!("--request-port={}", self.target),
        ];
        args.extend(more.iter().map(ToString::to_string));
        Program::start(
            CLIENT,
            self.scratch.file(&format!("client-{}.log", port())),
            &args,
        )
    }

    fn until_ready(&self) {
        until(
            "ready",
            || get(self.health, "/readyz").0.contains("200"),
            String::new,
        );
    }

    fn until_server(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_server_{line}\n");
        until(
            &line,
            || get(self.health, "/metrics").2.contains(&line),
            String::new,
        );
    }
}

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
        // klog's head: severity, date, time, process, source.
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
    let _server = setup.server(&[]);
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
    // Without a server the agent lives, and its health port is there.
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
    let (line, head, _) = get(lonely.agent_admin, "/metrics");
    assert_eq!(line, "HTTP/1.1 301 Moved Permanently");
    let location = format!("location: //127.0.0.1:{}/metrics", lonely.agent_health);
    assert!(head.contains(&location), "{head}");
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

/// Defect 7 of upstream: an open stream of a client keeps the server alive for ever there.
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
        // For the client it is an error.
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

/// Upstream #748: there the answer looks complete.
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

/// An HTTP proxy for one connection to this port; gives the request that it got.
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
            // They end with the programs.
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
    let _agent = Program::start_by(Some(&url), AGENT, log, &args);
    setup.until_ready();
    let request = asked.join().unwrap();
    let first = format!("CONNECT {PROXIED}:{} HTTP/1.1\r\n", setup.agents);
    assert!(request.starts_with(&first), "{request}");
    assert!(
        request.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n"),
        "{request}"
    );
}
