// SPDX-License-Identifier: Apache-2.0

//! The capabilities of this process, read from /proc (capabilities(7)).

use std::fs;
use std::io;

/// A capability that the agent may need, by its number in linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Permits changes of links, addresses and netfilter, and attaching programs.
    NetAdmin = 12,
    /// Permits raw sockets, which iptables-legacy uses.
    NetRaw = 13,
    /// Includes the capabilities that were later split off from it.
    SysAdmin = 21,
    /// Permits loading programs to which the verifier permits more than to unprivileged ones (Linux 5.8).
    Perfmon = 38,
    /// Permits loading programs (Linux 5.8).
    Bpf = 39,
}

impl Capability {
    /// All capabilities of this type.
    pub const ALL: [Self; 5] = [
        Self::NetAdmin,
        Self::NetRaw,
        Self::SysAdmin,
        Self::Perfmon,
        Self::Bpf,
    ];

    /// Returns the name that a container's manifest uses.
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

    /// Returns the bit in a set of capabilities.
    #[must_use]
    pub fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// The reason why the agent cannot change anything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /proc could not be read.
    #[error("cannot read the agent's capabilities")]
    Unreadable(#[source] io::Error),
    /// The agent lacks the capability that all changes need.
    #[error(
        "proxy-agent needs the capability NET_ADMIN: run it as root, or give it to the container \
         (securityContext.capabilities.add: [NET_ADMIN])"
    )]
    Missing,
}

/// Checks that the agent has the permission to make changes.
///
/// # Errors
///
/// Returns an error if it has not, or if its capabilities cannot be read.
pub fn check() -> Result<(), Error> {
    if has(Capability::NetAdmin).map_err(Error::Unreadable)? {
        Ok(())
    } else {
        Err(Error::Missing)
    }
}

/// Returns true if the process has a capability in its effective set.
///
/// # Errors
///
/// Returns an error if /proc cannot be read or has no such line.
pub fn has(capability: Capability) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(effective(&status)? & capability.bit() != 0)
}

/// Returns the effective set from the text of a process's `status` file.
///
/// # Errors
///
/// Returns an error if the text contains no effective set.
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
