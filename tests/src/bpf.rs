// SPDX-License-Identifier: Apache-2.0

//! Foreign programs on a link's TC hooks and on a cgroup: minimal programs that stay attached while the test holds
//! them. Also pinned maps, and test runs of loaded programs.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cgroup;
use crate::netns::Netns;

// These constants are from the kernel's include/uapi/linux/bpf.h.
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_CREATE: u32 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// `r0 = -1; exit`: `TCX_NEXT`, the packet continues as if the program were not attached.
const NEXT: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];
/// `r0 = 2; exit`: `XDP_PASS`.
const XDP_PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
/// `r0 = 1; exit`: the connection continues as if the program were not attached.
const ALLOW: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// The first members of `union bpf_attr` for a command; the remaining ones are zero.
#[repr(C, align(8))]
pub(crate) struct Attr(pub(crate) [u32; 32]);

/// A TC hook of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the link receives
    Ingress,
    /// Packets that the link sends
    Egress,
}

impl Hook {
    /// Both hooks of a link.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => BPF_TCX_INGRESS,
            Self::Egress => BPF_TCX_EGRESS,
        }
    }
}

/// The position of a new program among the programs of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before all others
    First,
    /// After all others
    Last,
}

/// A foreign program, which is detached when this is dropped.
#[derive(Debug)]
pub struct ForeignProgram {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl ForeignProgram {
    /// Attaches a program to a link.
    ///
    /// # Errors
    /// Returns an error if the kernel has no tcx (before 6.6).
    pub fn attach(netns: &Netns, link: &str, hook: Hook, place: Place) -> Result<Self> {
        let ifindex = netns.ifindex(link)?;
        let flags = match place {
            Place::First => BPF_F_BEFORE,
            Place::Last => BPF_F_AFTER,
        };
        netns.run(|| {
            let program = load(BPF_PROG_TYPE_SCHED_CLS, 0, &NEXT)?;
            create_link(program, ifindex, hook.attach_type(), flags)
        })
    }

    /// Attaches a program to a link as an XDP program.
    ///
    /// # Errors
    /// Returns an error if the link already has an XDP program.
    pub fn attach_as_xdp(netns: &Netns, link: &str) -> Result<Self> {
        let ifindex = netns.ifindex(link)?;
        netns.run(|| {
            let program = load(BPF_PROG_TYPE_XDP, BPF_XDP, &XDP_PASS)?;
            create_link(program, ifindex, BPF_XDP, XDP_FLAGS_SKB_MODE)
        })
    }

    /// Attaches a program that does nothing to connect(2), IPv4 or IPv6, of all processes of the machine.
    ///
    /// # Errors
    /// Returns an error if there is no cgroup2 file system.
    pub fn attach_to_connect(v6: bool) -> Result<Self> {
        let attach_type = connect_type(v6);
        let cgroup = File::open(cgroup::root()?)?;
        let program = load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach_type, &ALLOW)?;
        create_link(program, cgroup.as_raw_fd().cast_unsigned(), attach_type, 0)
    }
}

fn connect_type(v6: bool) -> u32 {
    if v6 {
        BPF_CGROUP_INET6_CONNECT
    } else {
        BPF_CGROUP_INET4_CONNECT
    }
}

