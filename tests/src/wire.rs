// SPDX-License-Identifier: Apache-2.0

//! A socket that sends Ethernet frames by a link.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cmd;
use crate::netns::Netns;

/// How long a link may take no frames.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that sends frames by a link.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn open(netns: &Netns, link: &str) -> Result<Self> {
        let index = netns.ifindex(link)?;
        netns.run(|| {
            // SAFETY: no pointers.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("opening a packet socket");
            }
            // SAFETY: a new descriptor that nothing else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: integers, for which zero is a value.
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
    /// The kernel's answer.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let fd = self.0.as_raw_fd();
        cmd::wait_until(TIMEOUT, "the link to take a frame", || {
            // SAFETY: the buffer is valid for its length.
            let sent = unsafe { libc::send(fd, frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                return Ok(Some(()));
            }
            match io::Error::last_os_error() {
                // For a moment, while a program is attached to it.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
                error => Err(error).context("sending a frame"),
            }
        })
    }
}

/// The link-layer address of a link.
///
/// # Errors
/// When there is no such link.
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
