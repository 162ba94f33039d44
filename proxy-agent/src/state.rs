// SPDX-License-Identifier: Apache-2.0

//! The agent's state, published for other processes of the node: a file in its run directory, replaced atomically, that
//! outlives the agent. `status` and `doctor` read it; the agent's own decisions do not depend on it.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod history;
pub mod owned;
pub mod upstream;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use self::history::History;
use self::upstream::Upstream;
use crate::config::{BackendChoice, Config};

/// The file's name in the run directory.
const FILE: &str = "state.json";

/// Settings and findings of an agent, as of its last pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent, which may have ended since.
    pub pid: u32,
    /// When it started.
    pub started: SystemTime,
    /// Its settings.
    pub settings: Config,
    /// The backend in use and the reason for the choice.
    pub backend: Choice,
    /// The guarded links; empty in files of versions without this field.
    #[serde(default)]
    pub guard: Guarded,
    /// The proxy's own connections; empty in files of versions without this field.
    #[serde(default)]
    pub upstream: Upstream,
    /// Ids of the loaded eBPF programs, by name.
    pub programs: BTreeMap<String, u32>,
    /// Results of its passes.
    pub history: History,
}

/// The guard: on which links packets for the VIPs are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarded {
    /// The guarded links.
    pub links: Vec<GuardedLink>,
    /// Links that are not guarded although one might expect it, with the reason.
    pub notes: Vec<String>,
}

/// A link on which packets for the VIPs are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedLink {
    /// Its name.
    pub link: String,
    /// The mechanism: `tc`, `xdp` with its mode, or the rules of a backend.
    pub how: String,
}

/// The backend in use, with the reasons against others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The value of `--backend`: a backend's name, or `auto`.
    pub asked: String,
    /// The backend in use.
    pub backend: String,
    /// The variant in use, for example how programs are attached; empty if there is only one.
    pub detail: String,
    /// Backends that are preferred but cannot be used.
    pub rejected: Vec<Rejected>,
    /// Rules that DNAT to the VIP and whose connections this backend breaks.
    pub breaks: Vec<String>,
}

/// A backend that cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its name.
    pub backend: String,
    /// The reason, down to the kernel's error code.
    pub reason: String,
}

/// Failure to read or write the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system returned an error.
    #[error("cannot use {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file has other content.
    #[error("{path} is not the state of an agent of this version", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.backend)?;
        if !self.detail.is_empty() {
            write!(f, ", {}", self.detail)?;
        }
        Ok(())
    }
}

impl Choice {
    /// True if the `iptables` backend uses its learning rules, which its detail starts with.
    pub fn learns(&self) -> bool {
        self.detail.starts_with("learning")
    }

    /// False if a backend was requested by name and cannot be used.
    pub fn is_as_asked(&self) -> bool {
        self.asked == "auto" || self.asked == self.backend
    }
}

impl State {
    /// A configuration for a dry run of this agent: its settings, with the backend in use.
    pub fn as_dry_run(&self, run_dir: &Path) -> Config {
        let backend = BackendChoice::from_str(&self.backend.backend, false);
        Config {
            daemon: false,
            cleanup: false,
            backend: backend.unwrap_or(BackendChoice::None),
            dry_run: true,
            run_dir: run_dir.to_owned(),
            ..self.settings.clone()
        }
    }

    /// Reads the state from a run directory; none if no agent has published any.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or was written by an incompatible version.
    pub fn load(run_dir: &Path) -> Result<Option<Self>, Error> {
        let path = run_dir.join(FILE);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        match serde_json::from_slice(&content) {
            Ok(state) => Ok(Some(state)),
            Err(source) => Err(Error::Content { path, source }),
        }
    }

    /// Replaces the file atomically.
    ///
    /// # Errors
    ///
    /// The file system's error.
    pub fn store(&self, run_dir: &Path) -> Result<(), Error> {
        let path = run_dir.join(FILE);
        let fresh = run_dir.join(format!("{FILE}-new"));
        let write = || {
            fs::write(&fresh, serde_json::to_vec(self).map_err(io::Error::other)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })
    }
}