fn load(kind: u32, expected_attach_type: u32, instructions: &[u64; 2]) -> Result<OwnedFd> {
    // Before Linux 5.11, programs count against a limit that is small by default.
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a valid structure. If the call fails, loading the program returns the error.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    let license = c"Apache-2.0";
    let mut load = Attr([0; 32]);
    // prog_type, insn_cnt, insns, license; expected_attach_type
    load.0[0] = kind;
    load.0[1] = 2;
    set_pointer(&mut load, 2, instructions.as_ptr().cast());
    set_pointer(&mut load, 4, license.as_ptr().cast());
    load.0[17] = expected_attach_type;
    let program = bpf(BPF_PROG_LOAD, &mut load).context("loading a program")?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

fn create_link(
    program: OwnedFd,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> Result<ForeignProgram> {
    let mut create = Attr([0; 32]);
    // prog_fd, target_fd or target_ifindex, attach_type, flags
    create.0[0] = program.as_raw_fd().cast_unsigned();
    create.0[1] = target;
    create.0[2] = attach_type;
    create.0[3] = flags;
    let link = bpf(BPF_LINK_CREATE, &mut create).context("attaching a program")?;
    Ok(ForeignProgram {
        // SAFETY: the descriptor is new and has no other owner.
        _link: unsafe { OwnedFd::from_raw_fd(link) },
        _program: program,
    })
}

/// Returns the IDs of the programs that are attached to a link by tcx, in the order in which they run.
///
/// # Errors
/// Returns an error if the kernel has no tcx (before 6.6).
pub fn tcx_programs(netns: &Netns, link: &str, hook: Hook) -> Result<Vec<u32>> {
    let ifindex = netns.ifindex(link)?;
    netns.run(|| query(ifindex, hook.attach_type()).context("querying tcx"))
}

/// Returns the IDs of the programs that are attached to connect(2) of all processes of the machine.
///
/// # Errors
/// Returns an error if there is no cgroup2 file system.
pub fn connect_programs(v6: bool) -> Result<Vec<u32>> {
    let cgroup = File::open(cgroup::root()?)?;
    query(cgroup.as_raw_fd().cast_unsigned(), connect_type(v6)).context("querying a cgroup")
}

/// Queries the programs of a target, which is specified by its ifindex or descriptor.
fn query(target: u32, attach_type: u32) -> Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut query = Attr([0; 32]);
    // target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count
    query.0[0] = target;
    query.0[1] = attach_type;
    set_pointer(&mut query, 4, ids.as_mut_ptr().cast_const().cast());
    query.0[6] = 64;
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.0[6])?;
    Ok(ids[..count].to_vec())
}

/// The number of entries of a map and its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The number of entries in the map.
    pub entries: u32,
    /// The maximum number of entries.
    pub max_entries: u32,
}

/// A pinned map.
#[derive(Debug)]
pub struct PinnedMap(OwnedFd);

impl PinnedMap {
    /// Opens the map that is pinned at this path.
    ///
    /// # Errors
    /// Returns an error if nothing is pinned there.
    pub fn open(pin: &Path) -> Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut get = Attr([0; 32]);
        set_pointer(&mut get, 0, path.as_ptr().cast());
        let map =
            bpf(BPF_OBJ_GET, &mut get).with_context(|| format!("opening {}", pin.display()))?;
        // SAFETY: the descriptor is new and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(map) }))
    }

    /// Writes an entry; both pointers must point to as many bytes as the map's keys and values have.
    fn update(&self, key: *const u8, value: *const u8) -> Result<()> {
        let mut update = Attr([0; 32]);
        // map_fd, key, value, flags
        update.0[0] = self.0.as_raw_fd().cast_unsigned();
        set_pointer(&mut update, 2, key);
        set_pointer(&mut update, 4, value);
        bpf(BPF_MAP_UPDATE_ELEM, &mut update).context("writing to a map")?;
        Ok(())
    }
}

/// Counts the entries of a pinned map.
///
/// # Errors
/// Returns an error if nothing is pinned there, or if the pinned object is not a map.
pub fn map_usage(pin: &Path) -> Result<Usage> {
    let PinnedMap(map) = PinnedMap::open(pin)?;
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, …
    let [_, _, key_size, _, max_entries] = info(&map, [0; 5]).context("asking for a map's size")?;
    let mut key = vec![0_u8; usize::try_from(key_size)?];
    let mut next = key.clone();
    let mut entries = 0;
    // The loop is bounded, because the iteration restarts if an entry is deleted while its successor is requested.
    while entries <= max_entries.saturating_mul(2) {
        let mut get_next = Attr([0; 32]);
        get_next.0[0] = map.as_raw_fd().cast_unsigned();
        if entries > 0 {
            set_pointer(&mut get_next, 2, key.as_ptr());
        }
        set_pointer(&mut get_next, 4, next.as_mut_ptr().cast_const());
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut get_next) {
            Ok(_) => entries += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error).context("walking a map"),
        }
        key.clone_from(&next);
    }
    Ok(Usage {
        entries,
        max_entries,
    })
}

