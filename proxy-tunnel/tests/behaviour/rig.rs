// SPDX-License-Identifier: Apache-2.0

//! A server in this process on its own sockets, agents of ours, and targets. All of them stop at the end of the test.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::{Registry, TextEncoder};
use proxy_serve::listen::unix::{Existing, Listener};
use proxy_serve::reload::{Look, Reloader};
use proxy_serve::shutdown::Phase;
use proxy_serve::tls::{Pair, Policy, client, server};
use proxy_tunnel::agent::connector::Connector;
use proxy_tunnel::agent::link;
use proxy_tunnel::agent::sync::{self, CountSource, Sync};
use proxy_tunnel::app::listeners::{Accepting, Door};
use proxy_tunnel::client::{Dialer, Endpoint, Mode};
use proxy_tunnel::cluster::counting::Leases;
use proxy_tunnel::cluster::tokens::Reviewer;
use proxy_tunnel::destinations::Destinations;
use proxy_tunnel::flow::{Budget, Limits};
use proxy_tunnel::metrics::agent::AgentMetrics;
use proxy_tunnel::metrics::certificates::Names;
use proxy_tunnel::metrics::server::ServerMetrics;
use proxy_tunnel::server::Server;
use proxy_tunnel::server::backend::Shared;
use proxy_tunnel::server::strategies::Strategy;
use proxy_tunnel::server::tenants::Tenants;
use proxy_tunnel::server::tenants::file::{self, Offered};
use proxy_tunnel::server::tenants::tenant::Parts;
use proxy_tunnel::server::transport::Settings;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// The maximum time of any expected event, long enough for a loaded machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Returns the number of repetitions: `short` in a normal run, or `full`, as promised for a release, with
/// `PROXY_AGENT_TEST_LOAD=full`.
pub fn load(short: usize, full: usize) -> usize {
    let is_full = std::env::var_os("PROXY_AGENT_TEST_LOAD").is_some_and(|value| value == "full");
    if is_full { full } else { short }
}

/// The time in which a test waits for an event that should not happen.
pub const WHILE: Duration = Duration::from_millis(150);

/// A name that only a proxy can resolve: `.invalid` has no addresses (RFC 6761).
pub const PROXIED: &str = "konnectivity.invalid";

const HOUR: Duration = Duration::from_hours(1);

