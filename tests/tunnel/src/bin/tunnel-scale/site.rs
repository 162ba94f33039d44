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

/// How long a dial may take, also while thousands of agents come.
pub const DIAL_LIMIT: Duration = Duration::from_secs(30);

/// The certificates of agents, from the site's directory.
pub const CERTIFICATES: &str = "certs/agent";

/// The process.
const SERVER: &str = "server";

/// In the order of its fields it is taken down.
pub struct Site {
    /// In the namespace.
    pub runtime: Runtime,
    tunnel: Tunnel,
    tenants: usize,
    mode: Mode,
}

/// A runtime for agents, clients and targets.
///
/// # Errors
/// No threads.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// A tenant's name.
pub fn name(tenant: usize) -> String {
    format!("t{tenant:04}")
}

impl Site {
    /// A server with so many tenants, whose clients speak like this.
    ///
    /// # Errors
    /// Not root, or something does not start.
    pub fn new(tenants: usize, mode: Mode) -> Result<Self> {
        let tunnel = Tunnel::new()?;
        let directory = tunnel.dir().join("certs");
        let mut rules = String::from("tenants:\n");
        for tenant in 0..tenants {
            let name = name(tenant);
            certs::issue(&directory, "agent", &name, &name)?;
            // A String takes everything.
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
    /// It does not.
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
    /// It does not run.
    pub fn stop_server(&mut self) -> Result<()> {
        self.tunnel.stop(SERVER)
    }

    /// How many tenants there are.
    pub const fn tenants(&self) -> usize {
        self.tenants
    }

    /// The directory of all certificates of agents.
    pub fn certificates(&self) -> PathBuf {
        self.tunnel.dir().join(CERTIFICATES)
    }

    /// A command in the namespace and the directory.
    pub fn command(&self, program: &Path) -> Command {
        self.tunnel.command(program)
    }

    /// Where the clients of a tenant connect.
    pub fn endpoint(&self, tenant: usize) -> Endpoint {
        Endpoint::unix(self.tunnel.dir().join(name(tenant)))
    }

    /// Dials as a client of a tenant.
    pub fn dialer(&self, tenant: usize) -> Dialer {
        Dialer::new(self.endpoint(tenant), self.mode).limit(DIAL_LIMIT)
    }

    /// Runs something in the namespace.
    ///
    /// # Errors
    /// As it does.
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

    /// The server's resident memory in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> Result<u64> {
        usage::resident_memory(self.pid()?)
    }

    /// The server's processor time so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.pid()?)
    }

    /// Everything that the server has logged.
    pub fn logs(&self) -> String {
        self.tunnel.logs()
    }
}
