// SPDX-License-Identifier: Apache-2.0

//! The limit of locked memory.

/// Before Linux 5.11 maps and programs count as locked memory, against a limit that is far too small by
/// default; where the agent may not raise it, the kernel's answer to them is `EPERM`.
pub fn allow_locking() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a valid structure. If it fails, the creation of a map does too.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}
