// SPDX-License-Identifier: Apache-2.0

//! A tunnel under load: server and agent, a target and clients, in a network namespace of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_serve::reload::Source as _;
use proxy_serve::tls::client::Client as Tls;
use proxy_serve::tls::{Pair, Policy};
use proxy_tunnel::client::{Dialer, Endpoint, Mode};
use rustls::ClientConfig;
use rustls::client::Resumption;
use tests::{cmd, http, usage};
use tokio::runtime::{Builder, Runtime};

use super::target;
use crate::program::{Make, Part};
use crate::tunnel::{
    AGENT, AGENT_HEALTH, CONNECT_ON_SOCKET, Example, PATIENCE, SERVER_HEALTH, SOCKET, Tunnel,
};

/// The ports of the examples.
const FRONTEND: u16 = 8090;
/// How long a dial may take, also while the peer's tunnels are stalled.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// How clients reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// gRPC on a Unix socket.
    GrpcUds,
    /// HTTP CONNECT on a Unix socket.
    ConnectUds,
    /// gRPC with mTLS.
    GrpcTls,
    /// HTTP CONNECT with mTLS.
    ConnectTls,
}

impl Transport {
    /// All.
    pub const ALL: [Self; 4] = [
        Self::GrpcUds,
        Self::ConnectUds,
        Self::GrpcTls,
        Self::ConnectTls,
    ];

    /// In results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GrpcUds => "gRPC, UDS",
            Self::ConnectUds => "HTTP CONNECT, UDS",
            Self::GrpcTls => "gRPC, mTLS",
            Self::ConnectTls => "HTTP CONNECT, mTLS",
        }
    }

    /// Whether each tunnel begins with a TLS handshake.
    #[must_use]
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::GrpcTls | Self::ConnectTls)
    }

    fn server(self) -> Vec<&'static str> {
        match self {
            Self::GrpcUds => Example::GrpcUds.server(),
            Self::ConnectUds => CONNECT_ON_SOCKET.to_vec(),
            Self::GrpcTls => Example::Grpc.server(),
            Self::ConnectTls => Example::HttpConnect.server(),
        }
    }

    const fn mode(self) -> Mode {
        match self {
            Self::GrpcUds | Self::GrpcTls => Mode::Grpc,
            Self::ConnectUds | Self::ConnectTls => Mode::HttpConnect,
        }
    }
}

/// A tunnel with clients and a target. In the order of its fields it is taken down.
pub struct Rig {
    runtime: Runtime,
    /// Server and agent.
    pub tunnel: Tunnel,
    /// Opens tunnels.
    pub dialer: Dialer,
    /// The target's address.
    pub target: SocketAddr,
    transport: Transport,
    makes: Both<Make>,
}

/// Gauges of open connections at a server, and at an agent.
const SERVER_GAUGES: [&str; 4] = [
    "established_connections",
    "pending_backend_dials",
    "http_connections",
    "buffered_bytes",
];
const AGENT_GAUGES: [&str; 2] = ["open_endpoint_connections", "buffered_bytes"];

/// Whether all of these gauges are 0.
fn at_rest(metrics: &str, gauges: &[&str]) -> bool {
    gauges.iter().all(|gauge| {
        let mut samples = metrics.lines().filter(|line| !line.starts_with('#'));
        let value = samples.find_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            name.ends_with(&format!("_{gauge}")).then_some(value)
        });
        // A program that has just started does not have all of them.
        value.is_none_or(|value| value == "0")
    })
}

/// Resource usage of server and agent.
#[derive(Debug, Clone, Copy)]
pub struct Both<T> {
    /// The server.
    pub server: T,
    /// The agent.
    pub agent: T,
}

impl Rig {
    /// Starts server and agent of this make.
    ///
    /// # Errors
    /// A program is missing, or something does not start.
    pub fn new(transport: Transport, make: Make) -> Result<Self> {
        Self::of(transport, make, make)
    }

