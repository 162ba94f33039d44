// SPDX-License-Identifier: Apache-2.0

//! konnectivity-sidecar as a process: its flags, its ports, several tenants, changes of certificates, and its
//! termination.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::process::{Program, SIDECAR, Setup, get, port, until, until_connected};

/// Sends a request in absolute form through the sidecar, and returns the whole response.
fn ask(sidecar: u16, url: &str) -> String {
    let mut stream = until_connected(sidecar);
    write!(
        stream,
        "GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Sends the same request by CONNECT.
fn ask_by_connect(sidecar: u16, target: &str, path: &str) -> String {
    let mut stream = until_connected(sidecar);
    write!(
        stream,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
    )
    .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

struct Sidecar {
    program: Program,
    listen: u16,
    health: u16,
}

fn start(setup: &Setup, more: &[&str]) -> Sidecar {
    let (listen, health) = (port(), port());
    let mut args = vec![
        format!("--health-port={health}"),
        "--health-bind-address=127.0.0.1".to_owned(),
    ];
    if !more.iter().any(|flag| flag.starts_with("--tenants-config")) {
        args.push(format!("--listen=127.0.0.1:{listen}"));
    }
    args.extend(more.iter().map(ToString::to_string));
    let log = setup.scratch.file(&format!("sidecar-{listen}.log"));
    let program = Program::start(SIDECAR, log, &args);
    Sidecar {
        program,
        listen,
        health,
    }
}

impl Sidecar {
    fn until_ready(&self) {
        let ready = || get(self.health, "/readyz").2 == "ok";
        until("a server that accepts", ready, || self.program.log());
    }

    fn until_counted(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_sidecar_{line}\n");
        let metrics = || get(self.health, "/metrics").2;
        until(&line, || metrics().contains(&line), metrics);
    }
}

#[test]
fn requests_in_both_forms_and_an_end_that_waits_for_them() {
    let setup = Setup::new();
    let _server = setup.server(&["--mode=http-connect"]);
    let _agent = setup.agent(&[]);
    let _target = setup.target();
    setup.until_ready();
    let socket = format!("--proxy-uds={}", setup.file("socket"));
    let mut sidecar = start(
        &setup,
        &[
            "--mode=http-connect",
            "--proxy-host=",
            "--proxy-port=0",
            &socket,
        ],
    );
    sidecar.until_ready();
    assert_eq!(get(sidecar.health, "/healthz").2, "ok");
    assert_eq!(
        get(sidecar.health, "/readyz?verbose").2,
        "[+]server of default ok\n"
    );
    let target = format!("127.0.0.1:{}", setup.target);
    for answer in [
        ask(sidecar.listen, &format!("http://{target}/success")),
        ask_by_connect(sidecar.listen, &target, "/success"),
    ] {
        assert!(answer.contains("<title>Success</title>"), "{answer}");
    }
    let refused = ask(sidecar.listen, "http://127.0.0.1:1/");
    assert!(
        refused.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
        "{refused}"
    );
    assert!(refused.contains("connection refused"), "{refused}");
    sidecar.until_counted("connections{tenant=\"default\"} 0");
    // A request in progress is completed. Its target has another name, so it is dialed, which shows that the request
    // was read: a connection without a request ends at once.
    let url = format!("http://localhost:{}/sleep?time=1", setup.target);
    let listen = sidecar.listen;
    let slow = std::thread::spawn(move || ask(listen, &url));
    sidecar.until_counted("connections{tenant=\"default\"} 1");
    sidecar.until_counted("dials_total{result=\"ok\",tenant=\"default\"} 3");
    sidecar.program.signal(libc::SIGTERM);
    let answer = slow.join().unwrap();
    assert!(answer.contains("<title>Success</title>"), "{answer}");
    assert_eq!(
        sidecar.program.end().0,
        Some(0),
        "{}",
        sidecar.program.log()
    );
    assert!(TcpStream::connect(("127.0.0.1", listen)).is_err());
}

const RULES: &str = "\
tenants:
- name: a
  agents: [{certificate: {organization: a}}]
  clients: [{certificate: {commonName: client-of-a}}]
- name: b
  agents: [{certificate: {organization: b}}]
  clients: [{certificate: {commonName: client-of-b}}]
";

/// The address selects the tenant: only the tenant with an agent reaches a target.
#[test]
fn several_tenants_by_address() {
    let setup = Setup::new();
    for tenant in ["a", "b"] {
        setup
            .scratch
            .issue(&format!("client-of-{tenant}"), |params| {
                let name = format!("client-of-{tenant}");
                params
                    .distinguished_name
                    .push(rcgen::DnType::CommonName, name);
            });
        setup
            .scratch
            .issue(&format!("agent-of-{tenant}"), |params| {
                let name = &mut params.distinguished_name;
                name.push(rcgen::DnType::OrganizationName, tenant);
            });
    }
    fs::write(setup.file("rules.yaml"), RULES).unwrap();
    let clients = port();
    let server = setup.server(&[
        "--mode=http-connect",
        "--uds-name=",
        &format!("--server-port={clients}"),
        &format!("--server-cert={}", setup.file("server.crt")),
        &format!("--server-key={}", setup.file("server.key")),
        &format!("--server-ca-cert={}", setup.file("ca.crt")),
        &format!("--tenants-config={}", setup.file("rules.yaml")),
    ]);
    let _agent = setup.agent(&[
        &format!("--agent-cert={}", setup.file("agent-of-a.crt")),
        &format!("--agent-key={}", setup.file("agent-of-a.key")),
    ]);
    let _target = setup.target();
    setup.until_ready();
    let ports = [port(), port()];
    let socket = setup.file("proxy");
    let mut file = String::from("tenants:\n");
    for (tenant, listen) in [
        ("a", format!("127.0.0.1:{}", ports[0])),
        ("b", format!("127.0.0.1:{}", ports[1])),
        ("a-by-socket", socket.clone()),
    ] {
        let certificate = format!("client-of-{}", &tenant[..1]);
        let [own, key] = ["crt", "key"].map(|end| setup.file(&format!("{certificate}.{end}")));
        writeln!(
            file,
            "- {{name: {tenant}, listen: '{listen}', clientCert: '{own}', clientKey: '{key}'}}"
        )
        .unwrap();
    }
    fs::write(setup.file("sidecar.yaml"), file).unwrap();
    let sidecar = start(
        &setup,
        &[
            &format!("--tenants-config={}", setup.file("sidecar.yaml")),
            "--mode=http-connect",
            "--proxy-host=127.0.0.1",
            "--proxy-server-name=localhost",
            &format!("--proxy-port={clients}"),
            &format!("--ca-cert={}", setup.file("ca.crt")),
        ],
    );
    sidecar.until_ready();
    let url = format!("http://127.0.0.1:{}/success", setup.target);
    let answer = ask(ports[0], &url);
    assert!(
        answer.contains("<title>Success</title>"),
        "{answer}\n{}",
        server.log()
    );
    let answer = ask(ports[1], &url);
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("No agent available"), "{answer}");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    write!(
        stream,
        "GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("<title>Success</title>"), "{answer}");
    for name in ["a", "b", "a-by-socket"] {
        sidecar.until_counted(&format!("server_up{{tenant=\"{name}\"}} 1"));
        let refused = format!(
            "certificate_reloads_total{{certificate=\"client-cert\",result=\"refused\",tenant=\"{name}\"}} 0"
        );
        sidecar.until_counted(&refused);
    }
}

#[test]
fn a_server_that_is_not_there_is_logged_and_shown() {
    let setup = Setup::new();
    let socket = format!("--proxy-uds={}", setup.file("nothing"));
    let sidecar = start(&setup, &["--proxy-host=", "--proxy-port=0", &socket]);
    sidecar.program.until_logged("does not accept connections");
    let (line, _, body) = get(sidecar.health, "/readyz");
    assert!(line.contains("503"), "{line}");
    assert!(body.contains("[-]server of default failed"), "{body}");
    let answer = ask(sidecar.listen, "http://a:1/");
    assert!(
        answer.contains("cannot connect to the konnectivity server"),
        "{answer}"
    );
}

#[test]
fn bad_usage_is_one_error() {
    let setup = Setup::new();
    for (flags, want) in [
        (&["--listen=0.0.0.0:8097"][..], "not of loopback"),
        (&[], "--ca-cert is needed"),
        (
            &["--ca-cert=/nonexistent/ca.crt"],
            "cannot read /nonexistent/ca.crt",
        ),
        (
            &["--tenants-config=/nonexistent/file"],
            "cannot read the tenants in /nonexistent/file",
        ),
        (
            &[
                "--listen=/nonexistent/socket",
                "--proxy-uds=/x",
                "--proxy-host=",
                "--proxy-port=0",
            ],
            "/nonexistent/socket",
        ),
    ] {
        let mut sidecar = start(&setup, flags);
        let (code, took) = sidecar.program.end();
        assert_eq!(code, Some(1), "{flags:?}");
        assert!(took < Duration::from_secs(10));
        let log = sidecar.program.log();
        assert!(
            log.starts_with("Error: ") && log.contains(want),
            "{flags:?}: {log}"
        );
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}
