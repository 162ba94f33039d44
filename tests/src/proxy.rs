// SPDX-License-Identifier: Apache-2.0

//! The proxy on the VIP: a real HAProxy in TCP mode, in front of a backend on a Unix socket. The agent does not handle
//! the connection from the proxy to its backend, and a TCP connection would fail when the conntrack table is full.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cgroup::Cgroup;
use crate::cmd::{self, Process};
use crate::node::{Node, SharedLog};
use crate::transfer::Server;
use crate::{Family, PORT, slow_machine};

/// The maximum time until a proxy listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The Unix socket of the backend, in the node's directory.
const BACKEND: &str = "backend.sock";

/// A running HAProxy with its backend.
#[derive(Debug)]
pub struct Proxy {
    haproxy: Process,
    backend: Option<Server>,
    ca: Option<PathBuf>,
}

impl Proxy {
    /// Starts HAProxy on `VIP:443` of both families, with the server of [`crate::transfer`] as the backend.
    ///
    /// # Errors
    /// Returns an error if the VIPs are not up, or if HAProxy does not start.
    pub fn start(node: &Node) -> Result<Self> {
        let socket = node.dir().join(BACKEND);
        let backend = Server::listen_unix(&socket)?;
        Ok(Self {
            haproxy: haproxy(node, &tcp_config(&socket)?, None)?,
            backend: Some(backend),
            ca: None,
        })
    }

    /// Starts HAProxy with a TLS server as the backend that replies to each request with 200. Its certificate is valid
    /// for each VIP and ClusterIP, see [`Proxy::ca`].
    ///
    /// # Errors
    /// Returns the same errors as [`Proxy::start`], and an error if openssl cannot create a certificate.
    pub fn start_tls(node: &Node) -> Result<Self> {
        let (ca, pem) = certificate(node.dir())?;
        let socket = node.dir().join(BACKEND);
        let mut config = tcp_config(&socket)?;
        write!(
            config,
            "\nfrontend apiserver\n    mode http\n    bind unix@{} ssl crt {}\n    \
             http-request return status 200 content-type text/plain string ok\n",
            socket.display(),
            pem.display()
        )?;
        Ok(Self {
            haproxy: haproxy(node, &config, None)?,
            backend: None,
            ca: Some(ca),
        })
    }

    /// Starts HAProxy in its own cgroup, in front of API servers: for each family, the one at the address that `at`
    /// returns.
    ///
    /// # Errors
    /// Returns the same errors as [`Proxy::start`].
    pub fn start_to(
        node: &Node,
        cgroup: &Cgroup,
        server: fn(Family) -> SocketAddr,
    ) -> Result<Self> {
        let mut config = global();
        for (family, name) in Family::ALL.into_iter().zip(["v4", "v6"]) {
            write!(
                config,
                "\nlisten {name}\n    mode tcp\n    bind {}\n    server one {}\n",
                family.vip_socket(),
                server(family)
            )?;
        }
        Ok(Self {
            haproxy: haproxy(node, &config, Some(cgroup))?,
            backend: None,
            ca: None,
        })
    }

    /// Returns HAProxy's process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.haproxy.id()
    }

    /// Returns the number of connections that its backend has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.backend.as_ref().map_or(0, Server::accepted)
    }

    /// Returns the certificate that clients of [`Proxy::start_tls`] trust.
    #[must_use]
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }
}

fn global() -> String {
    String::from(
        "global\n    maxconn 4000\n    nbthread 1\n\
         defaults\n    timeout connect 10s\n    timeout client 180s\n    timeout server 180s\n",
    )
}

fn tcp_config(backend: &Path) -> Result<String> {
    let mut config = global() + "\nfrontend vip\n    mode tcp\n";
    for family in Family::ALL {
        writeln!(config, "    bind {}", family.vip_socket())?;
    }
    write!(
        config,
        "    default_backend apiservers\n\nbackend apiservers\n    mode tcp\n    server one unix@{}\n",
        backend.display()
    )?;
    Ok(config)
}

/// TLS servers at the other end of the uplink that reply to each request with 200, in the role of API servers.
#[derive(Debug)]
pub struct ApiServers {
    _haproxy: Process,
    ca: PathBuf,
}

