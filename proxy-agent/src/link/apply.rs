// SPDX-License-Identifier: Apache-2.0

//! Carries out one operation at a time, as planned in `plan`.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::LinkAttribute;
use proxy_netlink::events::{Event, Events, Interest};
use proxy_netlink::route::{self, Address, links};
use rtnetlink::{Handle, LinkDummy, LinkUnspec};

use super::plan::{Op, Source, host_prefix};
use super::table::{LinkTable, OWN_GROUP};

/// An IPv6 address works once the kernel has announced it, a moment after it was added.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(1);

/// A lifetime that does not end, include/net/addrconf.h.
const FOREVER: u32 = u32::MAX;

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel refused.
    #[error("{hint}")]
    Refused {
        /// What the operator can do.
        hint: &'static str,
        /// The kernel's answer.
        #[source]
        answer: io::Error,
    },
    /// No answer came.
    #[error("no answer from the kernel, the netlink connection was lost")]
    Lost(#[source] rtnetlink::Error),
    /// The link could not be created, or has gone again.
    #[error("there is no link {0} at this moment")]
    NoLink(String),
    /// No events could be listened to.
    #[error("cannot listen to kernel events")]
    Listen(#[source] io::Error),
    /// The list of links could not be read.
    #[error(transparent)]
    Observe(#[from] route::Error),
    /// The address is there but not in use yet.
    #[error("the kernel has not announced {0} on its link within {ANNOUNCED_WITHIN:?}")]
    NotAnnounced(IpAddr),
    /// The VIP is not on its own link, so it stays where it is.
    #[error("left in place, because bringing {0} to its link failed")]
    Kept(IpAddr),
    /// A VIP is still on the link.
    #[error("left in place, because a VIP could not be moved off it")]
    InUse,
}

/// Carries out the operations of one plan.
pub(super) struct Applier<'a> {
    handle: &'a Handle,
    table: &'a LinkTable,
    source: Source,
    gate: Gate,
}

/// Keeps a VIP where it is as long as it could not be brought to its link.
#[derive(Debug, Default)]
pub(super) struct Gate {
    link_failed: bool,
    vips_failed: Vec<IpAddr>,
}

impl Gate {
    /// Whether `op` takes nothing away that is still needed.
    pub(super) fn allows(&self, op: &Op) -> bool {
        match op {
            Op::Remove { old, .. } => !self.link_failed && !self.vips_failed.contains(&old.ip),
            Op::DeleteLink { .. } => !self.link_failed && self.vips_failed.is_empty(),
            _ => true,
        }
    }

    /// Remembers that `op` failed.
    pub(super) fn failed(&mut self, op: &Op) {
        match op {
            Op::CreateDummy { .. } | Op::SetUp { .. } => self.link_failed = true,
            Op::Add { vip, .. } => self.vips_failed.push(*vip),
            // Whatever of the two steps failed, the VIP may be gone or unusable.
            Op::Replace { old, .. } | Op::Rescope { old, .. } => self.vips_failed.push(old.ip),
            Op::Extend { .. } | Op::Prefer { .. } | Op::Remove { .. } | Op::DeleteLink { .. } => {}
        }
    }
}

impl<'a> Applier<'a> {
    pub(super) fn new(handle: &'a Handle, table: &'a LinkTable, source: Source) -> Self {
        Self {
            handle,
            table,
            source,
            gate: Gate::default(),
        }
    }

    /// Carries out one operation. A later one that depends on it is not tried if it fails.
    pub(super) async fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let result = self.try_apply(op).await;
        if result.is_err() {
            self.gate.failed(op);
        }
        result
    }

    async fn try_apply(&self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::CreateDummy { link } => self.create(link).await,
            Op::SetUp { link } => self.set_up(link).await,
            Op::Add { vip, link } => self.bring(*vip, link).await,
            Op::Extend { vip, link } | Op::Prefer { vip, link, .. } => {
                self.add(*vip, link, true).await
            }
            Op::Rescope { old, link, .. } => self.rescope(old, link).await,
            Op::Replace { old, link, .. } => {
                self.remove(old).await?;
                self.add(old.ip, link, false).await
            }
            Op::Remove { old, .. } if self.gate.allows(op) => self.remove(old).await,
            Op::Remove { old, .. } => Err(ApplyError::Kept(old.ip)),
            Op::DeleteLink { index, .. } if self.gate.allows(op) => self.delete(*index).await,
            Op::DeleteLink { .. } => Err(ApplyError::InUse),
        }
    }

    async fn create(&self, link: &str) -> Result<(), ApplyError> {
        // One message creates the link, marks it and sets it up: no state between them.
        let message = LinkDummy::new(link)
            .append_extra_attribute(LinkAttribute::Group(OWN_GROUP))
            .up()
            .build();
        let answer = self.handle.link().add(message).execute().await;
        answered(answer, create_hint)
    }

    async fn set_up(&self, link: &str) -> Result<(), ApplyError> {
        let index = self.index_of(link).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        answered(self.handle.link().set(message).execute().await, change_hint)
    }

    /// Adds a VIP so that a copy of it elsewhere can be removed next without a gap.
    ///
    /// The kernel inserts the local route of an IPv6 address in deferred work, together with the
    /// announcement: until then only the other copy makes the VIP local.
    /// <https://github.com/torvalds/linux/blob/v6.12/net/ipv6/addrconf.c#L4272>
    async fn bring(&self, vip: IpAddr, link: &str) -> Result<(), ApplyError> {
        let elsewhere = self.table.addresses.iter().any(|copy| copy.ip == vip);
        if !(vip.is_ipv6() && elsewhere) {
            return self.add(vip, link, false).await;
        }
        let interest = Interest {
            addresses: vec![vip],
            ..Interest::default()
        };
        let mut events = Events::open(interest).map_err(ApplyError::Listen)?;
        self.add(vip, link, false).await?;
        let announced = async { while events.next().await.event != Event::Address(vip) {} };
        tokio::time::timeout(ANNOUNCED_WITHIN, announced)
            .await
            .map_err(|_| ApplyError::NotAnnounced(vip))
    }

    async fn add(&self, vip: IpAddr, link: &str, replace: bool) -> Result<(), ApplyError> {
        let index = self.index_of(link).await?;
        let mut request = self.handle.address().add(index, vip, host_prefix(vip));
        let message = request.message_mut();
        if vip.is_ipv6() {
            // Detection would keep the VIP from working for a second, or forever.
            let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(nodad);
        } else {
            message.header.scope = AddressScope::from(self.source.scope());
        }
        if vip.is_ipv6() && self.source == Source::Never {
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, FOREVER);
            let lifetimes = AddressAttribute::CacheInfo(lifetimes);
            message.attributes.push(lifetimes);
        }
        if replace {
            request = request.replace();
        }
        let answer = request.execute().await;
        match errno(&answer) {
            // Another program has added it. The next pass compares it.
            Some(libc::EEXIST) => Ok(()),
            _ => answered(answer, change_hint),
        }
    }

    /// Gives an IPv4 VIP another scope. The kernel holds several copies of an address on a link if they differ in
    /// the network or in the other end, and keeps the address local while there is one; each copy has its
    /// scope.
    /// `__inet_insert_ifa` and `fib_del_ifaddr` in <https://github.com/torvalds/linux/tree/v6.12/net/ipv4>
    async fn rescope(&self, old: &Address, link: &str) -> Result<(), ApplyError> {
        let IpAddr::V4(vip) = old.ip else {
            return Ok(());
        };
        // Local already, and another one for each VIP: no copy is a secondary of another one.
        let [_, rest @ ..] = vip.octets();
        let other_end = IpAddr::from([127, rest[0], rest[1], rest[2]]);
        let meanwhile = Address {
            peer: Some(other_end),
            ..old.clone()
        };
        let mut request = self.handle.address().add(old.index, old.ip, old.prefix_len);
        let message = request.message_mut();
        message.header.scope = AddressScope::from(self.source.scope());
        let flags = AddressAttribute::Flags(AddressFlags::Noprefixroute);
        message.attributes = vec![
            AddressAttribute::Local(old.ip),
            AddressAttribute::Address(other_end),
            flags,
        ];
        let answer = request.execute().await;
        match errno(&answer) {
            // Left by one that was killed at this point.
            Some(libc::EEXIST) => {}
            _ => answered(answer, change_hint)?,
        }
        self.remove(old).await?;
        self.add(old.ip, link, false).await?;
        self.remove(&meanwhile).await
    }

    async fn remove(&self, old: &Address) -> Result<(), ApplyError> {
        let mut message = AddressMessage::default();
        message.header.family = match old.ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.index = old.index;
        message.header.prefix_len = old.prefix_len;
        message.attributes = vec![
            AddressAttribute::Local(old.ip),
            AddressAttribute::Address(old.peer.unwrap_or(old.ip)),
        ];
        let answer = self.handle.address().del(message).execute().await;
        match errno(&answer) {
            Some(libc::EADDRNOTAVAIL | libc::ENODEV) => Ok(()),
            _ => answered(answer, change_hint),
        }
    }

    async fn delete(&self, index: u32) -> Result<(), ApplyError> {
        let answer = self.handle.link().del(index).execute().await;
        match errno(&answer) {
            Some(libc::ENODEV) => Ok(()),
            _ => answered(answer, change_hint),
        }
    }

    /// The ifindex of the VIPs' link, also if it was created a moment ago.
    async fn index_of(&self, link: &str) -> Result<u32, ApplyError> {
        if let Some(found) = self.table.by_name(link) {
            return Ok(found.index);
        }
        let now = LinkTable {
            links: links().await?,
            ..LinkTable::default()
        };
        let found = now.by_name(link);
        found
            .map(|found| found.index)
            .ok_or_else(|| ApplyError::NoLink(link.to_owned()))
    }
}

