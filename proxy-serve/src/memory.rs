// SPDX-License-Identifier: Apache-2.0

//! Keeps the process small: how glibc's allocator gives memory back.

/// Blocks of this size and more, in bytes, are mapped, and unmapped when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 128 << 10;

/// Free memory at the top of the heap above this, in bytes, is given back.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 256 << 10;

/// Sets the allocator up. Call it before there are threads.
///
/// By itself glibc gives every thread an arena of its own, and moves the size from which on it maps blocks
/// up to 32 MiB as soon as one such block is freed: a few large pods would leave their size behind for good.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, MAPPED),
        (libc::M_TRIM_THRESHOLD, KEPT),
    ] {
        // SAFETY: changes nothing but the allocator's parameters; there are no other threads yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Has the allocator give back what it keeps for later, also what lies between blocks in use. It looks at all that it has, and
/// nothing is allocated meanwhile: call it after much was freed, and seldom.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes nothing but which free pages are resident.
    unsafe {
        libc::malloc_trim(0);
    }
}
