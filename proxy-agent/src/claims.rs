// SPDX-License-Identifier: Apache-2.0

//! Claims on what only one agent of a network namespace may use: the name of its instance, each VIP, each Service, and the
//! handle of its filters. A claim is an abstract Unix socket: the kernel keeps their names per network namespace, and frees
//! them when the process ends for any reason. The holder answers each connection with its identity.
//!
//! `lock.rs` ensures one agent per run directory.

use std::fmt::{self, Display};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net;
use std::process;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::config::Config;
use crate::instance::Instance;

/// Prefix of the sockets' names.
const PREFIX: &str = "proxy-agent/";
/// How long to wait for the holder's answer, which it gives between two passes.
const PATIENCE: Duration = Duration::from_millis(500);
/// Delay after a failed accept(2).
const PAUSE: Duration = Duration::from_secs(1);
/// Maximum length of an answer, in bytes.
const LONGEST_ANSWER: usize = 512;

/// Something that only one agent may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// An instance
    Instance(Instance),
    /// A VIP
    Vip(IpAddr),
    /// The ClusterIP and port of a Service that ends on the proxy
    Service(SocketAddr),
    /// A handle of clsact filters
    Filter(u32),
}

/// Why an agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent holds the claim.
    #[error("another proxy-agent ({holder}) {claim}; stop it, or {remedy}", remedy = .claim.remedy())]
    Held {
        /// The claim.
        claim: Claim,
        /// The identity of the holder, as far as it or the kernel reported it.
        holder: String,
    },
    /// A socket could not be created.
    #[error("cannot claim @{name} in this network namespace")]
    Io {
        /// The name of the socket.
        name: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// The claims of this process; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Claims {
    /// Tasks that answer connections, one for each socket.
    _answering: JoinSet<()>,
}

impl Claims {
    /// Takes all claims of an agent, or none; `filter` is the handle of its clsact filters.
    ///
    /// # Errors
    ///
    /// If another agent holds one, or the kernel refuses a socket.
    pub async fn take(config: &Config, filter: u32) -> Result<Self, Error> {
        let mut held = Vec::new();
        for claim in claims(config, filter) {
            held.extend(claim.take().await?);
        }
        let mut answering = JoinSet::new();
        let answer = format!(
            "{}, --instance={}, --run-dir={}",
            process::id(),
            config.instance,
            config.run_dir.display()
        );
        for listener in held {
            answering.spawn(answer_all(listener, answer.clone()));
        }
        Ok(Self {
            _answering: answering,
        })
    }
}

/// The claims of an agent with these settings.
fn claims(config: &Config, filter: u32) -> Vec<Claim> {
    let vips = config.vips.iter().copied().map(Claim::Vip);
    let services = config.services.iter();
    let services = services.map(|service| Claim::Service(service.cluster_ip));
    let mut claims = vec![Claim::Instance(config.instance)];
    claims.extend(vips.chain(services));
    claims.push(Claim::Filter(filter));
    claims
}

impl Claim {
    fn name(self) -> String {
        match self {
            Self::Instance(instance) => format!("{PREFIX}instance/{instance}"),
            Self::Vip(vip) => format!("{PREFIX}vip/{vip}"),
            Self::Service(service) => format!("{PREFIX}service/{service}"),
            Self::Filter(handle) => format!("{PREFIX}filter/{handle:06x}"),
        }
    }

    /// False only if nobody holds the claim, or a process of another user does.
    pub async fn may_be_held(self) -> bool {
        match holder(&self.name()).await {
            Ok(holder) => holder.is_some(),
            Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Instance(_) => "give this one a name of its own with --instance, and other VIPs",
            Self::Vip(_) => "give this one other VIPs",
            Self::Service(_) => "give this one another --service-address, or none",
            Self::Filter(_) => "give this one another --instance",
        }
    }

    /// Binds the socket; none if a process of another user has its name.
    async fn take(self) -> Result<Option<UnixListener>, Error> {
        let name = self.name();
        let failed = |source| Error::Io {
            name: name.clone(),
            source,
        };
        let address = net::SocketAddr::from_abstract_name(&name).map_err(failed)?;
        match net::UnixListener::bind_addr(&address) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed(error)),
        }
        let holder = holder(&name).await;
        // If it does not answer, it may have ended or be overloaded.
        let holder = holder.unwrap_or_else(|error| Some(format!("pid unknown: {error}")));
        let Some(holder) = holder else {
            warn!("ignoring the claim @{name}: its holder runs as another user, so it is no agent");
            return Ok(None);
        };
        Err(Error::Held {
            claim: self,
            holder,
        })
    }
}

