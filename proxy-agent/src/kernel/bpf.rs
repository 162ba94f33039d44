// SPDX-License-Identifier: Apache-2.0

//! What is asked of bpf(2) without aya: to load a program that is not part of an object, to attach one to a
//! link that does not exist, and what is attached. aya gives no way to do the first two, and asks for more
//! about attached programs than an agent without `SYS_ADMIN` is told.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

// Commands and types of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// Attach types of the tcx hook (Linux 6.6).
pub const TCX_INGRESS: u32 = 46;
/// The same for what a link sends.
pub const TCX_EGRESS: u32 = 47;

/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [
    u64::from_ne_bytes([0xb7, 0, 0, 0, 0, 0, 0, 0]),
    u64::from_ne_bytes([0x95, 0, 0, 0, 0, 0, 0, 0]),
];

/// The first members of `union bpf_attr` for a command; the rest is zero.
#[repr(C, align(8))]
struct Attributes([u32; 32]);

/// No link has this ifindex: they are given in ascending order.
const NO_LINK: u32 = i32::MAX.cast_unsigned();

/// Loads a program of type `socket_filter` that does nothing.
///
/// # Errors
///
/// The kernel's answer.
pub fn load_filter() -> io::Result<OwnedFd> {
    let mut load = Attributes([0; 32]);
    // prog_type, insn_cnt, insns, license
    load.0[0] = BPF_PROG_TYPE_SOCKET_FILTER;
    load.0[1] = 2;
    set_pointer(&mut load, 2, NOTHING.as_ptr().cast());
    set_pointer(&mut load, 4, c"Apache-2.0".as_ptr().cast());
    let program = bpf(BPF_PROG_LOAD, &mut load)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Tries to attach a classifier by tcx to a link that does not exist. The kernel looks for the link last,
/// so that this succeeds where a real one would take the program.
///
/// # Errors
///
/// The kernel's answer: it does not know tcx, or the agent may not attach.
pub fn attach_nowhere(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut create = Attributes([0; 32]);
    // prog_fd, target_ifindex, attach_type
    create.0[0] = program.as_raw_fd().cast_unsigned();
    create.0[1] = NO_LINK;
    create.0[2] = TCX_INGRESS;
    match bpf(BPF_LINK_CREATE, &mut create) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(error),
        Ok(link) => {
            // There is one after all. Closing the descriptor detaches the program again.
            // SAFETY: a new descriptor that nobody else owns.
            drop(unsafe { OwnedFd::from_raw_fd(link) });
            Ok(())
        }
    }
}

/// The ids of the programs that are attached to a link, given by its ifindex, or to a cgroup, given by a
/// descriptor, in the order they run.
///
/// # Errors
///
/// The kernel's answer.
pub fn attached(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut query = Attributes([0; 32]);
    // target_fd or target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count
    query.0[0] = target;
    query.0[1] = attach_type;
    set_pointer(&mut query, 4, ids.as_mut_ptr().cast_const().cast());
    query.0[6] = 64;
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.0[6]).unwrap_or(0);
    Ok(ids[..count.min(ids.len())].to_vec())
}

/// Stores a pointer in two members that make one `__aligned_u64`.
fn set_pointer(attributes: &mut Attributes, at: usize, pointer: *const u8) {
    let bytes = (pointer as u64).to_ne_bytes();
    for (half, to) in bytes.chunks_exact(4).zip(&mut attributes.0[at..]) {
        *to = u32::from_ne_bytes([half[0], half[1], half[2], half[3]]);
    }
}

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    let size = size_of::<Attributes>();
    // SAFETY: the attributes are valid for their size, and so is what they point to for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
