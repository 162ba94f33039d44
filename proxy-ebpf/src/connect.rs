// SPDX-License-Identifier: Apache-2.0 OR MIT

//! cgroup hooks: if a process in the host's network namespace connects to a Service of the proxy, the connection is
//! made to the VIP, and the process still sees the Service as its peer.
//!
//! Pods are not affected: their connections are decided outside of the pod, so that programs in it, a service mesh for
//! example, see no difference.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use proxy_common::{Address, Endpoint};

use crate::maps::{peers, services, statistics};
use crate::packet::Undecided;
use crate::sockets;

const SOCK_STREAM: u32 = 1;

/// Reads and writes a hook's address.
pub trait Family {
    /// Returns the address in the context.
    ///
    /// # Safety
    ///
    /// The context must be one of this family.
    unsafe fn get(context: *mut bpf_sock_addr) -> Address;
    /// Writes an address into the context.
    ///
    /// # Safety
    ///
    /// The context must be one of this family.
    unsafe fn set(context: *mut bpf_sock_addr, address: Address);
}

/// The hooks `connect4` and `getpeername4`.
pub struct Ipv4;

/// The hooks `connect6` and `getpeername6`, which include IPv4 addresses of IPv6 sockets.
pub struct Ipv6;

impl Family for Ipv4 {
    #[inline(always)]
    unsafe fn get(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the caller guarantees that the context is valid.
        Address::from_ipv4(unsafe { (*context).user_ip4 })
    }

    #[inline(always)]
    unsafe fn set(context: *mut bpf_sock_addr, address: Address) {
        if let Some(word) = address.as_ipv4() {
            // SAFETY: the caller guarantees that the context is valid.
            unsafe { (*context).user_ip4 = word };
        }
    }
}

impl Family for Ipv6 {
    #[inline(always)]
    unsafe fn get(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the caller guarantees that the context is valid. The words are read one by one, as the verifier
        // requires.
        unsafe {
            Address::from_ipv6([
                core::ptr::read_volatile(&raw const (*context).user_ip6[0]),
                core::ptr::read_volatile(&raw const (*context).user_ip6[1]),
                core::ptr::read_volatile(&raw const (*context).user_ip6[2]),
                core::ptr::read_volatile(&raw const (*context).user_ip6[3]),
            ])
        }
    }

    #[inline(always)]
    unsafe fn set(context: *mut bpf_sock_addr, address: Address) {
        let words = address.words();
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(&raw mut (*context).user_ip6[0], words[0]);
            core::ptr::write_volatile(&raw mut (*context).user_ip6[1], words[1]);
            core::ptr::write_volatile(&raw mut (*context).user_ip6[2], words[2]);
            core::ptr::write_volatile(&raw mut (*context).user_ip6[3], words[3]);
        }
    }
}

/// Changes the destination to the VIP if the process is on the host and the proxy listens.
#[inline(always)]
pub fn connect<F: Family>(ctx: &SockAddrContext) -> Result<(), Undecided> {
    let context = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context of this family to the program.
    let (kind, port) = unsafe { ((*context).type_, port(context)) };
    if kind != SOCK_STREAM || !services::may_be_port(port) {
        return Err(Undecided::NotForProxy);
    }
    // SAFETY: as above.
    let addressed = Endpoint::new(unsafe { F::get(context) }, port);
    let service = services::get(&addressed)?;
    if service.is_draining() {
        return Err(Undecided::Draining);
    }
    if !is_on_host(ctx) {
        return Err(Undecided::NotOnHost);
    }
    if is_bound_to_link(ctx) {
        return Err(Undecided::BoundToLink);
    }
    let vip = service.vip();
    let outcome = redirect::<F>(ctx, addressed, vip);
    statistics::connected(vip, outcome);
    outcome
}

#[inline(always)]
fn redirect<F: Family>(
    ctx: &SockAddrContext,
    addressed: Endpoint,
    vip: Endpoint,
) -> Result<(), Undecided> {
    sockets::with_listener(ctx, vip, |_| Ok(()))?;
    let context = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context of this family to the program.
    unsafe {
        // This entry is written first: without it the process would see the VIP as its peer.
        peers::remember(bpf_get_socket_cookie(ctx.as_ptr()), addressed)?;
        F::set(context, vip.address());
        (*context).user_port = vip.port().into();
    }
    debug!(ctx, "connected a process on the host to the VIP");
    Ok(())
}

/// Returns the Service as the peer if the process connected to it.
#[inline(always)]
pub fn peer<F: Family>(ctx: &SockAddrContext) -> Result<(), Undecided> {
    let context = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context of this family to the program.
    let port = unsafe { port(context) };
    if !services::may_be_port(port) {
        return Err(Undecided::NotForProxy);
    }
    // SAFETY: as above.
    let original = peers::original(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) })?;
    // SAFETY: as above.
    let shown = Endpoint::new(unsafe { F::get(context) }, port);
    // A socket can be connected again, to another address.
    if services::get(&original)?.vip() != shown {
        return Err(Undecided::NotTranslated);
    }
    // SAFETY: as above.
    unsafe {
        F::set(context, original.address());
        (*context).user_port = original.port().into();
    }
    Ok(())
}

/// Returns the port in network byte order, which is the lower half of its field.
#[inline(always)]
unsafe fn port(context: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the caller guarantees that the context is valid.
    let field = unsafe { (*context).user_port };
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is zero")]
    {
        field as u16
    }
}

/// Returns whether the socket is bound to a link: its process wants to leave the node by this link, and not to reach
/// the VIP on `lo`.
#[inline(always)]
fn is_bound_to_link(ctx: &SockAddrContext) -> bool {
    // SAFETY: the kernel passes a valid context to the program, with the connecting socket (Linux 5.3).
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (*socket).bound_dev_if != 0
    }
}

/// Returns whether the process is in the agent's network namespace.
#[inline(always)]
fn is_on_host(ctx: &SockAddrContext) -> bool {
    let host = match services::host_netns() {
        // SAFETY: without a context the helper returns the cookie of the initial namespace.
        0 => unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) },
        cookie => cookie,
    };
    // SAFETY: the kernel passes a valid context to the program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == host }
}
