// SPDX-License-Identifier: Apache-2.0

//! What only one agent of a network namespace may have: the name of its instance, each VIP, each
//! Service it translates, and the handle of its filters. Each is claimed by an abstract Unix socket,
//! which the kernel keeps for each network namespace by itself and frees when the agent ends, however
//! it ends. Who asks for one that is taken is told by whom.
//!
//! One agent per run directory is `lock.rs`'s business.

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

use crate::backend::ebpf;
use crate::config::Config;
use crate::instance::Instance;

/// What the names of the sockets begin with.
const PREFIX: &str = "proxy-agent/";
/// How long the holder may take to say who it is: it does so between two passes.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long to wait after an answer could not be given.
const PAUSE: Duration = Duration::from_secs(1);
/// More is not read of an answer, in bytes.
const LONGEST_ANSWER: usize = 512;

/// Something that only one agent may have.
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
    /// Another one has what it asks for.
    #[error("another proxy-agent ({holder}) {claim}; stop it, or {way_out}", way_out = .claim.way_out())]
    Held {
        /// What it has.
        claim: Claim,
        /// Who it is, as far as it or the kernel told.
        holder: String,
    },
    /// A socket could not be made.
    #[error("cannot claim @{name} in this network namespace")]
    Io {
        /// The name of the socket.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Held until it is dropped, or the process ends.
#[derive(Debug)]
pub struct Claims {
    /// Tell who asks, each for one socket.
    _answering: JoinSet<()>,
}

impl Claims {
    /// Claims all that the agent needs, or nothing.
    ///
    /// # Errors
    ///
    /// If another agent has some of it, or the kernel refuses.
    pub async fn take(config: &Config) -> Result<Self, Error> {
        let mut held = Vec::new();
        for claim in claims(config) {
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
            answering.spawn(tell(listener, answer.clone()));
        }
        Ok(Self {
            _answering: answering,
        })
    }
}

/// All that an agent with these settings needs for itself.
fn claims(config: &Config) -> Vec<Claim> {
    let vips = config.vips.iter().copied().map(Claim::Vip);
    let services = config.services.iter();
    let services = services.map(|service| Claim::Service(service.cluster_ip));
    let mut claims = vec![Claim::Instance(config.instance)];
    claims.extend(vips.chain(services));
    claims.push(Claim::Filter(ebpf::filter_handle(config.instance)));
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

    /// True unless nobody has it, or a stranger.
    pub async fn may_be_held(self) -> bool {
        match holder(&self.name()).await {
            Ok(holder) => holder.is_some(),
            Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
        }
    }

    fn way_out(self) -> &'static str {
        match self {
            Self::Instance(_) => "give this one a name of its own with --instance, and other VIPs",
            Self::Vip(_) => "give this one other VIPs",
            Self::Service(_) => "give this one another --service-address, or none",
            Self::Filter(_) => "give this one another --instance",
        }
    }

    /// The socket with its name; none if a stranger has the name.
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
        // Where it cannot be asked it may be gone by now, or be asked by too many.
        let holder = holder.unwrap_or_else(|error| Some(format!("pid unknown: {error}")));
        let Some(holder) = holder else {
            warn!("@{name} is held by another user's process, which is no agent: it is ignored");
            return Ok(None);
        };
        Err(Error::Held {
            claim: self,
            holder,
        })
    }
}

/// Who holds a socket; none if it is another user's process: anybody can make such sockets, and
/// nobody but who has our rights may keep an agent from running.
async fn holder(name: &str) -> io::Result<Option<String>> {
    // Refused at once where more ask than are answered.
    let mut stream = UnixStream::connect(format!("\0{name}")).await?;
    let peer = stream.peer_cred()?;
    // SAFETY: it cannot fail and touches no memory.
    if peer.uid() != unsafe { libc::geteuid() } {
        return Ok(None);
    }
    let mut answer = [0; LONGEST_ANSWER];
    let told = match timeout(PATIENCE, stream.read(&mut answer)).await {
        Ok(Ok(length)) => String::from_utf8_lossy(&answer[..length]).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    };
    // Zero is a process that cannot be seen from here.
    let seen = peer.pid().filter(|pid| *pid != 0);
    Ok(Some(identity(seen, &told)))
}

/// Names a process: by its id as it is `seen` from here, or else by the one that it has `told` with the
/// rest.
fn identity(seen: Option<i32>, told: &str) -> String {
    let (own, rest) = told.split_once(", ").unwrap_or_default();
    let mut words = match seen {
        Some(pid) => vec![format!("pid {pid}")],
        None if own.is_empty() => vec!["pid unknown, in another PID namespace".to_owned()],
        None => vec![format!("pid {own} as it sees itself")],
    };
    if !rest.is_empty() {
        words.push(rest.to_owned());
    }
    words.join(", ")
}

/// Tells everybody who asks who holds the socket.
async fn tell(listener: UnixListener, answer: String) {
    loop {
        match listener.accept().await {
            // It fits into the empty buffer of a new connection; who does not listen is not waited for.
            Ok((stream, _)) => drop(stream.try_write(answer.as_bytes())),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

impl Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(instance) if instance.name().is_empty() => {
                f.write_str("runs in this network namespace, without a name as well")
            }
            Self::Instance(instance) => {
                write!(f, "runs in this network namespace as --instance={instance}")
            }
            Self::Vip(vip) => write!(f, "looks after {vip}"),
            Self::Service(service) => write!(f, "translates {service}"),
            Self::Filter(handle) => write!(
                f,
                "runs with an --instance that gives filters the same handle, {handle:#x}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance;

    /// In a network namespace of its own the names are not another test's.
    fn claim() -> Claim {
        Claim::Filter(process::id() | 0xff00_0000)
    }

    async fn hold(claim: Claim) -> JoinSet<()> {
        let listener = claim.take().await.unwrap().unwrap();
        let mut answering = JoinSet::new();
        answering.spawn(tell(listener, "77, --instance=b".to_owned()));
        answering
    }

    #[tokio::test]
    async fn who_comes_second_is_told_of_the_first() {
        let held = hold(claim()).await;
        // Many times: those who asked are not left waiting.
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
    fn a_process_of_another_pid_namespace_is_named_as_it_sees_itself() {
        let told = "1, --instance=, --run-dir=/r";
        assert_eq!(identity(Some(9), told), "pid 9, --instance=, --run-dir=/r");
        assert_eq!(
            identity(None, told),
            "pid 1 as it sees itself, --instance=, --run-dir=/r"
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
