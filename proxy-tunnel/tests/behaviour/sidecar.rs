// SPDX-License-Identifier: Apache-2.0

//! HTTP proxies: the sidecar in front of a server of either mode, and the server itself if it accepts requests in
//! absolute form. The tests check byte by byte what clients and targets receive, also when an agent is lost.

use std::sync::Arc;

use proxy_serve::shutdown::Phase;
use proxy_tunnel::app::listeners::Door;
use proxy_tunnel::client::Mode;
use proxy_tunnel::destinations::Destinations;
use proxy_tunnel::metrics::sidecar::SidecarMetrics;
use proxy_tunnel::sidecar::serve;
use proxy_tunnel::sidecar::tenant::{Reach, Tenant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::rig::{Agent, Options, Rig, SOON, Target, round_trip, text, until};

const ESTABLISHED: &str = "HTTP/1.1 200 Connection Established\r\n\r\n";

/// A sidecar in this process.
struct Sidecar {
    port: u16,
    tenant: Arc<Tenant>,
    metrics: SidecarMetrics,
    task: JoinHandle<()>,
    _phase: watch::Sender<Phase>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sidecar {
    async fn new(mode: Mode, reach: Reach, allowed: &[&str]) -> Self {
        let metrics = SidecarMetrics::new();
        let allowed = allowed.iter().map(|entry| entry.parse().unwrap());
        let allowed = Destinations::new(allowed.collect());
        let lines = metrics.of("only");
        let tenant = Arc::new(Tenant::new("only".into(), reach, mode, allowed, lines));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to_phase, phase) = watch::channel(Phase::Serving);
        let (door, served) = (Door::new(100, phase.clone()), Arc::clone(&tenant));
        let task = tokio::spawn(async move {
            let serve = |stream| serve(stream, Arc::clone(&served), phase.clone());
            door.accept(listener, serve).await;
        });
        Self {
            port,
            tenant,
            metrics,
            task,
            _phase: to_phase,
        }
    }

    /// Starts a sidecar in front of the server's Unix socket.
    async fn before(rig: &Rig, allowed: &[&str]) -> Self {
        Self::new(rig.mode, Reach::Unix(rig.socket.clone()), allowed).await
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    async fn connect(&self, target: &str) -> TcpStream {
        let mut stream = self.client().await;
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn until_counted(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_sidecar_{line}\n");
        until(&line, || text(self.metrics.registry()).contains(&line)).await;
    }
}

/// Starts a server with an agent, and a sidecar in front of it.
async fn sidecar(mode: Mode) -> (Rig, Agent, Sidecar) {
    let (rig, agent) = Rig::with_agent(Options::new(mode)).await;
    let sidecar = Sidecar::before(&rig, &[]).await;
    (rig, agent, sidecar)
}

/// Returns a request as Prometheus sends it through a proxy.
fn scrape(target: &str) -> String {
    format!(
        "GET http://{target}/metrics?a=b HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Prometheus/2.42.0\r\n\
         Accept: text/plain\r\nProxy-Connection: keep-alive\r\n\r\n"
    )
}

/// Reads a head including its blank line.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
    };
    timeout(SOON, read).await.expect("a head in time");
    String::from_utf8(head).unwrap()
}

/// Reads a response with a length. Returns its status and its body.
async fn answer<S: AsyncRead + Unpin>(stream: &mut S) -> (u16, String) {
    let head = head(stream).await.to_ascii_lowercase();
    let (_, length) = head
        .split_once("content-length: ")
        .unwrap_or_else(|| panic!("no length: {head}"));
    let length: usize = length.split_once("\r\n").unwrap().0.parse().unwrap();
    let mut body = vec![0; length];
    timeout(SOON, stream.read_exact(&mut body))
        .await
        .expect("a body in time")
        .unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, String::from_utf8(body).unwrap())
}

/// Reads to the end of the stream.
async fn rest<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<String> {
    let mut all = Vec::new();
    timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("it stays open")?;
    Ok(String::from_utf8(all).unwrap())
}

/// Makes the target respond to a request, and returns the request.
async fn answered<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, body: &str) -> String {
    let asked = head(stream).await;
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
    asked
}

