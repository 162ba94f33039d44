// SPDX-License-Identifier: Apache-2.0

//! The kernel features that aya has detected, and whether they are stale.
//!
//! aya probes once in the life of a process and takes every error for a missing feature. A probe that failed
//! for lack of memory would keep the `ebpf` backend from working until the agent is restarted. The agent
//! notices that here and restarts itself.

use std::env;
use std::error::Error;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The subcommand that prints [`known`].
pub const SUBCOMMAND: &str = "kernel-features";

/// This program, also if its file was replaced in the meantime.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The features that aya has detected, as text that can be compared.
pub fn known() -> String {
    format!("{:?}", aya::features())
}

/// Whether all features with which the programs are loaded were detected: names by which `doctor`
/// and `bpftool` know them (Linux 4.15), constants (5.2), and types of functions (5.0). The backend
/// needs a younger kernel than these.
pub fn are_enough() -> bool {
    let features = aya::features();
    let Some(types) = features.btf() else {
        return false;
    };
    features.bpf_name() && features.bpf_global_data() && types.btf_func()
}

/// Probes again, in a process of its own: true if the features that this process has detected are stale. False
/// where that cannot be found out.
pub fn are_stale() -> bool {
    let output = Command::new(OWN_PROGRAM).arg(SUBCOMMAND).output();
    output.is_ok_and(|output| output.status.success() && output.stdout != known().as_bytes())
}

/// True for transient errors (ENOMEM, EMFILE and the like): a retry may succeed.
pub fn is_transient(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let answer = error.downcast_ref::<io::Error>();
        if let Some(errno) = answer.and_then(io::Error::raw_os_error) {
            return [
                libc::ENOMEM,
                libc::EAGAIN,
                libc::EINTR,
                libc::EMFILE,
                libc::ENFILE,
            ]
            .contains(&errno);
        }
        cause = error.source();
    }
    false
}

/// Replaces this process by a new one with the same command line, which finds the node as after any other
/// restart. Returns only if that fails.
pub fn start_again() -> io::Error {
    let mut own = env::args_os();
    let name = own.next().unwrap_or_else(|| OWN_PROGRAM.into());
    Command::new(OWN_PROGRAM).arg0(name).args(own).exec()
}

#[cfg(test)]
mod tests {
    use aya::programs::ProgramError;
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn transient_errors_are_recognised() {
        let refused = |errno| {
            ProgramError::SyscallError(SyscallError {
                call: "bpf_prog_load",
                io_error: io::Error::from_raw_os_error(errno),
            })
        };
        assert!(is_transient(&refused(libc::ENOMEM)));
        assert!(!is_transient(&refused(libc::EINVAL)));
        assert!(!is_transient(&ProgramError::NotLoaded));
    }
}
