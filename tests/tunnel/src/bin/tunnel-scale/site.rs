// SPDX-License-Identifier: Apache-2.0

//! A server with tenants in a network namespace of its own, and a runtime for agents, clients and targets there. Tenants
//! have certificates for their agents, and a Unix socket each for their clients.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_tunnel::client::{Dialer, Endpoint, Mode};
use tests::usage;
use tokio::runtime::{Builder, Runtime};
use tunnel_tests::certs;
use tunnel_tests::program::{Make, Part};
use tunnel_tests::tunnel::{CONNECT_ON_SOCKET, Example, SERVER_HEALTH, Tunnel};

/// The time limit of a dial, also while thousands of agents connect.
pub const DIAL_LIMIT: Duration = Duration::from_secs(30);

/// The directory of the agents' certificates, relative to the site's directory.
pub const CERTIFICATES: &str = "certs/agent";

/// The name of the server's process.
const SERVER: &str = "server";

/// A server with tenants. Its fields are dropped in the order in which they are declared.
pub struct Site {
    /// The runtime, whose threads are in the namespace.
    pub runtime: Runtime,
    tunnel: Tunnel,
    tenants: usize,
    mode: Mode,
}

/// Returns a runtime for agents, clients and targets.
///
/// # Errors
/// Returns an error if threads cannot be started.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Returns a tenant's name.
pub fn name(tenant: usize) -> String {
    format!("t{tenant:04}")
}

impl Site {
    /// Starts a server with this number of tenants, whose clients use `mode`.
    ///
    /// # Errors
    /// Returns an error if the caller is not root, or if a program does not start.
    pub fn new(tenants: usize, mode: Mode) -> Result<Self> {
        let tunnel = Tunnel::new()?;
        let directory = tunnel.dir().join("certs");
        let mut rules = String::from("tenants:\n");
        for tenant in 0..tenants {
            let name = name(tenant);
            certs::issue(&directory, "agent", &name, &name)?;
            // Writing to a String cannot fail.
            let _ = write!(
                rules,
                "- name: {name}\n  agents: [{{certificate: {{organization: {name}}}}}]\n  \
                 clients: [{{unixSocket: {}}}]\n",
                tunnel.dir().join(&name).display()
            );
        }
        fs::write(tunnel.dir().join("tenants.yaml"), rules).context("writing tenants.yaml")?;
        let runtime = tunnel.netns().run(runtime)?;
        let mut site = Self {
            runtime,
            tunnel,
            tenants,
            mode,
        };
        site.start_server()?;
        Ok(site)
    }

    /// Starts the server, and waits until it serves.
    ///
    /// # Errors
    /// Returns an error if the server does not become ready.
    pub fn start_server(&mut self) -> Result<()> {
        let mut flags = match self.mode {
            Mode::HttpConnect => CONNECT_ON_SOCKET.to_vec(),
            Mode::Grpc => Example::GrpcUds.server(),
        };
        flags.push("--tenants-config=tenants.yaml");
        let program = Part::Server.of(Make::Ours)?;
        self.tunnel.spawn(SERVER, &program, &flags)?;
        self.tunnel.wait_for(SERVER_HEALTH, "/healthz")
    }

    /// Kills the server.
    ///
    /// # Errors
    /// Returns an error if the server does not run.
    pub fn stop_server(&mut self) -> Result<()> {
        self.tunnel.stop(SERVER)
    }

    /// Returns the number of tenants.
    pub const fn tenants(&self) -> usize {
        self.tenants
    }

    /// Returns the directory of all certificates of agents.
    pub fn certificates(&self) -> PathBuf {
        self.tunnel.dir().join(CERTIFICATES)
    }

    /// Returns a command that runs in the namespace and the site's directory.
    pub fn command(&self, program: &Path) -> Command {
        self.tunnel.command(program)
    }

    /// Returns the endpoint that the clients of a tenant connect to.
    pub fn endpoint(&self, tenant: usize) -> Endpoint {
        Endpoint::unix(self.tunnel.dir().join(name(tenant)))
    }

    /// Returns a dialer of a tenant's client.
    pub fn dialer(&self, tenant: usize) -> Dialer {
        Dialer::new(self.endpoint(tenant), self.mode).limit(DIAL_LIMIT)
    }

    /// Runs a future in the namespace.
    ///
    /// # Errors
    /// Returns the error of the future.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = self.runtime.block_on(self.runtime.spawn(work));
        done.context("it has panicked")?
    }

    fn pid(&self) -> Result<u32> {
        self.tunnel.pid(SERVER).context("no server")
    }

    /// Returns the server's resident memory, in bytes.
    ///
    /// # Errors
    /// Returns an error if the server has exited.
    pub fn memory(&self) -> Result<u64> {
        usage::resident_memory(self.pid()?)
    }

    /// Returns the server's processor time so far.
    ///
    /// # Errors
    /// Returns an error if the server has exited.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.pid()?)
    }

    /// Returns the server's log.
    pub fn logs(&self) -> String {
        self.tunnel.logs()
    }
}
