// SPDX-License-Identifier: Apache-2.0

//! Calls of bpf(2) without aya: loads programs that are not part of an object, attaches one to a link that does not
//! exist, and lists attached programs. aya does not support the first two, and for the third it requests more
//! information about each program than the kernel reports to an agent without `SYS_ADMIN`.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::memory;

// Commands and types of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
/// The attach type of the tcx ingress hook (Linux 6.6).
pub const TCX_INGRESS: u32 = 46;
/// The attach type of the tcx egress hook.
pub const TCX_EGRESS: u32 = 47;

/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [instruction(0xb7, 0, 0, 0, 0), EXIT];

const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// `struct bpf_insn` of linux/bpf.h.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    // The two registers share a byte, in the host's bit order.
    let registers = if cfg!(target_endian = "big") {
        to << 4 | from
    } else {
        from << 4 | to
    };
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

/// Returns a program of type `cgroup_sock_addr` that lets every socket connect, and stores, in the only element of an
/// array, the cookie of the network namespace of the socket with the given cookie.
fn report_netns(socket: u64, array: BorrowedFd<'_>) -> [u64; 19] {
    const CALL: u8 = 0x85;
    const GET_SOCKET_COOKIE: i32 = 46;
    const GET_NETNS_COOKIE: i32 = 122;
    const MAP_UPDATE_ELEM: i32 = 2;
    let half = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let wanted = socket.to_le_bytes();
    [
        // r6 = context; r0 = cookie of the socket
        instruction(0xbf, 6, 1, 0, 0),
        instruction(CALL, 0, 0, 0, GET_SOCKET_COOKIE),
        // r1 = wanted; if r0 != r1, go to the end
        instruction(0x18, 1, 0, 0, half(&wanted[..4])),
        instruction(0, 0, 0, 0, half(&wanted[4..])),
        instruction(0x5d, 0, 1, 12, 0),
        // r0 = cookie of the namespace of the context
        instruction(0xbf, 1, 6, 0, 0),
        instruction(CALL, 0, 0, 0, GET_NETNS_COOKIE),
        // value = r0; key = 0
        instruction(0x7b, 10, 0, -8, 0),
        instruction(0x62, 10, 0, -12, 0),
        // update(array, &key, &value, 0)
        instruction(0x18, 1, 1, 0, array.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -12),
        instruction(0xbf, 3, 10, 0, 0),
        instruction(0x07, 3, 0, 0, -8),
        instruction(0xb7, 4, 0, 0, 0),
        instruction(CALL, 0, 0, 0, MAP_UPDATE_ELEM),
        // The end: the connect call is permitted.
        instruction(0xb7, 0, 0, 0, 1),
        EXIT,
    ]
}

/// The first members of `union bpf_attr` for a command; the rest is zero.
#[repr(C, align(8))]
struct Attributes([u32; 32]);

/// An ifindex that no link has, because the kernel assigns them in ascending order.
const NO_LINK: u32 = i32::MAX.cast_unsigned();

/// Loads a program of type `socket_filter` that does nothing.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn load_filter() -> io::Result<OwnedFd> {
    load(BPF_PROG_TYPE_SOCKET_FILTER, 0, &NOTHING)
}

fn load(kind: u32, attach_type: u32, program: &[u64]) -> io::Result<OwnedFd> {
    memory::allow_locking();
    let mut load = Attributes([0; 32]);
    // prog_type, insn_cnt, insns, license, expected_attach_type
    load.0[0] = kind;
    load.0[1] = u32::try_from(program.len()).map_err(io::Error::other)?;
    set_pointer(&mut load, 2, program.as_ptr().cast());
    set_pointer(&mut load, 4, c"Apache-2.0".as_ptr().cast());
    load.0[17] = attach_type;
    new_descriptor(BPF_PROG_LOAD, &mut load)
}

