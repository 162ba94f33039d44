// SPDX-License-Identifier: Apache-2.0

//! A foreign TC program on a link: the smallest there is, attached by tcx and held open.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::netns::Netns;

// From the kernel's include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_CREATE: u32 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;

/// `r0 = -1; exit`: `TCX_NEXT`, the packet goes on as if the program were not there.
const PROGRAM: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];

/// The first members of `union bpf_attr` for a command; the rest is zero.
#[repr(C, align(8))]
struct Attr([u32; 32]);

/// A foreign program on a link; detached when dropped.
#[derive(Debug)]
pub struct ForeignProgram {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl ForeignProgram {
    /// Attaches it to a link's ingress.
    ///
    /// # Errors
    /// When the kernel has no tcx (before 6.6).
    pub fn attach(netns: &Netns, link: &str) -> Result<Self> {
        let ifindex = netns.ifindex(link)?;
        netns.run(|| {
            let license = c"Apache-2.0";
            let mut load = Attr([0; 32]);
            // prog_type, insn_cnt, insns, license
            load.0[0] = BPF_PROG_TYPE_SCHED_CLS;
            load.0[1] = 2;
            set_pointer(&mut load, 2, PROGRAM.as_ptr().cast());
            set_pointer(&mut load, 4, license.as_ptr().cast());
            let program = bpf(BPF_PROG_LOAD, &mut load).context("loading a program")?;
            // SAFETY: a new descriptor that nobody else owns.
            let program = unsafe { OwnedFd::from_raw_fd(program) };
            let mut create = Attr([0; 32]);
            // prog_fd, target_ifindex, attach_type
            create.0[0] = program.as_raw_fd().cast_unsigned();
            create.0[1] = ifindex;
            create.0[2] = BPF_TCX_INGRESS;
            let link = bpf(BPF_LINK_CREATE, &mut create).context("attaching it by tcx")?;
            Ok(Self {
                // SAFETY: as above.
                _link: unsafe { OwnedFd::from_raw_fd(link) },
                _program: program,
            })
        })
    }
}

/// The ids of the programs attached to a link's ingress by tcx, in the order they run.
///
/// # Errors
/// When the kernel has no tcx.
pub fn tcx_programs(netns: &Netns, link: &str) -> Result<Vec<u32>> {
    let ifindex = netns.ifindex(link)?;
    netns.run(|| {
        let mut ids = [0_u32; 64];
        let mut query = Attr([0; 32]);
        // target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count
        query.0[0] = ifindex;
        query.0[1] = BPF_TCX_INGRESS;
        set_pointer(&mut query, 4, ids.as_mut_ptr().cast_const().cast());
        query.0[6] = 64;
        bpf(BPF_PROG_QUERY, &mut query).context("querying tcx")?;
        let count = usize::try_from(query.0[6])?;
        Ok(ids[..count].to_vec())
    })
}

/// Stores a pointer in two members that make one `__aligned_u64`.
fn set_pointer(attr: &mut Attr, at: usize, pointer: *const u8) {
    let bytes = (pointer as u64).to_ne_bytes();
    let (first, second) = bytes.split_at(4);
    for (n, half) in [first, second].into_iter().enumerate() {
        attr.0[at + n] = u32::from_ne_bytes(half.try_into().expect("4 of 8 bytes"));
    }
}

fn bpf(command: u32, attr: &mut Attr) -> io::Result<i32> {
    let size = size_of::<Attr>();
    // SAFETY: the attributes are valid for their size, and so is what they point to for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
