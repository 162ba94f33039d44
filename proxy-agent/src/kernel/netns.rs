// SPDX-License-Identifier: Apache-2.0

//! The network namespace of this process.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Moves the current thread into a new network namespace, which is gone when nothing is left in it.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: no pointers.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The cookie by which eBPF programs know this network namespace; zero where the kernel does not
/// tell, which stands for the initial namespace.
pub fn cookie() -> u64 {
    let Ok(socket) = UnixDatagram::unbound() else {
        return 0;
    };
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(0);
    // SAFETY: `cookie` has room for `length` bytes.
    let refused = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if refused == 0 { cookie } else { 0 }
}
