// SPDX-License-Identifier: Apache-2.0

//! The webhook under test, as a process with certificates of its own, on ports of its own on loopback.
//!
//! [`certs`] makes the certificates, [`client`] talks to it, [`oracle`] computes the expected
//! answers, and [`load`] asks it as much as possible.

pub mod certs;
pub mod client;
pub mod load;
pub mod oracle;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tests::agent::program;
use tests::cmd::{self, Process, wait_until};
use tests::dir::Dir;
use tests::node::SharedLog;
use tests::usage;

use self::certs::Authority;
use self::client::{Client, Tls};

/// The path of the original.
pub const PATH: &str = "/webhook/pod-apiserver-env";

/// The path of Gardener Resource Manager.
pub const GARDENER_PATH: &str = "/webhooks/kubernetes-service-host";

/// The name that the webhook sets in pods.
pub const FQDN: &str = "foo.bar.";

/// How long anything may take: a bound for a loaded machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The webhook's executable: `PROXY_WEBHOOK_BIN`, or the one built beside the tests.
///
/// # Errors
/// When there is none; says how to build it.
pub fn binary() -> Result<PathBuf> {
    program("PROXY_WEBHOOK_BIN", "apiserver-proxy-pod-webhook")
}

/// A webhook that runs.
#[derive(Debug)]
pub struct Webhook {
    /// Its process.
    pub process: Process,
    /// Where it takes reviews.
    pub reviews: SocketAddr,
    /// The address of its probes and metrics.
    pub probes: SocketAddr,
    /// The authority that signed its certificate.
    pub authority: Authority,
    /// Its `--cert-dir`.
    pub dir: Dir,
    log: SharedLog,
}

impl Webhook {
    /// Starts one with a fresh certificate and these flags.
    ///
    /// # Errors
    /// When it does not serve after a while.
    pub fn start(args: &[&str]) -> Result<Self> {
        let dir = Dir::new()?;
        let authority = Authority::new(&dir.path().join("authority"))?;
        authority.issue("server")?.install(dir.path())?;
        Self::start_in(dir, authority, args)
    }

    /// Starts one with the files in `dir`.
    ///
    /// # Errors
    /// When it does not serve after a while.
    pub fn start_in(dir: Dir, authority: Authority, args: &[&str]) -> Result<Self> {
        Self::start_program(&binary()?, dir, authority, args)
    }

    /// Starts another program than [`binary`].
    ///
    /// # Errors
    /// When it does not serve after a while.
    ///
    /// # Panics
    /// Never: no thread panics while it holds the lock of the log.
    pub fn start_program(
        program: &Path,
        dir: Dir,
        authority: Authority,
        args: &[&str],
    ) -> Result<Self> {
        let mut command = command(program, dir.path());
        command.args(args);
        let mut child = cmd::guard_child(&mut command)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stderr = child.stderr.take().context("stderr is a pipe")?;
        let log = SharedLog::default();
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().expect("no panic while held");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut process = Process::new(child);
        let addresses = wait_until(PATIENCE, "the webhook to serve", || {
            let log = text(&log);
            let found = address(&log, "reviews on https://").zip(address(&log, "on http://"));
            match process.child().try_wait()? {
                Some(status) if found.is_none() => bail!("it has ended: {status}\n{log}"),
                _ => Ok(found),
            }
        })?;
        Ok(Self {
            process,
            reviews: addresses.0,
            probes: addresses.1,
            authority,
            dir,
            log,
        })
    }

    /// Everything that the webhook has logged.
    #[must_use]
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Waits until it has logged something.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_log(&self, words: &str) -> Result<()> {
        wait_until(PATIENCE, &format!("{words:?} in the log"), || {
            Ok(self.log().contains(words).then_some(()))
        })
        .with_context(|| self.log())
    }

    /// A client that trusts its certificate.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn client(&self) -> Result<Client> {
        Client::connect(self.reviews, &Tls::new(&self.authority)?)
    }

    /// One line of `/metrics`, without its name and labels.
    ///
    /// # Errors
    /// When there is no such line, or its value is no whole number.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let (_, text) = self.probe("/metrics")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no {name} in\n{text}"))?
            .parse()
            .with_context(|| format!("the value of {name}"))
    }

    /// Status code and body of a path of the second listener.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn probe(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.probes).context("connecting to the probes")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("no end of the head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// The address of its second listener.
    #[must_use]
    pub const fn probes(&self) -> SocketAddr {
        self.probes
    }

    /// Its resident memory, in KiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident(&self) -> Result<u64> {
        Ok(usage::resident_memory(self.process.id())? / 1024)
    }

    /// Ends it as kubelet does.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(mut self) -> Result<(ExitStatus, String)> {
        self.process.signal(libc::SIGTERM)?;
        let status = self.process.wait(PATIENCE)?;
        Ok((status, self.log()))
    }
}

/// A command line with the flags that every test has.
fn command(program: &Path, cert_dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--apiserver-fqdn={FQDN}"))
        .arg("--cert-dir")
        .arg(cert_dir)
        .args(["--host=127.0.0.1", "--port=0", "--listen=127.0.0.1:0"]);
    command
}

fn text(log: &Mutex<String>) -> String {
    log.lock().expect("no panic while held").clone()
}

/// The address behind `words`.
fn address(log: &str, words: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(words)?;
    let end = rest.find(|c: char| c == '/' || c == '"' || c.is_whitespace())?;
    rest[..end].parse().ok()
}
