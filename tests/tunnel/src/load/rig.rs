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
/// The time limit of a dial, also while upstream's tunnels are stalled.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// The protocol and the socket that clients reach the server by.
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
    /// All transports.
    pub const ALL: [Self; 4] = [
        Self::GrpcUds,
        Self::ConnectUds,
        Self::GrpcTls,
        Self::ConnectTls,
    ];

    /// Returns the name in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GrpcUds => "gRPC, UDS",
            Self::ConnectUds => "HTTP CONNECT, UDS",
            Self::GrpcTls => "gRPC, mTLS",
            Self::ConnectTls => "HTTP CONNECT, mTLS",
        }
    }

    /// Returns whether each tunnel begins with a TLS handshake.
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

/// A tunnel with clients and a target. Its fields are dropped in the order in which they are declared.
pub struct Rig {
    runtime: Runtime,
    /// The server and the agent.
    pub tunnel: Tunnel,
    /// The dialer that opens tunnels.
    pub dialer: Dialer,
    /// The target's address.
    pub target: SocketAddr,
    transport: Transport,
    makes: Both<Make>,
}

/// The gauges of open connections of a server, and below those of an agent.
const SERVER_GAUGES: [&str; 4] = [
    "established_connections",
    "pending_backend_dials",
    "http_connections",
    "buffered_bytes",
];
const AGENT_GAUGES: [&str; 2] = ["open_endpoint_connections", "buffered_bytes"];

/// Returns whether all of these gauges are 0.
fn at_rest(metrics: &str, gauges: &[&str]) -> bool {
    gauges.iter().all(|gauge| {
        let mut samples = metrics.lines().filter(|line| !line.starts_with('#'));
        let value = samples.find_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            name.ends_with(&format!("_{gauge}")).then_some(value)
        });
        // A program that has just started does not have all of these metrics yet.
        value.is_none_or(|value| value == "0")
    })
}

/// A value of the server and of the agent.
#[derive(Debug, Clone, Copy)]
pub struct Both<T> {
    /// The server's value.
    pub server: T,
    /// The agent's value.
    pub agent: T,
}

impl Rig {
    /// Starts a server and an agent of this make.
    ///
    /// # Errors
    /// Returns an error if a program is missing or does not start.
    pub fn new(transport: Transport, make: Make) -> Result<Self> {
        Self::of(transport, make, make)
    }

    /// Starts a server and an agent of these makes.
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`Self::new`].
    pub fn of(transport: Transport, server: Make, agent: Make) -> Result<Self> {
        // Logging is part of a tunnel's cost, but both programs log to files here; the flag has klog's own default.
        let tunnel = Tunnel::start_with(&transport.server(), server, agent)?;
        let dialer = Dialer::new(endpoint(transport, &tunnel)?, transport.mode()).limit(DIAL_LIMIT);
        let runtime = tunnel.netns().run(|| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
        })?;
        // The task runs on a thread of the runtime, which is in the namespace.
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

    /// Kills the server or the agent while these clients run, and starts it again.
    ///
    /// # Errors
    /// Returns an error if the program is not ready again in time, or if clients do not finish.
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
    /// Returns the error of the clients.
    pub fn run<T: Send + 'static>(
        &self,
        clients: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = self.runtime.block_on(self.runtime.spawn(clients));
        done.context("a client has panicked")?
    }

    /// Returns the processor time of both programs so far.
    ///
    /// # Errors
    /// Returns an error if one of them has exited.
    pub fn cpu_time(&self) -> Result<Both<Duration>> {
        self.both(usage::cpu_time)
    }

    /// Returns the resident memory of both programs, in bytes.
    ///
    /// # Errors
    /// Returns an error if one of them has exited.
    pub fn memory(&self) -> Result<Both<u64>> {
        self.both(usage::resident_memory)
    }

    /// Returns the peak resident memory of both programs, in bytes.
    ///
    /// # Errors
    /// Returns an error if one of them has exited.
    pub fn peak_memory(&self) -> Result<Both<u64>> {
        self.both(usage::peak_memory)
    }

    /// Returns the number of open files of both programs.
    ///
    /// # Errors
    /// Returns an error if one of them has exited.
    pub fn files(&self) -> Result<Both<usize>> {
        self.both(usage::open_files)
    }

    /// Returns the number of threads of both programs.
    ///
    /// # Errors
    /// Returns an error if one of them has exited.
    pub fn threads(&self) -> Result<Both<usize>> {
        self.both(usage::threads)
    }

    /// Waits until the metrics of our programs report no tunnel, no pending dial and no buffered byte; upstream's
    /// programs are not checked.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
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
    // kube-apiserver does not resume sessions either: each of its tunnels begins with a full handshake.
    config.resumption = Resumption::disabled();
    Ok(Endpoint::tls("localhost", FRONTEND, Arc::new(config)))
}
