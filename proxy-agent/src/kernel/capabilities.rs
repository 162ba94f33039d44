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
    /// Raw sockets, through which iptables-legacy speaks to the kernel.
    NetRaw = 13,
    /// Everything of the ones that were split off it later.
    SysAdmin = 21,
    /// Loading programs that the verifier trusts with more than those of anybody (Linux 5.8).
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
    pub fn bit(self) -> u64 {
        1 << self as u8
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
