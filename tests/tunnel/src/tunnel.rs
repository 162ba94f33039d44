// SPDX-License-Identifier: Apache-2.0

//! A tunnel as in upstream's examples: the test server, the server and the agent run in one network namespace. They are
//! started with the commands of the examples, in a directory that contains their certificates.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::cmd::{self, Process};
use tests::dir::Dir;
use tests::netns::Netns;
use tests::{http, leftovers};

use crate::certs::{self, Existing};
use crate::program::{Make, Part};

/// The maximum time of any operation, long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The server's health endpoint, on the examples' default port.
pub const SERVER_HEALTH: &str = "127.0.0.1:8092";
/// The agent's health endpoint.
pub const AGENT_HEALTH: &str = "127.0.0.1:8093";

/// The Unix socket of the second example, in the tunnel's directory.
pub const SOCKET: &str = "uds-proxy";

/// More than the maximum size of the head of a response to CONNECT, in bytes.
const LONGEST: usize = 1024;

/// The first line of the test server's response to `/success` that no error page contains.
const SUCCESS: &str = "Success";

/// curl's flags in the third example.
pub const CURL: [&str; 13] = [
    "--silent",
    "--show-error",
    "--proxytunnel",
    "--proxy-key",
    "certs/frontend/private/proxy-client.key",
    "--proxy-cert",
    "certs/frontend/issued/proxy-client.crt",
    "--proxy-cacert",
    "certs/frontend/issued/ca.crt",
    "--proxy-cert-type",
    "PEM",
    "--proxy",
    "https://127.0.0.1:8090",
];

/// The target of the examples.
pub const TARGET: &str = "http://localhost:8000/success";

/// One of upstream's three examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Example {
    /// A client that uses gRPC with mTLS.
    Grpc,
    /// A client that uses gRPC on a Unix socket, as kube-apiserver does.
    GrpcUds,
    /// A client that uses HTTP CONNECT with mTLS.
    HttpConnect,
}

/// The flags with the server's certificates for clients.
const FRONTEND: [&str; 3] = [
    "--server-ca-cert=certs/frontend/issued/ca.crt",
    "--server-cert=certs/frontend/issued/proxy-frontend.crt",
    "--server-key=certs/frontend/private/proxy-frontend.key",
];

/// The flags with the server's certificates for agents.
const CLUSTER: [&str; 3] = [
    "--cluster-ca-cert=certs/agent/issued/ca.crt",
    "--cluster-cert=certs/agent/issued/proxy-frontend.crt",
    "--cluster-key=certs/agent/private/proxy-frontend.key",
];

/// The server's flags for clients that speak HTTP CONNECT on a Unix socket, without TLS.
pub const CONNECT_ON_SOCKET: [&str; 6] = [
    "--mode=http-connect",
    "--server-port=0",
    "--uds-name=uds-proxy",
    CLUSTER[0],
    CLUSTER[1],
    CLUSTER[2],
];

/// The agent's flags.
pub const AGENT: [&str; 3] = [
    "--ca-cert=certs/agent/issued/ca.crt",
    "--agent-cert=certs/agent/issued/proxy-agent.crt",
    "--agent-key=certs/agent/private/proxy-agent.key",
];

/// The test client's flags.
const CLIENT: [&str; 3] = [
    "--ca-cert=certs/frontend/issued/ca.crt",
    "--client-cert=certs/frontend/issued/proxy-client.crt",
    "--client-key=certs/frontend/private/proxy-client.key",
];

impl Example {
    /// All examples.
    pub const ALL: [Self; 3] = [Self::Grpc, Self::GrpcUds, Self::HttpConnect];

