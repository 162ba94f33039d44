// SPDX-License-Identifier: Apache-2.0

//! The capabilities of this process, read from /proc (capabilities(7)).

use std::fs;
use std::io;

/// A capability the agent may need, by its number in linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Links, addresses, netfilter, attaching programs.
    NetAdmin = 12,
    /// Raw sockets, which iptables-legacy uses.
    NetRaw = 13,
    /// Includes the capabilities that were split off it later.
    SysAdmin = 21,
    /// Loading programs that the verifier allows more than unprivileged ones (Linux 5.8).
    Perfmon = 38,
    /// Loading programs (Linux 5.8).
    Bpf = 39,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NetAdmin,
        Self::NetRaw,
        Self::SysAdmin,
        Self::Perfmon,
        Self::Bpf,
    ];

    /// Its name as a container's manifest has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "NET_ADMIN",
            Self::NetRaw => "NET_RAW",
            Self::SysAdmin => "SYS_ADMIN",
            Self::Perfmon => "PERFMON",
            Self::Bpf => "BPF",
        }
    }

    /// Its place in a set of capabilities.
    #[must_use]
    pub fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// Why the agent cannot change anything at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /proc could not be read.
    #[error("cannot read the agent's capabilities")]
    Unreadable(#[source] io::Error),
    /// It lacks the one that everything needs.
    #[error(
        "proxy-agent needs the capability NET_ADMIN: run it as root, or give it to the container \
         (securityContext.capabilities.add: [NET_ADMIN])"
    )]
    Missing,
}

/// Checks that the agent may change anything at all.
///
/// # Errors
///
/// If it may not, or that cannot be read.
pub fn check() -> Result<(), Error> {
    if has(Capability::NetAdmin).map_err(Error::Unreadable)? {
        Ok(())
    } else {
        Err(Error::Missing)
    }
}

/// Whether the process has a capability in its effective set.
///
/// # Errors
///
/// If /proc cannot be read or has no such line.
pub fn has(capability: Capability) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(effective(&status)? & capability.bit() != 0)
}

/// The effective set in the text of a process's `status` file.
///
/// # Errors
///
/// If there is none in it.
pub fn effective(status: &str) -> io::Result<u64> {
    effective_set(status).ok_or_else(|| io::Error::other("no CapEff line in the process's status"))
}

fn effective_set(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        let status = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\n";
        assert_eq!(effective_set(status), Some(1 << 12));
        assert_eq!(effective_set("CapEff:\tnonsense\n"), None);
        assert_eq!(effective_set(""), None);
    }
}
