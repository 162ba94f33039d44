// SPDX-License-Identifier: Apache-2.0

//! What aya takes this kernel to be able to do, and a second opinion.
//!
//! aya asks once in the life of a process and takes every error for a no. A call that failed for want of
//! memory would so keep the `ebpf` backend from working until the agent is started again. This is how the
//! agent notices, and starts itself again.

use std::env;
use std::error::Error;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The subcommand that prints [`known`].
pub const SUBCOMMAND: &str = "kernel-features";

/// This program, also if its file was replaced in the meantime.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What aya takes the kernel for, as text that can be compared.
pub fn known() -> String {
    format!("{:?}", aya::features())
}

/// Whether everything is known to be there that the programs are loaded with: names by which `doctor`
/// and `bpftool` know them (Linux 4.15), constants (5.2), and types of functions (5.0). The backend
/// needs a younger kernel than these.
pub fn are_enough() -> bool {
    let features = aya::features();
    let Some(types) = features.btf() else {
        return false;
    };
    features.bpf_name() && features.bpf_global_data() && types.btf_func()
}

/// Asks again, in a process of its own: whether this one is wrong about the kernel. False where nobody
/// can tell.
pub fn are_misjudged() -> bool {
    let output = Command::new(OWN_PROGRAM).arg(SUBCOMMAND).output();
    output.is_ok_and(|output| output.status.success() && output.stdout != known().as_bytes())
}

/// Whether an answer is one of want, not of inability: what failed may succeed the next time.
pub fn may_come(error: &(dyn Error + 'static)) -> bool {
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

/// Becomes a new process of the same command line, which finds what this one has left as after any
/// other end. Returns only if that fails.
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
    fn want_is_told_from_inability() {
        let refused = |errno| {
            ProgramError::SyscallError(SyscallError {
                call: "bpf_prog_load",
                io_error: io::Error::from_raw_os_error(errno),
            })
        };
        assert!(may_come(&refused(libc::ENOMEM)));
        assert!(!may_come(&refused(libc::EINVAL)));
        assert!(!may_come(&ProgramError::NotLoaded));
    }
}