    /// Returns the name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "gRPC with mTLS",
            Self::GrpcUds => "gRPC on a Unix socket",
            Self::HttpConnect => "HTTP CONNECT with mTLS",
        }
    }

    /// Returns the server's flags.
    #[must_use]
    pub fn server(self) -> Vec<&'static str> {
        let frontend: &[&str] = match self {
            Self::Grpc | Self::HttpConnect => &FRONTEND,
            Self::GrpcUds => &["--server-port=0", "--uds-name=uds-proxy"],
        };
        let mode: &[&str] = match self {
            Self::HttpConnect => &["--mode=http-connect"],
            _ => &[],
        };
        [mode, frontend, &CLUSTER].concat()
    }

    /// Returns the test client's flags.
    #[must_use]
    pub fn client(self) -> Vec<&'static str> {
        match self {
            Self::Grpc => CLIENT.to_vec(),
            Self::GrpcUds => vec!["--proxy-port=0", "--proxy-uds=uds-proxy", "--proxy-host="],
            Self::HttpConnect => [
                &["--mode=http-connect", "--proxy-host=127.0.0.1"],
                &CLIENT[..],
            ]
            .concat(),
        }
    }
}

/// A process of the tunnel, with its log.
struct Running {
    name: &'static str,
    process: Process,
    log: PathBuf,
}

/// A running tunnel. Its processes are killed and its namespace is deleted when it is dropped.
pub struct Tunnel {
    // This is the first field: processes end before their namespace is deleted.
    running: Vec<Running>,
    netns: Netns,
    dir: Dir,
}

impl Tunnel {
    /// Creates an empty namespace and a directory with certificates.
    ///
    /// # Errors
    /// Returns an error if the caller is not root, or if a resource is exhausted.
    pub fn new() -> Result<Self> {
        let dir = Dir::new()?;
        certs::write(&dir.path().join("certs"), &[], Existing::Keep)?;
        Ok(Self {
            running: Vec::new(),
            netns: Netns::new(&format!("pa-{}-tunnel", leftovers::unique_id()?))?,
            dir,
        })
    }

    /// Starts an example with these makes of server and agent, and waits until the agent is connected.
    ///
    /// # Errors
    /// Returns an error with the logs if a program is missing or does not become ready in time.
    pub fn start(example: Example, server: Make, agent: Make) -> Result<Self> {
        Self::start_with(&example.server(), server, agent)
    }

