// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Keeps the proxy's listeners on behalf of the agent, where the kernel refuses programs of traffic control to do so
//! (since Linux 7.3): an iterator over the TCP sockets of the agent's network namespace. The agent runs
//! it when another socket listens.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::bpf_get_socket_cookie;

use crate::maps::services;

/// `struct bpf_iter__tcp` of <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c>, as far
/// as it is read.
#[repr(C)]
pub struct Iteration {
    meta: *mut c_void,
    /// The socket; null at the end.
    socket: *mut c_void,
}

/// Keeps the socket if the agent wants it to be kept.
#[inline(always)]
pub fn keep(ctx: *const Iteration) {
    // SAFETY: the kernel hands a valid context to the program.
    let socket = unsafe { ptr::read_volatile(&raw const (*ctx).socket) };
    if socket.is_null() {
        return;
    }
    // SAFETY: a socket, and not null.
    let cookie = unsafe { bpf_get_socket_cookie(socket) };
    services::keep_wanted(cookie, socket);
}