impl ApiServers {
    /// Starts one for each family, at the address that `at` returns. Their certificate is valid for each VIP and
    /// ClusterIP.
    ///
    /// # Errors
    /// Returns the same errors as [`Proxy::start_tls`].
    pub fn start(node: &Node, at: fn(Family) -> SocketAddr) -> Result<Self> {
        let (ca, pem) = certificate(node.dir())?;
        let mut config = global() + "\nfrontend apiserver\n    mode http\n";
        for family in Family::ALL {
            writeln!(config, "    bind {} ssl crt {}", at(family), pem.display())?;
        }
        config += "    http-request return status 200 content-type text/plain string ok\n";
        let mut command = node.uplink.command("haproxy");
        let path = node.dir().join("apiserver.cfg");
        fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
        command.arg("-db").arg("-f").arg(&path);
        let port = at(Family::V4).port();
        Ok(Self {
            _haproxy: listening(node, "apiserver", command, port, Family::ALL.len())?,
            ca,
        })
    }

    /// Returns the certificate that clients trust.
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.ca
    }
}

fn haproxy(node: &Node, config: &str, cgroup: Option<&Cgroup>) -> Result<Process> {
    let path = node.dir().join("haproxy.cfg");
    fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    let mut command = node.netns.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    if let Some(cgroup) = cgroup {
        cgroup.enter(&mut command)?;
    }
    let process = listening(node, "haproxy", command, PORT, Family::ALL.len())?;
    slow_machine::be_noticed()?;
    Ok(process)
}

/// Starts a command that runs a server, and waits until the given number of sockets listen on `port` in its namespace.
///
/// # Errors
/// Returns an error if the command exits instead, or if the sockets do not listen in time; then its log is among the
/// node's.
///
/// # Panics
/// Never panics: the lock is new.
pub fn listening(
    node: &Node,
    name: &str,
    mut command: Command,
    port: u16,
    sockets: usize,
) -> Result<Process> {
    let log_path = node.dir().join(format!("{name}.log"));
    let log = fs::File::create(&log_path)?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    cmd::guard_child(&mut command);
    let child = command.spawn();
    let mut process = Process::new(child.with_context(|| format!("starting {name}"))?);
    let tcp = format!("/proc/{}/net", process.id());
    let started = cmd::wait_until(START_TIMEOUT, &format!("{name} to listen"), || {
        if let Some(status) = process.child().try_wait()? {
            bail!("{name} ended at once: {status}");
        }
        Ok((count_listeners(&tcp, port) >= sockets).then_some(()))
    });
    if let Err(error) = started {
        let log = SharedLog::default();
        *log.lock().expect("a new lock") = fs::read_to_string(&log_path)?;
        node.add_log(name, log);
        return Err(error);
    }
    Ok(process)
}

/// Counts the sockets that listen on a port, without connecting to them, which would leave entries in conntrack.
fn count_listeners(proc_net: &str, port: u16) -> usize {
    let suffix = format!(":{port:04X}");
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(format!("{proc_net}/{file}")).ok())
        .flat_map(|table| table.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // sl local_address rem_address st …; 0A is LISTEN
            words.get(3) == Some(&"0A") && words[1].ends_with(&suffix)
        })
        .count()
}

/// Creates a self-signed certificate that is valid for each VIP and ClusterIP. Returns the certificate's file, and the
/// file with certificate and key.
///
/// # Errors
/// Returns an error if openssl fails.
pub fn certificate(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (cert, key, pem) = (dir.join("ca.crt"), dir.join("tls.key"), dir.join("tls.pem"));
    let names: Vec<String> = Family::ALL
        .iter()
        .flat_map(|family| [family.vip(), family.cluster_ip()])
        .map(|address| format!("IP:{address}"))
        .collect();
    cmd::run(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=kube-apiserver", "-addext"])
            .arg(format!("subjectAltName={}", names.join(",")))
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert),
        "",
    )?;
    let both = fs::read_to_string(&cert)? + &fs::read_to_string(&key)?;
    fs::write(&pem, both)?;
    Ok((cert, pem))
}
