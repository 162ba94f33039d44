// SPDX-License-Identifier: Apache-2.0

//! A socket that sends Ethernet frames on a link.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cmd;
use crate::netns::Netns;

/// The maximum time for which a link may refuse frames.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that sends frames on a link.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens a socket on a link.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn open(netns: &Netns, link: &str) -> Result<Self> {
        let index = netns.ifindex(link)?;
        netns.run(|| {
            // SAFETY: no pointer is passed.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("opening a packet socket");
            }
            // SAFETY: the descriptor is new and has no other owner.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: the structure consists of integers, for which zero is a valid value.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_ifindex = i32::try_from(index)?;
            let length = u32::try_from(size_of_val(&address))?;
            // SAFETY: the address is valid for its length.
            let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
            if bound != 0 {
                return Err(io::Error::last_os_error()).context("binding a packet socket");
            }
            Ok(Self(socket))
        })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let fd = self.0.as_raw_fd();
        cmd::wait_until(TIMEOUT, "the link to take a frame", || {
            // SAFETY: the buffer is valid for its length.
            let sent = unsafe { libc::send(fd, frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                return Ok(Some(()));
            }
            match io::Error::last_os_error() {
                // The kernel returns this for a moment while a program is being attached to the link.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
                error => Err(error).context("sending a frame"),
            }
        })
    }
}

/// Returns the link-layer address of a link.
///
/// # Errors
/// Returns an error if there is no such link.
pub fn link_address(netns: &Netns, link: &str) -> Result<[u8; 6]> {
    let shown = netns.exec(&format!("ip -o link show dev {link}"))?;
    let text = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .context("no link/ether")?;
    let bytes: Result<Vec<_>, _> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    bytes?.try_into().ok().context("not six bytes")
}