/// A directory of one test, with certificates of one CA.
pub struct Scratch {
    path: PathBuf,
    authority: Mutex<CertifiedIssuer<'static, KeyPair>>,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Paths of Unix sockets must be short.
        let path = std::env::temp_dir().join(format!("tunnel-{}-{number}", process::id()));
        fs::create_dir_all(&path).unwrap();
        let scratch = Self {
            path,
            authority: Mutex::new(authority()),
        };
        scratch.renew();
        scratch
    }

    /// Replaces the CA and its certificates.
    pub fn renew(&self) {
        let authority = authority();
        fs::write(self.file("ca.crt"), authority.pem()).unwrap();
        *self.authority.lock().unwrap() = authority;
        for name in ["server", "client"] {
            self.issue(name, |_| {});
        }
    }

    /// Writes a certificate and its key.
    pub fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost", "127.0.0.1", "::1", PROXIED, "*.tunnel.example"];
        let names = names.map(str::to_owned).to_vec();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let authority = self.authority.lock().unwrap();
        let certificate = params.signed_by(&key, &*authority).unwrap();
        fs::write(self.file(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn pair(&self, name: &str) -> Pair {
        Pair {
            certificate: self.file(&format!("{name}.crt")),
            key: self.file(&format!("{name}.key")),
        }
    }

    fn server_tls(&self, alpn: &[u8], asks: bool) -> server::Server {
        server::Server {
            pair: self.pair("server"),
            client_ca: asks.then(|| self.file("ca.crt")),
            location: "the test says where they are",
            alpn: vec![alpn.to_vec()],
            policy: Policy::default(),
        }
    }

    pub fn client_tls(&self) -> Reloader<client::Client> {
        self.client_tls_as("client")
    }

    /// Returns the client's TLS settings with the certificate of this name.
    pub fn client_tls_as(&self, name: &str) -> Reloader<client::Client> {
        let source = client::Client {
            server_ca: self.file("ca.crt"),
            pair: Some(self.pair(name)),
            location: "the test says where they are",
            alpn: vec![b"h2".to_vec()],
            policy: Policy::default(),
        };
        Reloader::new(source, |_| {}).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Files that remain are in the system's temporary directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The settings of a server that a test changes.
pub struct Options {
    pub mode: Mode,
    pub dial_timeout: Option<Duration>,
    pub limits: Limits,
    pub budget: usize,
    /// The time without a byte after which an agent is pinged, and the time limit of its reply.
    pub pings: (Duration, Duration),
    pub strategies: Vec<Strategy>,
    pub reviewer: Option<Reviewer>,
    /// The rules of tenants.
    pub rules: Option<String>,
    /// Whether clients with HTTP may also send requests in absolute form.
    pub absolute_form: bool,
    pub id: String,
    pub count: u32,
    pub scratch: Option<Arc<Scratch>>,
}

impl Options {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            dial_timeout: Some(Duration::from_secs(10)),
            limits: Limits::default(),
            budget: 64 << 20,
            pings: (HOUR, HOUR),
            strategies: vec![Strategy::Default],
            reviewer: None,
            rules: None,
            absolute_form: false,
            id: "server".into(),
            count: 1,
            scratch: None,
        }
    }
}

/// A server with all its listeners: a Unix socket and TLS for clients, TLS for agents.
pub struct Rig {
    pub scratch: Arc<Scratch>,
    pub server: Arc<Server>,
    pub budget: Arc<Budget>,
    pub mode: Mode,
    pub socket: PathBuf,
    pub tls: SocketAddr,
    pub agents: SocketAddr,
    /// The files of certificates, which are reloaded after a change.
    files: Mutex<Vec<Box<dyn Look>>>,
    tasks: Vec<JoinHandle<()>>,
    _phase: watch::Sender<Phase>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Rig {
    pub async fn new(mode: Mode) -> Self {
        Self::with(Options::new(mode)).await
    }

    pub async fn with(options: Options) -> Self {
        let scratch = options.scratch.unwrap_or_else(|| Arc::new(Scratch::new()));
        let mode = options.mode;
        let socket = scratch.file(&options.id);
        let metrics = ServerMetrics::new();
        let has_tokens = options.reviewer.is_some();
        let budget = Arc::new(Budget::new(options.budget));
        let parts = Parts {
            strategies: options.strategies,
            shared: Arc::new(Shared {
                metrics: Arc::clone(&metrics),
                budget: Arc::clone(&budget),
                limits: options.limits,
            }),
        };
        let server = Arc::new(Server::new(
            options.id,
            options.count,
            if options.rules.is_some() {
                Tenants::several(parts)
            } else {
                Tenants::one(parts)
            },
            Arc::clone(&metrics),
            options.dial_timeout,
            options.reviewer,
            options.absolute_form,
        ));
        if let Some(rules) = &options.rules {
            let offered = Offered {
                agent_certificates: !has_tokens,
                client_tls: true,
                tokens: has_tokens,
            };
            server.tenants.apply(&file::parse(rules, offered).unwrap());
        }
        let (to_phase, phase) = watch::channel(Phase::Serving);
        let door = Door::new(1000, phase);
        let accepting = Accepting {
            server: Arc::clone(&server),
            mode,
            clients: (door.clone(), Settings::tunnels(HOUR)),
            agents: (
                door,
                Settings {
                    ping_timeout: options.pings.1,
                    ..Settings::link(options.pings.0)
                },
            ),
        };
        let mut tasks = Vec::new();

        let listener = Listener::bind(&socket, "--uds-name", Existing::Remove).unwrap();
        let (at, path) = (accepting.clone(), socket.clone());
        tasks.push(tokio::spawn(async move {
            at.clients_on_socket(path, listener).await;
        }));

        let alpn: &[u8] = match mode {
            Mode::Grpc => b"h2",
            Mode::HttpConnect => b"http/1.1",
        };
        let mut files: Vec<Box<dyn Look>> = Vec::new();
        let names = |own, authorities| Names { own, authorities };
        let count = metrics
            .certificates
            .observer(names("server-cert", "server-ca-cert"), None);
        let reloader = Reloader::new(scratch.server_tls(alpn, true), count).unwrap();
        let current = reloader.current();
        files.push(Box::new(reloader));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tls = listener.local_addr().unwrap();
        let at = accepting.clone();
        tasks.push(tokio::spawn(async move {
            at.clients(tls.port(), listener, current).await;
        }));

        let count = metrics
            .certificates
            .observer(names("cluster-cert", "cluster-ca-cert"), None);
        let reloader = Reloader::new(scratch.server_tls(b"h2", !has_tokens), count).unwrap();
        let current = reloader.current();
        files.push(Box::new(reloader));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agents = listener.local_addr().unwrap();
        tasks.push(tokio::spawn(async move {
            accepting.agents(agents.port(), listener, current).await;
        }));
        Self {
            scratch,
            server,
            budget,
            mode,
            socket,
            tls,
            agents,
            files: Mutex::new(files),
            tasks,
            _phase: to_phase,
        }
    }

    /// Starts a server with an agent of ours.
    pub async fn with_agent(options: Options) -> (Self, Agent) {
        let rig = Self::with(options).await;
        let agent = Agent::start(&rig, &[rig.agents.port()]);
        rig.until_ready().await;
        (rig, agent)
    }

    /// Reloads changed certificates.
    pub fn look(&self) {
        for files in &mut *self.files.lock().unwrap() {
            files.look();
        }
    }

    pub async fn until_ready(&self) {
        until("an agent", || self.server.is_ready()).await;
    }

    pub fn dialer(&self) -> Dialer {
        Dialer::new(Endpoint::unix(&self.socket), self.mode)
    }

    pub fn tls_endpoint(&self) -> Endpoint {
        let config = Arc::clone(&self.scratch.client_tls().current().get().config);
        Endpoint::tls("localhost", self.tls.port(), config)
    }

    pub fn metrics(&self) -> String {
        text(self.server.metrics.registry())
    }

    /// Waits until the metrics contain this line.
    pub async fn until_counted(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_server_{line}\n");
        until(&line, || self.metrics().contains(&line)).await;
    }
}

pub fn text(registry: &Registry) -> String {
    TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap()
}

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "never came: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// An agent of ours in this process.
pub struct Agent {
    pub sync: Arc<Sync>,
    pub shared: Arc<link::Shared>,
    pub tls: Mutex<Reloader<client::Client>>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The settings of an agent that a test changes.
#[derive(Default)]
pub struct AgentOptions {
    pub identifiers: &'static str,
    pub token: Option<PathBuf>,
    pub leases: Option<Arc<Leases>>,
    pub source: CountSource,
    pub limits: Limits,
    pub allowed: Destinations,
}

impl Agent {
    /// Starts an agent that connects to the servers on these ports of localhost.
    pub fn start(rig: &Rig, ports: &[u16]) -> Self {
        Self::with(rig, ports, AgentOptions::default())
    }

    pub fn with(rig: &Rig, ports: &[u16], options: AgentOptions) -> Self {
        let shared = Arc::new(link::Shared {
            agent_id: "agent".into(),
            metrics: AgentMetrics::new(),
            budget: Arc::new(Budget::new(64 << 20)),
            limits: options.limits,
            allowed: options.allowed,
        });
        let tls = rig.scratch.client_tls();
        let connector = Connector {
            port: ports[0],
            tls: tls.current(),
            server_name: None,
            keepalive: HOUR,
            token: options.token,
            identifiers: options.identifiers.to_owned(),
            shared: Arc::clone(&shared),
        };
        let sync = Sync::new(
            sync::Settings {
                hosts: vec!["localhost".into()],
                interval: Duration::from_millis(20),
                cap: Duration::from_millis(100),
                forever: false,
                source: options.source,
                leases: options.leases,
            },
            connector,
        );
        let keeping = Arc::clone(&sync);
        let task = tokio::spawn(async move { keeping.run().await });
        Self {
            sync,
            shared,
            tls: Mutex::new(tls),
            task,
        }
    }

    pub fn metrics(&self) -> String {
        text(self.shared.metrics.registry())
    }

    pub async fn until_counted(&self, line: &str) {
        let line = format!("konnectivity_network_proxy_agent_{line}\n");
        until(&line, || self.metrics().contains(&line)).await;
    }
}

/// A target whose connections the test itself serves.
pub struct Target {
    pub listener: TcpListener,
    pub address: String,
}

impl Target {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    pub async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// Starts a target that sends back the bytes that it receives, on every connection.
    pub async fn echo() -> String {
        let target = Self::new().await;
        let address = target.address.clone();
        tokio::spawn(async move {
            loop {
                let mut stream = target.accept().await;
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    // A client that disconnects early ends the copy.
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                });
            }
        });
        address
    }
}

/// Sends bytes and reads the same number of bytes.
pub async fn round_trip<S>(stream: &mut S, bytes: &[u8])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, bytes);
}
