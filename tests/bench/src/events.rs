// SPDX-License-Identifier: Apache-2.0

//! The kernel's notifications of changes: the messages of a netlink group, with the time of their
//! arrival.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use ::tests::netns::Netns;

const NETLINK_ROUTE: i32 = 0;
const NETLINK_NETFILTER: i32 = 12;
/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR`
const ROUTE_GROUPS: u32 = 0x1 | 0x10;
/// `1 << (NFNLGRP_NFTABLES - 1)`
const NFTABLES_GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES << 8`
const NFTABLES: u16 = 10 << 8;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Nothing takes longer than that, or it does not happen at all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A change that the kernel reports in a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An IPv4 address was added.
    NewAddress,
    /// An IPv4 address was removed.
    DeletedAddress,
    /// A link is up.
    LinkUp,
    /// A link is down.
    LinkDown,
    /// A table of nf_tables was added.
    NewTable,
    /// A table of nf_tables was removed.
    DeletedTable,
    /// A rule was added.
    NewRule,
    /// A rule was removed.
    DeletedRule,
}

impl Event {
    fn is_of_netfilter(self) -> bool {
        matches!(
            self,
            Self::NewTable | Self::DeletedTable | Self::NewRule | Self::DeletedRule
        )
    }

    fn of_route(kind: u16, body: &[u8]) -> Option<Self> {
        // struct ifinfomsg: family, type, index, flags
        let is_up = body.get(8).is_some_and(|flags| flags & 1 != 0);
        match kind {
            16 if is_up => Some(Self::LinkUp),
            16 => Some(Self::LinkDown),
            20 => Some(Self::NewAddress),
            21 => Some(Self::DeletedAddress),
            _ => None,
        }
    }

    fn of_netfilter(kind: u16) -> Option<Self> {
        match kind.checked_sub(NFTABLES)? {
            0 => Some(Self::NewTable),
            2 => Some(Self::DeletedTable),
            6 => Some(Self::NewRule),
            8 => Some(Self::DeletedRule),
            _ => None,
        }
    }
}

/// Interferes in a namespace; returns the time between the event `broken`, which that causes, and the
/// event `repaired` after it.
///
/// # Errors
/// When the interference fails, or one of the events does not come.
pub fn between(
    netns: &Netns,
    (broken, repaired): (Event, Event),
    interfere: impl FnOnce() -> Result<()> + Send,
) -> Result<Duration> {
    let of_netfilter = broken.is_of_netfilter();
    let socket = netns.run(|| {
        if of_netfilter {
            open(NETLINK_NETFILTER, NFTABLES_GROUP)
        } else {
            open(NETLINK_ROUTE, ROUTE_GROUPS)
        }
    });
    let socket = socket.context("listening to kernel events")?;
    std::thread::scope(|scope| {
        let interfering = scope.spawn(interfere);
        let time = time_between(&socket, of_netfilter, (broken, repaired));
        interfering
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        time
    })
}

fn time_between(
    socket: &OwnedFd,
    of_netfilter: bool,
    (broken, repaired): (Event, Event),
) -> Result<Duration> {
    let (mut from, start) = (None, Instant::now());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        ensure!(
            start.elapsed() < TIMEOUT,
            "waited {TIMEOUT:?} in vain for {:?}",
            if from.is_none() { broken } else { repaired }
        );
        let length = receive(socket, &mut buffer)?;
        let now = Instant::now();
        for event in events(&buffer[..length], of_netfilter) {
            match from {
                None if event == broken => from = Some(now),
                Some(from) if event == repaired => return Ok(now - from),
                _ => {}
            }
        }
    }
}

fn events(mut rest: &[u8], of_netfilter: bool) -> Vec<Event> {
    let mut found = Vec::new();
    while let Some((header, _)) = rest.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = rest.get(HEADER..length) else {
            break;
        };
        found.extend(if of_netfilter {
            Event::of_netfilter(kind)
        } else {
            Event::of_route(kind, body)
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn open(protocol: i32, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket has no memory effects.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // A read time-out, so that a missing event becomes an error.
    let timeout = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    // SAFETY: the structures are valid for their sizes; zero is a value for each of their members.
    let refused = unsafe {
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK.try_into().expect("a small number");
        address.nl_groups = groups;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>()
                .try_into()
                .expect("a small number"),
        ) | libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_nl>()
                .try_into()
                .expect("a small number"),
        )
    };
    if refused != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// The length of what came; 0 if nothing did for a second.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    let length = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    match usize::try_from(length) {
        Ok(length) => Ok(length),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn messages_are_distinguished() {
        let mut up = [0; 16];
        up[8] = 1;
        let route = [
            message(16, &up),
            message(16, &[0; 16]),
            message(21, &[0; 8]),
        ]
        .concat();
        assert_eq!(
            events(&route, false),
            [Event::LinkUp, Event::LinkDown, Event::DeletedAddress]
        );
        let netfilter = [message(NFTABLES, &[0; 4]), message(NFTABLES + 15, &[])].concat();
        assert_eq!(events(&netfilter, true), [Event::NewTable]);
        assert!(events(&netfilter[..18], true).is_empty());
    }
}
