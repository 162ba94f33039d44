// SPDX-License-Identifier: Apache-2.0

//! Routes that make Service addresses local to the node. An address on a link would be eligible as a source address of other
//! traffic, a route is not.
//!
//! The protocol number identifies the agent's routes. Each route has the node's own address as the source address of packets to the
//! Service; the kernel removes the route when that address is removed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// The protocol number of the agent's routes (`rtm_protocol`), which `iproute2` assigns to no program.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);
/// Ifindex of `lo`, the first link of every network namespace.
const LOOPBACK: u32 = 1;
/// Documentation addresses (RFC 5737, RFC 3849): every node reaches them by its default route.
const OUTSIDE_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Both of them.
pub const OUTSIDE: [IpAddr; 2] = [IpAddr::V4(OUTSIDE_IPV4), IpAddr::V6(OUTSIDE_IPV6)];

/// The kernel's route of a Service address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Missing,
    /// A route of the agent, with its source address.
    Ours(Option<IpAddr>),
    /// Another route or an address makes it local.
    Foreign,
}

/// The source address of the node's packets to addresses outside, for each family of `addresses`; left out if it is one of `not`.
///
/// # Errors
///
/// The kernel's answer.
pub async fn sources(
    handle: &Handle,
    addresses: &[IpAddr],
    not: &[IpAddr],
) -> Result<BTreeMap<bool, IpAddr>, rtnetlink::Error> {
    let mut found = BTreeMap::new();
    for is_ipv6 in [false, true] {
        if !addresses.iter().any(|ip| ip.is_ipv6() == is_ipv6) {
            continue;
        }
        let outside = if is_ipv6 {
            IpAddr::from(OUTSIDE_IPV6)
        } else {
            OUTSIDE_IPV4.into()
        };
        let Some(route) = get(handle, outside, RouteFlags::empty()).await? else {
            continue;
        };
        if let Some(source) = source_of(&route)
            && !not.contains(&source)
        {
            found.insert(is_ipv6, source);
        }
    }
    Ok(found)
}

/// The source address that the kernel selects for unbound sockets that send to `to`.
///
/// # Errors
///
/// The kernel's answer.
pub async fn source_towards(
    handle: &Handle,
    to: IpAddr,
) -> Result<Option<IpAddr>, rtnetlink::Error> {
    let route = get(handle, to, RouteFlags::empty()).await?;
    Ok(route.as_ref().and_then(source_of))
}

/// Looks up the route by which the kernel makes an address local.
///
/// # Errors
///
/// The kernel's answer.
pub async fn observe(handle: &Handle, address: IpAddr) -> Result<Found, rtnetlink::Error> {
    // `FibMatch` returns the entry of the routing table instead of the result for a packet.
    let Some(route) = get(handle, address, RouteFlags::FibMatch).await? else {
        return Ok(Found::Missing);
    };
    if route.header.kind != RouteType::Local {
        return Ok(Found::Missing);
    }
    if route.header.protocol != PROTOCOL {
        return Ok(Found::Foreign);
    }
    Ok(Found::Ours(source_of(&route)))
}

/// Whether an address is local other than by a route of the agent.
pub async fn is_own_address(handle: &Handle, address: IpAddr) -> bool {
    matches!(observe(handle, address).await, Ok(Found::Foreign))
}

/// Adds the route that makes an address local.
///
/// # Errors
///
/// The kernel's answer.
pub async fn add(
    handle: &Handle,
    address: IpAddr,
    source: Option<IpAddr>,
) -> Result<(), rtnetlink::Error> {
    handle.route().add(route(address, source)).execute().await
}

/// Removes the agent's route of an address, if it exists.
///
/// # Errors
///
/// The kernel's answer.
pub async fn remove(handle: &Handle, address: IpAddr) -> Result<(), rtnetlink::Error> {
    match handle.route().del(route(address, None)).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ESRCH => Ok(()),
        result => result,
    }
}

fn route(address: IpAddr, source: Option<IpAddr>) -> RouteMessage {
    let mut message = to_host(address);
    message.header.table = libc::RT_TABLE_LOCAL;
    message.header.protocol = PROTOCOL;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes.push(RouteAttribute::Oif(LOOPBACK));
    if let Some(source) = source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(as_attribute(source)));
    }
    message
}

/// A message about the route to one address.
fn to_host(address: IpAddr) -> RouteMessage {
    match address {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, 32)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, 128)
            .build(),
    }
}

/// Looks up one route; none if there is none.
async fn get(
    handle: &Handle,
    to: IpAddr,
    flags: RouteFlags,
) -> Result<Option<RouteMessage>, rtnetlink::Error> {
    let mut message = to_host(to);
    message.header.flags = flags;
    let mut answers = handle.route().get(message).execute();
    match answers.try_next().await {
        Ok(route) => Ok(route),
        Err(rtnetlink::Error::NetlinkError(error))
            if [
                -libc::ENETUNREACH,
                -libc::EHOSTUNREACH,
                -libc::EACCES,
                -libc::EINVAL,
            ]
            .contains(&error.raw_code()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn source_of(route: &RouteMessage) -> Option<IpAddr> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some((*ip).into()),
            _ => None,
        })
}

fn as_attribute(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}
