// SPDX-License-Identifier: Apache-2.0

//! A kernel that refuses a program as Linux 7.3 does: this process decides on the agent's calls of bpf(2)
//! (`seccomp_unotify(2)`). A filter alone cannot do this, because the name of the program is in memory, which a filter
//! cannot read.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;

use crate::degraded_host::{JUMP_EQ, LOAD, NR, RETURN, arg, check, install, number, op};

/// The commands of bpf(2) that are intercepted.
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
/// The offset of the name in the attributes of the two commands (`union bpf_attr` of linux/bpf.h), and its length.
const NAME_OF_MAP: usize = 28;
const NAME_OF_PROGRAM: usize = 48;
const NAME: usize = 16;
/// The map of an object's constants. The agent creates a new one for each object that it loads.
const CONSTANTS: &str = ".rodata";
/// The descriptor under which the agent's process passes the filter's listener on.
const LISTENER: RawFd = 900;

/// Makes the kernel refuse the program of the first object that the command loads.
pub fn prepare(command: &mut Command) {
    let filter = vec![
        op(LOAD, NR, 0, 0),
        op(JUMP_EQ, number(libc::SYS_bpf), 0, 4),
        op(LOAD, arg(0), 0, 0),
        op(JUMP_EQ, BPF_MAP_CREATE, 1, 0),
        op(JUMP_EQ, BPF_PROG_LOAD, 0, 1),
        op(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let hand_out = move || {
        let listener = install(&filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        // SAFETY: descriptors are small numbers; the copy stays open across exec.
        check(unsafe { libc::dup2(listener, LISTENER) })
    };
    // SAFETY: the closure only makes system calls between fork and exec.
    unsafe { command.pre_exec(hand_out) };
}

/// Decides on the calls of the process that was started from the command, as long as it runs.
///
/// # Errors
/// Returns an error if the filter's listener cannot be obtained from the process.
pub fn answer(process: u32, program: &'static str) -> io::Result<()> {
    let process = libc::pid_t::try_from(process).map_err(io::Error::other)?;
    // SAFETY: no memory is passed; each call returns a new descriptor.
    let listener = unsafe {
        let process = descriptor(libc::syscall(libc::SYS_pidfd_open, process, 0))?;
        let process = process.as_raw_fd();
        descriptor(libc::syscall(libc::SYS_pidfd_getfd, process, LISTENER, 0))?
    };
    thread::spawn(move || {
        let mut objects = 0;
        while let Ok(call) = receive(&listener) {
            let error = match look(&call) {
                Ok((BPF_MAP_CREATE, name)) => {
                    objects += u32::from(name == CONSTANTS);
                    None
                }
                Ok((_, name)) if name == program && objects < 2 => Some(libc::EINVAL),
                // The process has exited meanwhile, or it is another program.
                Ok(_) | Err(_) => None,
            };
            respond(&listener, &call, error);
        }
    });
    Ok(())
}

/// Returns the command and the name in its attributes.
fn look(call: &libc::seccomp_notif) -> io::Result<(u32, String)> {
    let command = u32::try_from(call.data.args[0]).map_err(io::Error::other)?;
    let at = if command == BPF_MAP_CREATE {
        NAME_OF_MAP
    } else {
        NAME_OF_PROGRAM
    };
    let mut name = [0; NAME];
    let memory = File::open(format!("/proc/{}/mem", call.pid))?;
    memory.read_exact_at(&mut name, call.data.args[1] + at as u64)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((command, String::from_utf8_lossy(name).into_owned()))
}

fn receive(listener: &OwnedFd) -> io::Result<libc::seccomp_notif> {
    loop {
        // SAFETY: the structure consists of numbers; the kernel requires them to be zero, and fills them in.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
        // SAFETY: as above.
        match check(unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut call) }) {
            Ok(()) => return Ok(call),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn respond(listener: &OwnedFd, call: &libc::seccomp_notif, error: Option<i32>) {
    let go_on = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("it is 1");
    let answer = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: error.map_or(0, |error| -error),
        flags: error.map_or(go_on, |_| 0),
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel only reads the structure. It returns an error if the process has exited.
    unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const answer) };
}

/// # Safety
/// Returns the descriptor that a system call returned, or its error. The caller must pass the result of a call that
/// returns a new descriptor.
unsafe fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(answer) {
        // SAFETY: the caller guarantees that the descriptor is new.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