    /// Starts a server and an agent of these makes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(transport: Transport, server: Make, agent: Make) -> Result<Self> {
        // Logging is part of a tunnel's cost, but both log to files here; the flag is klog's own default.
        let tunnel = Tunnel::start_with(&transport.server(), server, agent)?;
        let dialer = Dialer::new(endpoint(transport, &tunnel)?, transport.mode()).limit(DIAL_LIMIT);
        let runtime = tunnel.netns().run(|| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
        })?;
        // On a thread of the runtime, which is in the namespace.
        let target = runtime.block_on(runtime.spawn(target::start()))??;
        Ok(Self {
            runtime,
            tunnel,
            dialer,
            target,
            transport,
            makes: Both { server, agent },
        })
    }

    /// Kills one of the two under these clients, and starts it again.
    ///
    /// # Errors
    /// It is not there again after a while, or clients do not end.
    pub fn kill_under(
        &mut self,
        part: Part,
        clients: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
        let running = self.runtime.spawn(clients);
        let (name, make, flags) = match part {
            Part::Server => ("server", self.makes.server, self.transport.server()),
            _ => ("agent", self.makes.agent, AGENT.to_vec()),
        };
        self.tunnel.stop(name)?;
        self.tunnel.spawn(name, &part.of(make)?, &flags)?;
        self.runtime
            .block_on(running)
            .context("a client has panicked")?;
        self.tunnel.wait_for_agent()
    }

    /// Runs clients in the namespace.
    ///
    /// # Errors
    /// As the clients.
    pub fn run<T: Send + 'static>(
        &self,
        clients: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = self.runtime.block_on(self.runtime.spawn(clients));
        done.context("a client has panicked")?
    }

    /// The processor time of both so far.
    ///
    /// # Errors
    /// One has ended.
    pub fn cpu_time(&self) -> Result<Both<Duration>> {
        self.both(usage::cpu_time)
    }

    /// The resident memory of both in bytes.
    ///
    /// # Errors
    /// One has ended.
    pub fn memory(&self) -> Result<Both<u64>> {
        self.both(usage::resident_memory)
    }

    /// The most memory in bytes that both have had resident.
    ///
    /// # Errors
    /// One has ended.
    pub fn peak_memory(&self) -> Result<Both<u64>> {
        self.both(usage::peak_memory)
    }

    /// How many files both have open.
    ///
    /// # Errors
    /// One has ended.
    pub fn files(&self) -> Result<Both<usize>> {
        self.both(usage::open_files)
    }

    /// How many threads both have.
    ///
    /// # Errors
    /// One has ended.
    pub fn threads(&self) -> Result<Both<usize>> {
        self.both(usage::threads)
    }

    /// Waits until our programs have no tunnel, no dial and no byte left, by their metrics; upstream's are not asked.
    ///
    /// # Errors
    /// They have after a while.
    pub fn until_at_rest(&self) -> Result<()> {
        for (make, address, gauges) in [
            (self.makes.server, SERVER_HEALTH, &SERVER_GAUGES[..]),
            (self.makes.agent, AGENT_HEALTH, &AGENT_GAUGES),
        ] {
            if make == Make::Upstream {
                continue;
            }
            cmd::wait_until(PATIENCE, &format!("rest at {address}"), || {
                let metrics = http::ask(self.tunnel.netns(), address, "/metrics", &[])?.body;
                Ok(at_rest(&metrics, gauges).then_some(()))
            })?;
        }
        Ok(())
    }

    fn both<T>(&self, read: fn(u32) -> Result<T>) -> Result<Both<T>> {
        let of = |name| {
            let pid = self.tunnel.pid(name);
            read(pid.with_context(|| format!("no {name}"))?)
        };
        Ok(Both {
            server: of("server")?,
            agent: of("agent")?,
        })
    }
}

fn endpoint(transport: Transport, tunnel: &Tunnel) -> Result<Endpoint> {
    if !transport.has_tls() {
        return Ok(Endpoint::unix(tunnel.dir().join(SOCKET)));
    }
    let file = |name: &str| -> PathBuf { tunnel.dir().join("certs/frontend").join(name) };
    let tls = Tls {
        server_ca: file("issued/ca.crt"),
        pair: Some(Pair {
            certificate: file("issued/proxy-client.crt"),
            key: file("private/proxy-client.key"),
        }),
        location: "the benchmark has made them",
        alpn: Vec::new(),
        policy: Policy::default(),
    };
    let mut config = ClientConfig::clone(&tls.make(&tls.read()?)?.config);
    // kube-apiserver does not resume sessions either: each of its tunnels has a whole handshake.
    config.resumption = Resumption::disabled();
    Ok(Endpoint::tls("localhost", FRONTEND, Arc::new(config)))
}
