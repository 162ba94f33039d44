// SPDX-License-Identifier: Apache-2.0

//! Permanently drops the privileges that the agent does not need after its start. SECURITY.md lists the remaining ones,
//! and a test compares the list with a running agent.

use std::fs;
use std::io;

use crate::capabilities::Capability;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION_3: u32 = 0x2008_0522;
/// The highest possible number of a capability.
const LAST: u32 = 63;

/// `struct __user_cap_header_struct`
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`, once for each half of the sets.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops all capabilities except for those that repairs need, from every set, and prevents the process from acquiring
/// new ones. Programs that it starts later have no more capabilities. Returns the remaining capabilities.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn restrict() -> io::Result<Vec<Capability>> {
    let kept = needed();
    let mask = kept.iter().fold(0, |mask, one| mask | one.bit());
    for number in 0..=LAST {
        if mask & (1 << number) == 0 {
            // Without SETPCAP the bounding set is unchanged, but capabilities that are not permitted cannot be acquired
            // anyway. For numbers that this kernel does not support, the result is EINVAL.
            // SAFETY: the call uses no pointers.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        }
    }
    // SAFETY: the call uses no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) }.into())?;
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut halves = [Half::default(); 2];
    // SAFETY: both structures have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) })?;
    let masks = [mask & u64::from(u32::MAX), mask >> 32];
    for (half, mask) in halves.iter_mut().zip(masks) {
        let mask = u32::try_from(mask).unwrap_or(0);
        half.effective &= mask;
        half.permitted &= mask;
        half.inheritable &= mask;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) })?;
    let left = u64::from(halves[0].permitted) | u64::from(halves[1].permitted) << 32;
    Ok(kept
        .into_iter()
        .filter(|one| left & one.bit() != 0)
        .collect())
}

/// Returns the capabilities that repairs need: for links, rules and programs; for iptables-legacy; and for loading
/// programs if the backend has to be reopened.
fn needed() -> Vec<Capability> {
    let mut needed = vec![Capability::NetAdmin, Capability::NetRaw];
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let has_bpf = last
        .trim()
        .parse::<u8>()
        .is_ok_and(|last| last >= Capability::Bpf as u8);
    if has_bpf {
        needed.extend([Capability::Bpf, Capability::Perfmon]);
    } else {
        needed.push(Capability::SysAdmin);
    }
    needed
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
