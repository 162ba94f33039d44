// SPDX-License-Identifier: Apache-2.0

//! Memory that the agent does not use any more.

/// Gives it back to the kernel. The allocator of glibc keeps what was freed below what is still in use:
/// some 1.5 MiB of what loading the programs takes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no effect on memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