/// Whether a run directory has a state file.
pub fn exists(run_dir: &Path) -> bool {
    run_dir.join(FILE).exists()
}

/// The files that [`State::store`] creates in a run directory.
pub fn files(run_dir: &Path) -> [PathBuf; 2] {
    [run_dir.join(FILE), run_dir.join(format!("{FILE}-new"))]
}

/// The part of the state file by which the objects of an agent of any version are found.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// The link that carried the VIPs.
    pub interface: Option<String>,
    /// Directory of the pins.
    pub bpffs: Option<PathBuf>,
}

/// Reads the state of the last agent with this run directory, as far as this version understands it.
pub fn remembered(run_dir: &Path) -> Remembered {
    remembered_in(&fs::read(run_dir.join(FILE)).unwrap_or_default())
}

fn remembered_in(content: &[u8]) -> Remembered {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Content {
        settings: Remembered,
    }
    let content: Content = serde_json::from_slice(content).unwrap_or_default();
    content.settings
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process;
    use std::time::Duration;

    use super::*;
    use crate::config::{Guard, GuardMode, ProxyUpstream, Service, TcAttach};

    /// The state of an agent.
    pub(crate) fn example() -> State {
        State {
            version: "1".to_owned(),
            pid: 7,
            started: SystemTime::UNIX_EPOCH,
            settings: Config {
                vips: vec![[10, 96, 0, 2].into()],
                ports: vec![443],
                interface: "lo".to_owned(),
                services: vec![Service {
                    cluster_ip: "10.96.0.1:443".parse().unwrap(),
                    vip: "10.96.0.2:443".parse().unwrap(),
                }],
                bpffs: "/sys/fs/bpf/proxy-agent/v2".into(),
                sync_interval: Duration::from_mins(1),
                tc_attach: TcAttach::Clsact,
                max_connections: 65_536,
                guard: Guard::Links(vec!["eth0".to_owned()]),
                guard_mode: GuardMode::Xdp,
                allow_from: vec!["192.0.2.0/24".parse().unwrap()],
                proxy_upstream: ProxyUpstream::Named(vec!["192.0.2.1:443".parse().unwrap()]),
                ..Config::default()
            },
            guard: Guarded::default(),
            upstream: Upstream::default(),
            backend: Choice {
                asked: "auto".to_owned(),
                backend: "nftables".to_owned(),
                detail: String::new(),
                rejected: vec![Rejected {
                    backend: "ebpf".to_owned(),
                    reason: "bpf(2) is refused".to_owned(),
                }],
                breaks: Vec::new(),
            },
            programs: BTreeMap::from([("vip_ingress".to_owned(), 7)]),
            history: History::default(),
        }
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let dir = std::env::temp_dir().join(format!("proxy-agent-state-{}", process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(State::load(&dir).unwrap(), None);
        let state = example();
        let config = state.as_dry_run(&dir);
        assert!(config.dry_run && config.vips == state.settings.vips);
        state.store(&dir).unwrap();
        assert_eq!(State::load(&dir).unwrap().as_ref(), Some(&state));
        let remembered = Remembered {
            vips: state.settings.vips,
            interface: Some(state.settings.interface),
            bpffs: Some(state.settings.bpffs),
        };
        assert_eq!(
            remembered_in(&fs::read(dir.join(FILE)).unwrap()),
            remembered
        );
        let older = r#"{"settings":{"vips":["10.96.0.2"],"interface":"lo","colour":7}}"#;
        fs::write(dir.join(FILE), older).unwrap();
        assert!(State::load(&dir).is_err());
        let remembered = Remembered {
            bpffs: None,
            ..remembered
        };
        assert_eq!(super::remembered(&dir), remembered);
        fs::write(dir.join(FILE), "{").unwrap();
        assert!(State::load(&dir).is_err());
        assert_eq!(super::remembered(&dir), Remembered::default());
        fs::remove_dir_all(&dir).unwrap();
    }
}