/// Returns the cookie of the network namespace of the socket with the given cookie. A program that is attached to a
/// cgroup while `connect` connects that socket reports it. Returns `None` if the program was not called for the socket,
/// because the socket belongs to a process outside of the cgroup.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn netns_cookie(
    cgroup: BorrowedFd<'_>,
    socket: u64,
    connect: impl FnOnce(),
) -> io::Result<Option<u64>> {
    let mut create = Attributes([0; 32]);
    // map_type, key_size, value_size, max_entries
    create.0[..4].copy_from_slice(&[BPF_MAP_TYPE_ARRAY, 4, 8, 1]);
    let array = new_descriptor(BPF_MAP_CREATE, &mut create)?;
    let program = load(
        BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        BPF_CGROUP_INET4_CONNECT,
        &report_netns(socket, array.as_fd()),
    )?;
    let mut attach = Attributes([0; 32]);
    // prog_fd, target_fd, attach_type
    attach.0[0] = program.as_raw_fd().cast_unsigned();
    attach.0[1] = cgroup.as_raw_fd().cast_unsigned();
    attach.0[2] = BPF_CGROUP_INET4_CONNECT;
    let link = new_descriptor(BPF_LINK_CREATE, &mut attach)?;
    connect();
    drop(link);
    let (key, mut cookie) = (0_u32, 0_u64);
    let mut lookup = Attributes([0; 32]);
    // map_fd, key, value
    lookup.0[0] = array.as_raw_fd().cast_unsigned();
    set_pointer(&mut lookup, 2, (&raw const key).cast());
    set_pointer(&mut lookup, 4, (&raw mut cookie).cast_const().cast());
    bpf(BPF_MAP_LOOKUP_ELEM, &mut lookup)?;
    Ok((cookie != 0).then_some(cookie))
}

/// Tries to attach a classifier by tcx to a link that does not exist. The kernel looks up the link last, so this
/// succeeds if a real link would accept the program.
///
/// # Errors
///
/// Returns the kernel's error: it does not support tcx, or the agent lacks the permission to attach.
pub fn attach_nowhere(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut create = Attributes([0; 32]);
    // prog_fd, target_ifindex, attach_type
    create.0[0] = program.as_raw_fd().cast_unsigned();
    create.0[1] = NO_LINK;
    create.0[2] = TCX_INGRESS;
    match new_descriptor(BPF_LINK_CREATE, &mut create) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(error),
        Ok(link) => {
            // The link exists after all. Closing the descriptor detaches the program again.
            drop(link);
            Ok(())
        }
    }
}

/// Returns the ids of the programs that are attached to a link, specified by its ifindex, or to a cgroup, specified by
/// a descriptor, in the order in which they run.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn attached(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut query = Attributes([0; 32]);
    // target_fd or target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count
    query.0[0] = target;
    query.0[1] = attach_type;
    set_pointer(&mut query, 4, ids.as_mut_ptr().cast_const().cast());
    query.0[6] = 64;
    bpf(BPF_PROG_QUERY, &mut query)?;
    all_of(&ids, query.0[6])
}

/// Returns the first `count` ids, which the kernel has written. Returns an error if the buffer was too small for all.
fn all_of(ids: &[u32], count: u32) -> io::Result<Vec<u32>> {
    let count = usize::try_from(count).map_err(io::Error::other)?;
    let all = ids.get(..count);
    Ok(all
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?
        .to_vec())
}

/// Stores a pointer in two members that form one `__aligned_u64`.
fn set_pointer(attributes: &mut Attributes, at: usize, pointer: *const u8) {
    let bytes = (pointer as u64).to_ne_bytes();
    for (half, to) in bytes.chunks_exact(4).zip(&mut attributes.0[at..]) {
        *to = u32::from_ne_bytes([half[0], half[1], half[2], half[3]]);
    }
}

/// Works like [`bpf`], for commands that return a new descriptor.
fn new_descriptor(command: libc::c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    let size = size_of::<Attributes>();
    // SAFETY: the attributes are valid for their size, and the memory to which they point is valid during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_programs_than_there_is_room_for_are_an_error() {
        assert_eq!(all_of(&[3, 4, 0], 2).unwrap(), [3, 4]);
        assert!(all_of(&[3, 4, 0], 0).unwrap().is_empty());
        let error = all_of(&[3, 4, 0], 4).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