#[tokio::test]
async fn connect_in_both_modes() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, agent, sidecar) = sidecar(mode).await;
        let echo = Target::echo().await;
        let mut stream = sidecar.connect(&echo).await;
        assert_eq!(head(&mut stream).await, ESTABLISHED);
        for size in [1, 300_000] {
            round_trip(&mut stream, &vec![7; size]).await;
        }
        sidecar
            .until_counted("connections{tenant=\"only\"} 1")
            .await;
        // Bytes directly after the head are not lost.
        let mut early = sidecar.client().await;
        let bytes = format!("CONNECT {echo} HTTP/1.1\r\n\r\nearly");
        early.write_all(bytes.as_bytes()).await.unwrap();
        assert_eq!(head(&mut early).await, ESTABLISHED);
        // A client may close its sending side first: it still receives the rest of the response.
        early.shutdown().await.unwrap();
        assert_eq!(rest(&mut early).await.unwrap(), "early");
        drop(stream);
        rig.until_counted("established_connections 0").await;
        agent.until_counted("open_endpoint_connections 0").await;
        sidecar
            .until_counted("connections{tenant=\"only\"} 0")
            .await;
        sidecar
            .until_counted("dials_total{result=\"ok\",tenant=\"only\"} 2")
            .await;
    }
}

#[tokio::test]
async fn a_lost_agent_is_a_reset_and_not_an_end() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, agent) = Rig::with_agent(Options::new(mode)).await;
        // In HTTP CONNECT, only TLS makes an interruption visible.
        let reach = Reach::Tls {
            host: "localhost".into(),
            port: rig.tls.port(),
            name: None,
            tls: rig.scratch.client_tls().current(),
        };
        let sidecar = Sidecar::new(mode, reach, &[]).await;
        let echo = Target::echo().await;
        let mut stream = sidecar.connect(&echo).await;
        assert_eq!(head(&mut stream).await, ESTABLISHED);
        round_trip(&mut stream, b"x").await;
        rig.server.cut_agents();
        let read = rest(&mut stream).await;
        assert!(read.is_err(), "{mode:?}: {read:?}");
        drop(agent);
    }
}

#[tokio::test]
async fn targets_that_are_not_reached() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let sidecar = Sidecar::before(&rig, &["127.0.0.1", "localhost:1-1023"]).await;
    let refusing = {
        let target = Target::new().await;
        target.address
    };
    for (target, status, words) in [
        (refusing.as_str(), 502, "connection refused"),
        ("10.0.0.1:9100", 403, "not among the targets"),
        ("localhost:9100", 403, "not among the targets"),
        ("[::1]:9100", 403, "not among the targets"),
    ] {
        let (code, body) = answer(&mut sidecar.connect(target).await).await;
        assert_eq!(code, status, "{target}: {body}");
        assert!(body.contains(words), "{target}: {body}");
        let mut stream = sidecar.client().await;
        stream.write_all(scrape(target).as_bytes()).await.unwrap();
        let (code, body) = answer(&mut stream).await;
        assert_eq!(code, status, "{target}: {body}");
        assert!(body.contains(words), "{target}: {body}");
        // The connection can be used for further requests.
        stream.write_all(scrape(target).as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await.0, status, "{target}");
    }
    sidecar
        .until_counted("dials_total{result=\"forbidden\",tenant=\"only\"} 9")
        .await;
    sidecar
        .until_counted("dials_total{result=\"endpoint\",tenant=\"only\"} 3")
        .await;
    let nowhere = Reach::Unix(rig.scratch.file("nothing"));
    let lost = Sidecar::new(Mode::Grpc, nowhere, &[]).await;
    let (code, body) = answer(&mut lost.connect("a:1").await).await;
    assert!(
        code == 502 && body.contains("cannot connect to the konnectivity server"),
        "{body}"
    );
}

#[tokio::test]
async fn requests_that_are_none_for_a_proxy() {
    let (_rig, _agent, sidecar) = sidecar(Mode::Grpc).await;
    let endless = vec![b'x'; 100_000];
    for (bytes, status) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], "405"),
        (b"GET https://a/ HTTP/1.1\r\n\r\n", "405"),
        (b"GET http://user:secret@a/ HTTP/1.1\r\n\r\n", "405"),
        (b"CONNECT http://a/ HTTP/1.1\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
        (&endless, "431"),
    ] {
        let mut stream = sidecar.client().await;
        // The sidecar may close the connection before everything is sent.
        let _ = stream.write_all(bytes).await;
        let line = head(&mut stream).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{line}");
    }
    // A bad request that follows a good one.
    let target = Target::new().await;
    let mut stream = sidecar.client().await;
    stream
        .write_all(scrape(&target.address).as_bytes())
        .await
        .unwrap();
    answered(&mut target.accept().await, "one").await;
    assert_eq!(answer(&mut stream).await, (200, "one".into()));
    stream
        .write_all(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(answer(&mut stream).await.0, 405);
}

/// A client of a sidecar, or of a server that accepts absolute form itself.
enum Way {
    Sidecar(Sidecar),
    Server,
}

/// A client's stream.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Returns each way to serve a request in absolute form.
async fn doors() -> Vec<(Rig, Agent, Way)> {
    let mut all = Vec::new();
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let (rig, agent, sidecar) = sidecar(mode).await;
        all.push((rig, agent, Way::Sidecar(sidecar)));
    }
    let mut options = Options::new(Mode::HttpConnect);
    options.absolute_form = true;
    let (rig, agent) = Rig::with_agent(options).await;
    all.push((rig, agent, Way::Server));
    all
}

