// SPDX-License-Identifier: Apache-2.0

//! Programs that run as on a machine with fewer features: a seccomp filter returns the errors of a kernel without a
//! feature, and an empty file system hides tools.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// A feature, permission or tool that the host does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// bpf(2): `ENOSYS`
    Bpf,
    /// The permission to use bpf(2): `EPERM`, as a container's seccomp filter returns it
    BpfPermission,
    /// The query for attached programs, by which the agent detects a kernel without tcx: `EINVAL`, as before Linux 6.6
    Tcx,
    /// nfnetlink, and with it `nf_tables`: `EPROTONOSUPPORT`
    Nfnetlink,
    /// The iptables binaries
    Iptables,
    /// The ipset binary
    Ipset,
    /// The sets of iptables rules, although ipset exists: `EPROTO` for `SO_IP_SET`
    Sets,
    /// Cookies of network namespaces by `SO_NETNS_COOKIE`: `ENOPROTOOPT`, as before Linux 5.14
    NetnsCookie,
    /// Every capability, although the user is root
    Capabilities,
    /// Every capability but `CAP_NET_ADMIN`, although the user is root
    CapabilitiesButNetAdmin,
}

/// The directories in which distributions install iptables.
const SBIN: [&CStr; 3] = [c"/usr/sbin", c"/sbin", c"/usr/local/sbin"];
/// The paths at which distributions install ipset.
const IPSET: [&CStr; 3] = [c"/usr/sbin/ipset", c"/sbin/ipset", c"/usr/local/sbin/ipset"];

/// Codes of classic BPF: load an absolute word, jump if equal, return a constant.
pub(crate) const LOAD: u16 = 0x20;
pub(crate) const JUMP_EQ: u16 = 0x15;
pub(crate) const RETURN: u16 = 0x06;

/// The command of bpf(2) that lists attached programs.
const BPF_PROG_QUERY: u32 = 16;
/// The socket option that reads sets.
const SO_IP_SET: u32 = 83;
/// The socket option that returns the cookie of a network namespace.
const SO_NETNS_COOKIE: u32 = 71;

/// The offset of the system call's number in `struct seccomp_data`.
pub(crate) const NR: u32 = 0;
/// Returns the offset of the low half of an argument in `struct seccomp_data` on a little-endian machine.
pub(crate) const fn arg(n: u32) -> u32 {
    16 + 8 * n
}

pub(crate) const fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

const fn errno(code: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | code.cast_unsigned()
}

/// The system calls' numbers and constants fit; `libc` has them as `c_long` and `c_int`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive constants of the kernel's interface"
)]
pub(crate) const fn number(value: libc::c_long) -> u32 {
    value as u32
}

impl Missing {
    /// Makes the command run on such a machine.
    pub fn apply(self, command: &mut Command) -> &mut Command {
        let filter = match self {
            Self::Bpf => without_bpf(libc::ENOSYS),
            Self::BpfPermission => without_bpf(libc::EPERM),
            Self::Tcx => vec![
                op(LOAD, NR, 0, 0),
                op(JUMP_EQ, number(libc::SYS_bpf), 0, 3),
                op(LOAD, arg(0), 0, 0),
                op(JUMP_EQ, BPF_PROG_QUERY, 0, 1),
                op(RETURN, errno(libc::EINVAL), 0, 0),
                op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
            ],
            Self::Nfnetlink => vec![
                op(LOAD, NR, 0, 0),
                op(JUMP_EQ, number(libc::SYS_socket), 0, 5),
                op(LOAD, arg(0), 0, 0),
                op(JUMP_EQ, number(libc::AF_NETLINK.into()), 0, 3),
                op(LOAD, arg(2), 0, 0),
                op(JUMP_EQ, number(libc::NETLINK_NETFILTER.into()), 0, 1),
                op(RETURN, errno(libc::EPROTONOSUPPORT), 0, 0),
                op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
            ],
            // libxt_set requests the index of a set by this option of linux/netfilter/ipset/ip_set.h.
            Self::Sets => without_option(SO_IP_SET, libc::EPROTO),
            Self::NetnsCookie => without_option(SO_NETNS_COOKIE, libc::ENOPROTOOPT),
            // SAFETY: the closure only makes system calls between fork and exec.
            Self::Iptables => return unsafe { command.pre_exec(hide_sbin) },
            // SAFETY: as above.
            Self::Capabilities => return unsafe { command.pre_exec(|| keep_capabilities(0)) },
            Self::CapabilitiesButNetAdmin => {
                // SAFETY: as above.
                return unsafe { command.pre_exec(|| keep_capabilities(1 << CAP_NET_ADMIN)) };
            }
            // SAFETY: as above.
            Self::Ipset => return unsafe { command.pre_exec(hide_ipset) },
        };
        // SAFETY: only prctl(2) runs between fork and exec; the closure owns the filter.
        unsafe { command.pre_exec(move || install(&filter, 0).map(drop)) }
    }
}