    /// Does the same as [`Tunnel::start`], with these flags of the server.
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`Tunnel::start`].
    pub fn start_with(flags: &[&str], server: Make, agent: Make) -> Result<Self> {
        let mut tunnel = Self::new()?;
        tunnel
            .start_parts(flags, server, agent)
            .with_context(|| tunnel.logs())?;
        Ok(tunnel)
    }

    fn start_parts(&mut self, flags: &[&str], server: Make, agent: Make) -> Result<()> {
        self.spawn("test server", &Part::TestServer.of(server)?, &[])?;
        self.spawn("server", &Part::Server.of(server)?, flags)?;
        self.wait_for(SERVER_HEALTH, "/healthz")?;
        self.spawn("agent", &Part::Agent.of(agent)?, &AGENT)?;
        self.wait_for_agent()
    }

    /// Waits until the agent is connected to the server.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time.
    pub fn wait_for_agent(&mut self) -> Result<()> {
        self.wait_for(AGENT_HEALTH, "/readyz")?;
        // The server registers an agent a moment after the agent considers itself connected.
        self.wait_for(SERVER_HEALTH, "/readyz")
    }

    /// Returns the tunnel's namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Returns the directory in which all programs start: it contains certificates, sockets and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a command that runs in the namespace and the directory.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.netns.command(program);
        command.current_dir(self.dir());
        command
    }

    /// Starts a program that runs until the tunnel is dropped.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn spawn(&mut self, name: &'static str, program: &Path, args: &[&str]) -> Result<()> {
        let command = self.command(program);
        self.spawn_as(name, command, args)
    }

    /// Does the same as [`Tunnel::spawn`], in another namespace.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn spawn_in(
        &mut self,
        netns: &Netns,
        name: &'static str,
        program: &Path,
        args: &[&str],
    ) -> Result<()> {
        let mut command = netns.command(program);
        command.current_dir(self.dir());
        self.spawn_as(name, command, args)
    }

    /// Does the same as [`Tunnel::spawn`], by a command that already runs in a namespace.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn spawn_as(
        &mut self,
        name: &'static str,
        mut command: Command,
        args: &[&str],
    ) -> Result<()> {
        let log = self.dir().join(format!("{}.log", name.replace(' ', "-")));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = cmd::guard_child(&mut command)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        self.running.push(Running {
            name,
            process: Process::new(child),
            log,
        });
        Ok(())
    }

    /// Runs a program and waits until it exits.
    ///
    /// # Errors
    /// Returns an error if it cannot be started.
    pub fn run(&self, program: &Path, args: &[&str]) -> Result<Output> {
        cmd::output(self.command(program).args(args), "")
    }

    /// Opens a connection to this target through a server with the flags [`CONNECT_ON_SOCKET`].
    ///
    /// # Errors
    /// Returns an error if the connection cannot be opened.
    pub fn connect(&self, target: SocketAddr) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.dir().join(SOCKET))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "CONNECT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        )?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).context("reading the head")?;
            head.push(byte[0]);
            ensure!(head.len() < LONGEST, "no end of {head:?}");
        }
        let head = String::from_utf8(head)?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(stream)
    }

    /// Runs a client that requests `/success` and prints the page.
    ///
    /// # Errors
    /// Returns an error with all logs if the client fails or prints another text.
    pub fn request(&self, program: &Path, args: &[&str]) -> Result<String> {
        let output = self.run(program, args)?;
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let is_good = output.status.success() && printed.contains(SUCCESS);
        ensure!(
            is_good,
            "{} {args:?}: {}\n{printed}\n{}",
            program.display(),
            output.status,
            self.logs()
        );
        Ok(printed)
    }

    /// Waits until an endpoint replies with 200. A process that fails ends the wait.
    ///
    /// # Errors
    /// Returns an error if this does not happen in time, or if a process fails.
    pub fn wait_for(&mut self, address: &str, path: &str) -> Result<()> {
        let Self { netns, running, .. } = self;
        cmd::wait_until(PATIENCE, &format!("200 from {address}{path}"), || {
            for running in &mut *running {
                let ended = running.process.child().try_wait()?;
                if let Some(status) = ended.filter(|status| !status.success()) {
                    bail!("the {} has ended: {status}", running.name);
                }
            }
            let answer = http::ask(netns, address, path, &[])?;
            Ok((answer.code == 200).then_some(()))
        })
    }

    /// Kills a running program.
    ///
    /// # Errors
    /// Returns an error if no program has this name.
    pub fn stop(&mut self, process: &str) -> Result<()> {
        let index = self.running.iter().position(|one| one.name == process);
        let index = index.with_context(|| format!("no {process} runs"))?;
        // Dropping it kills the process.
        drop(self.running.remove(index));
        Ok(())
    }

    /// Returns the process ID of a running program.
    #[must_use]
    pub fn pid(&self, process: &str) -> Option<u32> {
        let running = self.running.iter().find(|running| running.name == process);
        running.map(|running| running.process.id())
    }

    /// Returns the lines of a process's log that contain `words`.
    #[must_use]
    pub fn lines(&self, process: &str, words: &str) -> Vec<String> {
        let running = self.running.iter().find(|running| running.name == process);
        let text = running.and_then(|running| fs::read_to_string(&running.log).ok());
        let text = text.unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains(words));
        lines.map(str::to_owned).collect()
    }

    /// Returns the logs of all processes.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |running: &Running| {
            let text = fs::read_to_string(&running.log).unwrap_or_default();
            format!("--- {}\n{text}", running.name)
        };
        self.running.iter().map(log).collect()
    }
}
