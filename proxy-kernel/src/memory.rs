// SPDX-License-Identifier: Apache-2.0

//! The limit of locked memory.

/// Removes the limit of locked memory. Before Linux 5.11 maps and programs count as locked memory, and the default
/// limit is far too small. If the agent lacks the permission to raise it, the kernel rejects maps and programs with
/// `EPERM`.
pub fn allow_locking() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer refers to a valid structure. If the call fails, the creation of a map reports that.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}