impl Way {
    async fn client(&self, rig: &Rig) -> Box<dyn Stream> {
        match self {
            Self::Sidecar(sidecar) => Box::new(sidecar.client().await),
            Self::Server => Box::new(UnixStream::connect(&rig.socket).await.unwrap()),
        }
    }
}

#[tokio::test]
async fn a_connection_for_many_requests_and_targets() {
    for (rig, _agent, door) in doors().await {
        let targets = [Target::new().await, Target::new().await];
        let mut stream = door.client(&rig).await;
        let mut kept = Vec::new();
        for (number, target) in targets.iter().enumerate() {
            stream
                .write_all(scrape(&target.address).as_bytes())
                .await
                .unwrap();
            let mut accepted = target.accept().await;
            let asked = answered(&mut accepted, &number.to_string()).await;
            assert!(
                asked.starts_with("GET /metrics?a=b HTTP/1.1\r\n"),
                "{asked}"
            );
            let lower = asked.to_ascii_lowercase();
            for want in [
                format!("\r\nhost: {}\r\n", target.address),
                "\r\nuser-agent: prometheus/2.42.0\r\n".into(),
                "\r\naccept: text/plain\r\n".into(),
                "\r\nvia: 1.1 konnectivity\r\n".into(),
            ] {
                assert!(lower.contains(&want), "{asked}");
            }
            assert!(!lower.contains("proxy-"), "{asked}");
            assert_eq!(answer(&mut stream).await, (200, number.to_string()));
            kept.push(accepted);
        }
        // The second scrape reuses both connections.
        for (target, accepted) in targets.iter().zip(&mut kept) {
            until_idle(&rig, 2).await;
            stream
                .write_all(scrape(&target.address).as_bytes())
                .await
                .unwrap();
            answered(accepted, "again").await;
            assert_eq!(answer(&mut stream).await, (200, "again".into()));
        }
        drop(stream);
        if let Way::Sidecar(sidecar) = &door {
            // Another client reuses them too.
            let mut other = sidecar.client().await;
            other
                .write_all(scrape(&targets[1].address).as_bytes())
                .await
                .unwrap();
            answered(&mut kept[1], "other").await;
            assert_eq!(answer(&mut other).await, (200, "other".into()));
            until("both wait again", || sidecar.tenant.pool.tidy() == 2).await;
        } else {
            // No other client uses these connections.
            rig.until_counted("established_connections 0").await;
        }
    }
}

/// Waits until this number of tunnels is established.
async fn until_idle(rig: &Rig, count: u32) {
    rig.until_counted(&format!("established_connections {count}"))
        .await;
}

#[tokio::test]
async fn a_body_reaches_its_target_whatever_its_form() {
    for (rig, _agent, door) in doors().await {
        let target = Target::new().await;
        let address = &target.address;
        let mut stream = door.client(&rig).await;
        let requests = [
            format!(
                "POST http://{address}/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
            ),
            format!(
                "POST http://{address}/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n\
                 5\r\nhello\r\n0\r\n\r\n"
            ),
        ];
        let mut accepted = None;
        for (request, end) in requests
            .iter()
            .zip(["\r\n\r\nhello", "5\r\nhello\r\n0\r\n\r\n"])
        {
            stream.write_all(request.as_bytes()).await.unwrap();
            let accepted = match &mut accepted {
                Some(accepted) => accepted,
                none => none.insert(target.accept().await),
            };
            let mut asked = String::new();
            while !asked.ends_with(end) {
                asked.push(char::from(accepted.read_u8().await.unwrap()));
            }
            assert!(!asked.contains("Content-Length: 99"), "{asked}");
            accepted
                .write_all(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                )
                .await
                .unwrap();
            let line = head(&mut stream).await;
            assert!(line.starts_with("HTTP/1.1 200 OK\r\n"), "{line}");
            let mut body = [0; 12];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"2\r\nok\r\n0\r\n\r\n");
        }
    }
}

/// Targets close idle connections at any time, even at the moment of the next request.
#[tokio::test]
async fn a_connection_that_ended_between_two_scrapes_is_replaced() {
    for (rig, _agent, door) in doors().await {
        let target = Target::new().await;
        let mut stream = door.client(&rig).await;
        for number in 0..5 {
            stream
                .write_all(scrape(&target.address).as_bytes())
                .await
                .unwrap();
            answered(&mut target.accept().await, "x").await;
            assert_eq!(answer(&mut stream).await.0, 200, "{number}");
            // The next request follows at once, or after the sidecar has seen the end.
            if number % 2 == 0 {
                until_idle(&rig, 0).await;
            }
        }
    }
}