/// The identity of a socket's holder; none if it runs as another user: any user can create such sockets, and must not be
/// able to keep the agent from running.
async fn holder(name: &str) -> io::Result<Option<String>> {
    // Fails at once if the backlog is full.
    let mut stream = UnixStream::connect(format!("\0{name}")).await?;
    let peer = stream.peer_cred()?;
    // SAFETY: geteuid(2) cannot fail and accesses no memory.
    if peer.uid() != unsafe { libc::geteuid() } {
        return Ok(None);
    }
    let mut answer = [0; LONGEST_ANSWER];
    let answer = match timeout(PATIENCE, stream.read(&mut answer)).await {
        Ok(Ok(length)) => String::from_utf8_lossy(&answer[..length]).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    // Zero: the process is not visible in this PID namespace.
    let seen = peer.pid().filter(|pid| *pid != 0);
    Ok(Some(identity(seen, &answer)))
}

/// Formats the identity of a process: the pid as `seen` in this PID namespace, else the one in its own `answer`, and the
/// rest of that.
fn identity(seen: Option<i32>, answer: &str) -> String {
    let (own, rest) = answer.split_once(", ").unwrap_or_default();
    let mut words = match seen {
        Some(pid) => vec![format!("pid {pid}")],
        None if own.is_empty() => vec!["pid unknown, in another PID namespace".to_owned()],
        None => vec![format!("pid {own} in its own PID namespace")],
    };
    if !rest.is_empty() {
        words.push(rest.to_owned());
    }
    words.join(", ")
}

/// Answers every connection with the identity of this process.
async fn answer_all(listener: UnixListener, answer: String) {
    loop {
        match listener.accept().await {
            // The answer fits into the empty buffer of a new connection; a peer that does not read cannot block.
            Ok((stream, _)) => drop(stream.try_write(answer.as_bytes())),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

impl Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(instance) if instance.name().is_empty() => {
                f.write_str("runs in this network namespace, without --instance too")
            }
            Self::Instance(instance) => {
                write!(f, "runs in this network namespace as --instance={instance}")
            }
            Self::Vip(vip) => write!(f, "manages {vip}"),
            Self::Service(service) => write!(f, "translates {service}"),
            Self::Filter(handle) => write!(
                f,
                "runs with an --instance whose filters have the same handle, {handle:#x}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance;

    /// The network namespace may be shared with other tests, hence the pid.
    fn claim() -> Claim {
        Claim::Filter(process::id() | 0xff00_0000)
    }

    async fn hold(claim: Claim) -> JoinSet<()> {
        let listener = claim.take().await.unwrap().unwrap();
        let mut answering = JoinSet::new();
        answering.spawn(answer_all(listener, "77, --instance=b".to_owned()));
        answering
    }

    #[tokio::test]
    async fn a_second_claim_fails_and_names_the_first_holder() {
        let held = hold(claim()).await;
        // Often, to show that peers are not left in the backlog.
        for _ in 0..300 {
            let error = claim().take().await.unwrap_err().to_string();
            let first = format!("(pid {}, --instance=b) runs", process::id());
            assert!(error.contains(&first), "{error}");
        }
        drop(held);
        tokio::task::yield_now().await;
        assert!(claim().take().await.unwrap().is_some());
    }

    #[test]
    fn a_process_of_another_pid_namespace_is_named_by_its_own_pid() {
        let answer = "1, --instance=, --run-dir=/r";
        assert_eq!(
            identity(Some(9), answer),
            "pid 9, --instance=, --run-dir=/r"
        );
        assert_eq!(
            identity(None, answer),
            "pid 1 in its own PID namespace, --instance=, --run-dir=/r"
        );
        assert_eq!(identity(Some(9), ""), "pid 9");
        assert_eq!(identity(None, ""), "pid unknown, in another PID namespace");
    }

    proptest! {
        #[test]
        fn no_claim_is_anothers(a in instance::any_instance(), b in instance::any_instance(), vip: std::net::Ipv4Addr) {
            let name = |instance| Claim::Instance(instance).name();
            prop_assert_eq!(name(a) == name(b), a == b);
            prop_assert_ne!(name(a), Claim::Vip(vip.into()).name());
        }
    }
}