/// The kernel's errno, if that was the answer.
fn errno(answer: &Result<(), rtnetlink::Error>) -> Option<i32> {
    match answer {
        Err(rtnetlink::Error::NetlinkError(message)) => Some(-message.raw_code()),
        _ => None,
    }
}

/// Turns the kernel's answer into one for the operator.
fn answered(
    answer: Result<(), rtnetlink::Error>,
    hint: fn(i32) -> &'static str,
) -> Result<(), ApplyError> {
    match (errno(&answer), answer) {
        (_, Ok(())) => Ok(()),
        (Some(code), Err(_)) => Err(ApplyError::Refused {
            hint: hint(code),
            answer: io::Error::from_raw_os_error(code),
        }),
        (None, Err(error)) => Err(ApplyError::Lost(error)),
    }
}

fn create_hint(errno: i32) -> &'static str {
    match errno {
        libc::EOPNOTSUPP => {
            "this kernel has no dummy links (run `modprobe dummy`, or choose an existing link, such \
             as --interface=lo)"
        }
        libc::EEXIST => "a link of that name has appeared in the meantime; the next pass uses it",
        libc::EINVAL => {
            "the kernel does not take that name for a link (choose another --interface)"
        }
        other => change_hint(other),
    }
}

fn change_hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => "not permitted (the agent needs CAP_NET_ADMIN in this network namespace)",
        // The kernel's answer to an IPv6 address on a link where IPv6 is off.
        libc::EACCES => {
            "IPv6 is disabled on that link (set net.ipv6.conf.<link>.disable_ipv6 to 0, or leave the \
             IPv6 VIP out)"
        }
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT => {
            "the kernel does not support that here (is IPv6 disabled at boot? then leave the IPv6 VIP \
             out)"
        }
        libc::ENODEV => "the link has gone in the meantime; the next pass repairs that",
        libc::ENOBUFS | libc::ENOMEM => "the kernel is out of memory; the next pass tries again",
        _ => "the kernel refused; the next pass tries again",
    }
}
