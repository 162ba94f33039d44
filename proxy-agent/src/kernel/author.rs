// SPDX-License-Identifier: Apache-2.0

//! Who changed something, as far as the kernel tells. Nothing is decided by it.

use std::fmt::{self, Display};
use std::fs;
use std::process;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Largest process id (`PID_MAX_LIMIT` of linux/threads.h). Port ids above are made up by the kernel
/// for a process that has more than one netlink socket.
const MAX_PID: u32 = 1 << 22;

/// The port ids of this process's sockets that are above.
static OWN_PORTS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Notes that a netlink socket with this port id belongs to this process: what it changes is then known
/// to be ours.
pub fn note_own_port(port: u32) {
    if port > MAX_PID {
        let mut ports = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push(port);
    }
}

/// A process that changed something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// Its id, as the kernel told it; 0: the kernel itself.
    pub pid: u32,
    /// Its name, if that was told or the process could still be asked.
    pub name: Option<String>,
}

impl By {
    /// The owner of a netlink socket by its port id, which is its process id as a rule. The name is
    /// not known yet.
    pub fn port(port: u32) -> Option<Self> {
        let pid = if port <= MAX_PID {
            port
        } else {
            let ports = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
            ports.contains(&port).then(process::id)?
        };
        Some(Self { pid, name: None })
    }

    /// Asks the process for its name, if that is not known and the process has not ended.
    #[must_use]
    pub fn named(mut self) -> Self {
        if self.name.is_none() && self.is_process() {
            let comm = fs::read_to_string(format!("/proc/{}/comm", self.pid));
            self.name = comm.ok().map(|name| name.trim_end().to_owned());
        }
        self
    }

    /// Whether it is a process, and not the kernel itself.
    pub fn is_process(&self) -> bool {
        self.pid != 0
    }

    /// Whether it is this process. In a container the kernel may tell its id as the host sees it, so
    /// that the name counts as well.
    pub fn is_self(&self) -> bool {
        self.pid == process::id() || self.name.as_deref() == Some(env!("CARGO_PKG_NAME"))
    }
}

impl Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.pid) {
            (None, 0) => f.write_str("the kernel"),
            (None, pid) => write!(f, "pid {pid}"),
            (Some(name), pid) => write!(f, "{name} (pid {pid})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_as_far_as_they_are_known() {
        let by = |pid, name: Option<&str>| By {
            pid,
            name: name.map(str::to_owned),
        };
        assert_eq!(by(7, Some("nft")).to_string(), "nft (pid 7)");
        assert_eq!(by(7, None).to_string(), "pid 7");
        assert_eq!(by(0, None).named().to_string(), "the kernel");
        assert_eq!(By::port(u32::MAX - 4000), None);
        note_own_port(u32::MAX - 4001);
        assert!(By::port(u32::MAX - 4001).is_some_and(|by| by.is_self()));
        assert!(By::port(process::id()).is_some_and(|by| by.is_self()));
        assert!(By::port(process::id()).is_some_and(|by| by.named().name.is_some()));
        assert!(!by(0, None).is_self());
    }
}