/// A loaded program that can be run on test packets.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Opens the program with this ID.
    ///
    /// # Errors
    /// Returns an error if there is no such program.
    pub fn open(id: u32) -> Result<Self> {
        let mut attr = Attr([0; 32]);
        attr.0[0] = id;
        let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut attr).context("opening a program")?;
        // SAFETY: the descriptor is new and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Runs the program `times` times on a frame that arrives on `lo` of the calling thread's namespace. Returns the
    /// program's result and the duration of one run, in nanoseconds.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn run(&self, frame: &[u8], times: u32) -> Result<(u32, u32)> {
        let mut attr = Attr([0; 32]);
        // prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration
        attr.0[0] = self.0.as_raw_fd().cast_unsigned();
        attr.0[2] = u32::try_from(frame.len())?;
        set_pointer(&mut attr, 4, frame.as_ptr());
        attr.0[8] = times;
        bpf(BPF_PROG_TEST_RUN, &mut attr).context("running a program")?;
        Ok((attr.0[1], attr.0[9]))
    }

    /// Loads a minimal program for a link.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn empty() -> Result<Self> {
        load(BPF_PROG_TYPE_SCHED_CLS, 0, &NEXT).map(Self)
    }

    /// Returns the number of instructions after verification, and the size of the machine code, in bytes.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn sizes(&self) -> Result<(u32, u32)> {
        /// The size of an instruction, in bytes.
        const INSTRUCTION: u32 = 8;
        // type, id, tag (8 bytes), jited_prog_len, xlated_prog_len
        let [.., machine_code, length] = info(&self.0, [0; 6]).context("asking about a program")?;
        Ok((length / INSTRUCTION, machine_code))
    }
}

/// Writes an entry of a pinned map whose keys and values are 32-bit words.
///
/// # Errors
/// Returns an error if nothing is pinned there, or if the pinned object is another kind of map.
pub fn update_map(pin: &Path, key: u32, value: u32) -> Result<()> {
    PinnedMap::open(pin)?.update((&raw const key).cast(), (&raw const value).cast())
}

/// Returns the first members of the object's `struct bpf_*_info`; `words` are the values passed to the kernel.
pub(crate) fn info<const N: usize>(fd: &OwnedFd, mut words: [u32; N]) -> io::Result<[u32; N]> {
    let mut attr = Attr([0; 32]);
    attr.0[0] = fd.as_raw_fd().cast_unsigned();
    attr.0[1] = u32::try_from(size_of_val(&words)).expect("a small structure");
    set_pointer(&mut attr, 2, words.as_mut_ptr().cast_const().cast());
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(words)
}

/// Stores a pointer in two members that form one `__aligned_u64`.
pub(crate) fn set_pointer(attr: &mut Attr, at: usize, pointer: *const u8) {
    let bytes = (pointer as u64).to_ne_bytes();
    let (first, second) = bytes.split_at(4);
    for (n, half) in [first, second].into_iter().enumerate() {
        attr.0[at + n] = u32::from_ne_bytes(half.try_into().expect("4 of 8 bytes"));
    }
}

/// Calls bpf(2).
pub(crate) fn bpf(command: u32, attr: &mut Attr) -> io::Result<i32> {
    let size = size_of::<Attr>();
    // SAFETY: the attributes are valid for their size, and the memory to which they point is valid during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
