// SPDX-License-Identifier: Apache-2.0

//! Keeps the process small: how glibc's allocator gives memory back.

/// Thresholds of glibc's allocator that fit a program's allocations.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// Blocks of this size and more, in bytes, are mapped, and unmapped when they are freed. Each page of a new mapping
    /// costs a page fault, so it has to be more than blocks that are freed and taken again all the time.
    pub mapped: i32,
    /// Free memory at the top of a heap above this, in bytes, is given back.
    pub kept: i32,
}

/// Sets the allocator up. Call it before there are threads.
///
/// By itself glibc gives every thread an arena of its own, and moves the size from which on it maps blocks
/// up to 32 MiB as soon as one such block is freed: a few large pods would leave their size behind for good.
pub fn set_up(blocks: Blocks) {
    #[cfg(not(target_env = "gnu"))]
    let _ = blocks;
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, blocks.mapped),
        (libc::M_TRIM_THRESHOLD, blocks.kept),
    ] {
        // SAFETY: changes nothing but the allocator's parameters; there are no other threads yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Makes the allocator return free memory to the kernel, also pages between blocks in use. It looks at all that it has,
/// and nothing is allocated meanwhile: call it after much was freed, and seldom.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes nothing but which free pages are resident.
    unsafe {
        libc::malloc_trim(0);
    }
}
