// SPDX-License-Identifier: Apache-2.0

//! Fills a namespace's conntrack table, with many entries in each message to the kernel: conntrack(8)
//! would take minutes.

use std::io;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Netns;

// These constants are from the kernel's include/uapi/linux/netfilter/nfnetlink_conntrack.h and neighbouring files.
const NETLINK_NETFILTER: i32 = 12;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`
const CT_NEW: u16 = 1 << 8;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `IPPROTO_UDP`
const UDP: u8 = 17;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED`: the kernel never evicts such entries to make room.
const STATUS: u32 = 2 | 4 | 8;
/// The number of seconds until an entry expires: longer than any test.
const TIMEOUT: u32 = 3600;
const PEER: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
/// The maximum size of a batch, in bytes: a message must fit into the socket's send buffer.
const MAX_BATCH: usize = 32 * 1024;

/// Adds entries of unrelated UDP flows until the table is full; returns the number of entries.
///
/// # Errors
/// Returns an error if the kernel refuses an entry, or if the table does not become full.
pub fn fill(netns: &Netns) -> Result<u32> {
    netns.run(|| {
        let max = read_sysctl("nf_conntrack_max")?;
        let socket = open().context("opening a netlink socket to netfilter")?;
        let mut flow = 0;
        // The table is filled more than once, because connections may end and free entries meanwhile.
        for _ in 0..3 {
            let missing = max.saturating_sub(read_sysctl("nf_conntrack_count")?);
            add_flows(&socket, flow..flow + missing)?;
            flow += missing;
        }
        let count = read_sysctl("nf_conntrack_count")?;
        ensure!(count >= max, "{count} of {max} conntrack entries");
        Ok(count)
    })
}

/// Adds `count` entries of unrelated UDP flows to a table that has none of them.
///
/// # Errors
/// Returns an error if the kernel refuses an entry.
pub fn add(netns: &Netns, count: u32) -> Result<()> {
    netns.run(|| {
        let socket = open().context("opening a netlink socket to netfilter")?;
        add_flows(&socket, 0..count)?;
        let there = read_sysctl("nf_conntrack_count")?;
        ensure!(there >= count, "{there} of {count} conntrack entries");
        Ok(())
    })
}

fn add_flows(socket: &OwnedFd, flows: Range<u32>) -> Result<()> {
    let mut batch = Vec::with_capacity(MAX_BATCH + 256);
    for flow in flows {
        push_entry(&mut batch, flow);
        if batch.len() > MAX_BATCH {
            send(socket, &batch).context("adding conntrack entries")?;
            batch.clear();
        }
    }
    send(socket, &batch).context("adding conntrack entries")
}

/// Reads a sysctl of the namespace of the calling thread.
fn read_sysctl(name: &str) -> Result<u32> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    Ok(text.trim().parse()?)
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: socket has no memory effects.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            NETLINK_NETFILTER,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a batch. The kernel acknowledges only failures, which the number of entries shows as well.
fn send(socket: &OwnedFd, batch: &[u8]) -> io::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), batch.as_ptr().cast(), batch.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Appends the message that adds one flow.
fn push_entry(batch: &mut Vec<u8>, flow: u32) {
    let start = batch.len();
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + flow / 50_000);
    let port = u16::try_from(flow % 50_000).expect("below 50,000") + 1024;
    batch.extend([0; 4]);
    batch.extend(CT_NEW.to_ne_bytes());
    batch.extend((NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL).to_ne_bytes());
    batch.extend([0; 8]);
    // struct nfgenmsg: family, version, resource id
    batch.extend([2, 0, 0, 0]);
    push_tuple(batch, CTA_TUPLE_ORIG, (address, port), (PEER, 9));
    push_tuple(batch, CTA_TUPLE_REPLY, (PEER, 9), (address, port));
    push(batch, CTA_STATUS, &STATUS.to_be_bytes());
    push(batch, CTA_TIMEOUT, &TIMEOUT.to_be_bytes());
    let len = u32::try_from(batch.len() - start).expect("a small message");
    batch[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

fn push_tuple(batch: &mut Vec<u8>, kind: u16, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    nest(batch, kind, |batch| {
        nest(batch, CTA_TUPLE_IP, |batch| {
            push(batch, CTA_IP_V4_SRC, &from.0.octets());
            push(batch, CTA_IP_V4_DST, &to.0.octets());
        });
        nest(batch, CTA_TUPLE_PROTO, |batch| {
            push(batch, CTA_PROTO_NUM, &[UDP]);
            push(batch, CTA_PROTO_SRC_PORT, &from.1.to_be_bytes());
            push(batch, CTA_PROTO_DST_PORT, &to.1.to_be_bytes());
        });
    });
}

fn nest(batch: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = batch.len();
    push(batch, kind | NLA_F_NESTED, &[]);
    content(batch);
    let len = u16::try_from(batch.len() - start).expect("a small attribute");
    batch[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

fn push(batch: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(value.len() + 4).expect("a small attribute");
    batch.extend(len.to_ne_bytes());
    batch.extend(kind.to_ne_bytes());
    batch.extend(value);
    batch.resize(batch.len().next_multiple_of(4), 0);
}