/// A response whose end is lost does not look complete, with a length and without.
#[tokio::test]
async fn an_answer_that_is_cut_is_an_error() {
    for form in [
        "Content-Length: 100\r\n",
        "Transfer-Encoding: chunked\r\n",
        "",
    ] {
        for (rig, _agent, door) in doors().await {
            // On this path an interruption is visible only with TLS, unless the format of the response itself shows it.
            let is_plain = rig.mode == Mode::HttpConnect && matches!(door, Way::Sidecar(_));
            if is_plain && form.is_empty() {
                continue;
            }
            let target = Target::new().await;
            let mut stream = door.client(&rig).await;
            stream
                .write_all(scrape(&target.address).as_bytes())
                .await
                .unwrap();
            let mut accepted = target.accept().await;
            head(&mut accepted).await;
            let begun = format!("HTTP/1.1 200 OK\r\n{form}\r\n5\r\nbegun\r\n");
            accepted.write_all(begun.as_bytes()).await.unwrap();
            let line = head(&mut stream).await;
            assert!(line.starts_with("HTTP/1.1 200 OK\r\n"), "{line}");
            let mut first = [0; 5];
            stream.read_exact(&mut first).await.unwrap();
            rig.server.cut_agents();
            let has_length = line.to_ascii_lowercase().contains("content-length");
            let all = rest(&mut stream).await.unwrap_or_default();
            // A response with a length is too short; a chunked one lacks its last chunk.
            assert!(
                has_length || !all.ends_with("0\r\n\r\n"),
                "{form:?}: {all:?}"
            );
        }
    }
}

/// Without its flag the server responds like upstream's.
#[tokio::test]
async fn a_server_takes_absolute_form_only_if_it_is_allowed_to() {
    let (rig, _agent) = Rig::with_agent(Options::new(Mode::HttpConnect)).await;
    let target = Target::new().await;
    let mut stream = UnixStream::connect(&rig.socket).await.unwrap();
    stream
        .write_all(scrape(&target.address).as_bytes())
        .await
        .unwrap();
    let answer = rest(&mut stream).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
        "{answer}"
    );
    let mut options = Options::new(Mode::HttpConnect);
    options.absolute_form = true;
    let (rig, _agent) = Rig::with_agent(options).await;
    let echo = Target::echo().await;
    // CONNECT is unchanged.
    round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"x").await;
    let lonely = {
        let mut options = Options::new(Mode::HttpConnect);
        options.absolute_form = true;
        Rig::with(options).await
    };
    let mut stream = UnixStream::connect(&lonely.socket).await.unwrap();
    stream.write_all(scrape("a:1").as_bytes()).await.unwrap();
    let (status, body) = self::answer(&mut stream).await;
    assert!(
        status == 500 && body.contains("No agent available"),
        "{status} {body}"
    );
}

/// Clients that disconnect while their target is silent leave nothing behind.
#[tokio::test]
async fn clients_that_leave_early() {
    for (rig, agent, door) in doors().await {
        let target = Target::new().await;
        for _ in 0..3 {
            let mut stream = door.client(&rig).await;
            stream
                .write_all(scrape(&target.address).as_bytes())
                .await
                .unwrap();
            let mut accepted = target.accept().await;
            head(&mut accepted).await;
            drop(stream);
            assert_eq!(rest(&mut accepted).await.unwrap_or_default(), "");
        }
        until_idle(&rig, 0).await;
        agent.until_counted("open_endpoint_connections 0").await;
    }
}

/// A probe finds the same fault as a scrape.
#[tokio::test]
async fn probes() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let rig = Rig::new(mode).await;
        let reach = |tls| Reach::Tls {
            host: "127.0.0.1".into(),
            port: rig.tls.port(),
            name: Some("localhost".to_owned().try_into().unwrap()),
            tls,
        };
        let good = reach(rig.scratch.client_tls().current());
        timeout(SOON, good.endpoint().probe(mode))
            .await
            .unwrap()
            .unwrap();
        // This client has no certificate of the server's CA.
        let stranger = super::rig::Scratch::new();
        std::fs::copy(rig.scratch.file("ca.crt"), stranger.file("ca.crt")).unwrap();
        let bad = reach(stranger.client_tls().current());
        let outcome = timeout(SOON, bad.endpoint().probe(mode)).await.unwrap();
        assert!(outcome.is_err(), "{mode:?}");
        let sidecar = Sidecar::new(mode, good, &[]).await;
        let tenant = Arc::clone(&sidecar.tenant);
        let probing = tokio::spawn(async move { tenant.probe().await });
        sidecar.until_counted("server_up{tenant=\"only\"} 1").await;
        probing.abort();
    }
}
