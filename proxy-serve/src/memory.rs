// SPDX-License-Identifier: Apache-2.0

//! Limits the memory of the process by configuring how glibc's allocator returns memory to the kernel.

/// Thresholds for glibc's allocator that suit a program's allocations.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// Blocks of at least this size, in bytes, are mapped individually and unmapped when they are freed. Each page of a
    /// new mapping costs a page fault, so the value must exceed the size of blocks that are freed and allocated
    /// frequently.
    pub mapped: i32,
    /// If the free memory at the top of a heap exceeds this size, in bytes, it is returned to the kernel.
    pub kept: i32,
}

/// Configures the allocator. Must be called before other threads exist.
///
/// By default glibc creates an arena for each thread, and as soon as one individually mapped block is freed, it raises
/// the size from which on it maps blocks, up to 32 MiB: a few large pods would increase the size of the process
/// permanently.
pub fn set_up(blocks: Blocks) {
    #[cfg(not(target_env = "gnu"))]
    let _ = blocks;
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, blocks.mapped),
        (libc::M_TRIM_THRESHOLD, blocks.kept),
    ] {
        // SAFETY: the call only changes the allocator's parameters, and no other threads exist yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Makes the allocator return free memory to the kernel, including pages between blocks in use. The allocator examines
/// all its memory and blocks other allocations meanwhile, so call this rarely and only after much memory was freed.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call only changes which free pages are resident.
    unsafe {
        libc::malloc_trim(0);
    }
}