fn without_bpf(code: i32) -> Vec<libc::sock_filter> {
    vec![
        op(LOAD, NR, 0, 0),
        op(JUMP_EQ, number(libc::SYS_bpf), 0, 1),
        op(RETURN, errno(code), 0, 0),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]
}

/// Returns a filter for getsockopt(2) of an option with this number, of any protocol.
fn without_option(option: u32, code: i32) -> Vec<libc::sock_filter> {
    vec![
        op(LOAD, NR, 0, 0),
        op(JUMP_EQ, number(libc::SYS_getsockopt), 0, 3),
        op(LOAD, arg(2), 0, 0),
        op(JUMP_EQ, option, 0, 1),
        op(RETURN, errno(code), 0, 0),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]
}

/// Installs a filter on this process; returns the result of seccomp(2) with these flags.
pub(crate) fn install(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<i32> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).expect("a few instructions"),
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads the program, which outlives the calls.
    let answer = unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
    };
    i32::try_from(answer)
        .ok()
        .filter(|answer| *answer >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn hide_sbin() -> io::Result<()> {
    private_mounts()?;
    for dir in SBIN {
        let tmpfs = c"tmpfs".as_ptr();
        // SAFETY: as below. If the path does not exist, the call fails, and nothing has to be hidden.
        unsafe { libc::mount(tmpfs, dir.as_ptr(), tmpfs, 0, std::ptr::null()) };
    }
    Ok(())
}

fn hide_ipset() -> io::Result<()> {
    private_mounts()?;
    for file in IPSET {
        let (nothing, null) = (c"/dev/null".as_ptr(), std::ptr::null());
        // SAFETY: as below. If the path does not exist, the call fails, and nothing has to be hidden.
        unsafe { libc::mount(nothing, file.as_ptr(), null, libc::MS_BIND, null.cast()) };
    }
    Ok(())
}

/// Creates a mount namespace whose mounts no other process sees.
pub(crate) fn private_mounts() -> io::Result<()> {
    let nothing = std::ptr::null();
    // SAFETY: the strings are C strings, and null is allowed where it is passed.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(
            nothing,
            c"/".as_ptr(),
            nothing,
            private,
            std::ptr::null(),
        ))
    }
}

/// The version of `struct __user_cap_header_struct` and `struct __user_cap_data_struct` of capset(2).
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// `SECBIT_NOROOT`: user ID 0 gains no capabilities at exec.
const SECBIT_NOROOT: libc::c_ulong = 1;

/// The capability's number in linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;

/// Makes a command run with only the capabilities in a mask, although the user is root.
pub fn keep_only(command: &mut Command, mask: u64) -> &mut Command {
    // SAFETY: the closure only makes system calls between fork and exec.
    unsafe { command.pre_exec(move || keep_capabilities(mask)) }
}

/// Drops the capabilities that are not in the mask, across exec as well.
fn keep_capabilities(mask: u64) -> io::Result<()> {
    let header = [CAPABILITY_VERSION_3, 0];
    // The fields are effective, permitted and inheritable, first for capabilities 0 to 31, then for those above.
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    let [low, high] = [half(mask), half(mask >> 32)];
    let kept = [low, low, low, high, high, high];
    // SAFETY: both arrays have the layout that capset(2) reads in version 3.
    unsafe {
        check(libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0))?;
        if libc::syscall(libc::SYS_capset, header.as_ptr(), kept.as_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        for capability in (0..64).filter(|capability| mask & (1 << capability) != 0) {
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            check(libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0, 0))?;
        }
    }
    Ok(())
}

/// Returns the error of a call that returned a negative number.
pub(crate) fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
