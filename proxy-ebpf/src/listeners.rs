// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Stores the proxy's listeners for the agent where the kernel does not permit programs of traffic control to do so
//! (since Linux 7.3): an iterator over the TCP sockets of the agent's network namespace. The agent runs it when another
//! socket listens.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::bpf_get_socket_cookie;

use crate::maps::services;

/// The fields that are read of `struct bpf_iter__tcp` of
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/tcp_ipv4.c>.
#[repr(C)]
pub struct Iteration {
    meta: *mut c_void,
    /// The socket; null at the end.
    socket: *mut c_void,
}

/// Stores the socket if the agent has requested it.
#[inline(always)]
pub fn keep(ctx: *const Iteration) {
    // SAFETY: the kernel passes a valid context to the program.
    let socket = unsafe { ptr::read_volatile(&raw const (*ctx).socket) };
    if socket.is_null() {
        return;
    }
    // SAFETY: the pointer is a socket, and not null.
    let cookie = unsafe { bpf_get_socket_cookie(socket) };
    services::keep_wanted(cookie, socket);
}
