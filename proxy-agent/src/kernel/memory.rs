// SPDX-License-Identifier: Apache-2.0

//! Memory that the agent does not use any more, and how much of it may be locked.

/// Gives it back to the kernel. The allocator of glibc keeps what was freed below what is still in use:
/// some 1.5 MiB of what loading the programs takes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no effect on memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Before Linux 5.11 maps and programs count as locked memory, against a limit that is far too small by
/// default; where the agent may not raise it, the kernel's answer to them is `EPERM`.
pub fn allow_locking() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a valid structure. If it fails, making a map tells.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}
