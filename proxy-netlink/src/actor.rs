// SPDX-License-Identifier: Apache-2.0

//! The process that made a change, as far as the kernel reports it. No decision depends on it.

use std::fmt::{self, Display};
use std::fs;
use std::process;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// The largest process ID (`PID_MAX_LIMIT` of linux/threads.h). The kernel chooses larger port IDs for a process that
/// has more than one netlink socket.
const MAX_PID: u32 = 1 << 22;

/// The port IDs of this process's sockets that are larger than [`MAX_PID`].
static OWN_PORTS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Records that a netlink socket with this port ID belongs to this process, so that its changes are recognised as the
/// process's own.
pub fn note_own_port(port: u32) {
    if port > MAX_PID {
        let mut ports = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
        ports.push(port);
    }
}

/// A process that made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The process ID that the kernel reports; 0 for the kernel itself.
    pub pid: u32,
    /// The name of the process, if the kernel reported it or the process still exists.
    pub name: Option<String>,
}

impl Actor {
    /// Returns the owner of a netlink socket with this port ID, which usually is the process ID. The name is not set
    /// yet.
    #[must_use]
    pub fn of_port(port: u32) -> Option<Self> {
        let pid = if port <= MAX_PID {
            port
        } else {
            let ports = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
            ports.contains(&port).then(process::id)?
        };
        Some(Self { pid, name: None })
    }

    /// Adds the name of the process, if it is missing and the process still exists.
    #[must_use]
    pub fn named(mut self) -> Self {
        if self.name.is_none() && self.is_process() {
            let comm = fs::read_to_string(format!("/proc/{}/comm", self.pid));
            self.name = comm.ok().map(|name| name.trim_end().to_owned());
        }
        self
    }

    /// Returns true if the actor is a process, not the kernel itself.
    #[must_use]
    pub fn is_process(&self) -> bool {
        self.pid != 0
    }

    /// Returns true if the actor is this process, whose program has this name. In a container the kernel may report the
    /// process ID in the host's namespace, so the name counts as well.
    #[must_use]
    pub fn is_self(&self, program: &str) -> bool {
        self.pid == process::id() || self.name.as_deref() == Some(program)
    }
}

impl Display for Actor {
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
        let by = |pid, name: Option<&str>| Actor {
            pid,
            name: name.map(str::to_owned),
        };
        assert_eq!(by(7, Some("nft")).to_string(), "nft (pid 7)");
        assert_eq!(by(7, None).to_string(), "pid 7");
        assert_eq!(by(0, None).named().to_string(), "the kernel");
        assert_eq!(Actor::of_port(u32::MAX - 4000), None);
        note_own_port(u32::MAX - 4001);
        assert!(Actor::of_port(u32::MAX - 4001).is_some_and(|by| by.is_self("proxy-agent")));
        assert!(Actor::of_port(process::id()).is_some_and(|by| by.is_self("proxy-agent")));
        assert!(Actor::of_port(process::id()).is_some_and(|by| by.named().name.is_some()));
        assert!(!by(0, None).is_self("proxy-agent"));
    }
}
