// SPDX-License-Identifier: Apache-2.0

//! The routes that make Service addresses local to the node: an address on a link would be a source
//! for anybody's packets, a route is none.
//!
//! Ours are told by their protocol number. Each names the node's own address as the source of what the node
//! sends there; the kernel removes a route when its source goes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// The protocol number of our routes (`rtm_protocol`): one that `iproute2` gives nobody.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);
/// `lo` is the first link of every network namespace.
const LOOPBACK: u32 = 1;
/// Addresses of documentation (RFC 5737, RFC 3849): every node reaches them by its default route.
const OUTSIDE_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// One of each family.
pub const OUTSIDE: [IpAddr; 2] = [IpAddr::V4(OUTSIDE_IPV4), IpAddr::V6(OUTSIDE_IPV6)];

/// The route of a Service address as it is in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Missing,
    /// Ours, with its source.
    Ours(Option<IpAddr>),
    /// Somebody else makes the address local.
    Foreign,
}

/// The source that the node's packets to the outside have, unless that is one of `not`; for each family
/// of `addresses`.
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

/// The source that the kernel gives what is sent to an address from no address in particular.
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

/// The route by which the kernel makes an address local.
///
/// # Errors
///
/// The kernel's answer.
pub async fn observe(handle: &Handle, address: IpAddr) -> Result<Found, rtnetlink::Error> {
    // The entry of the routing table, not what would be done with a packet.
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

/// Whether the node has an address that is none of our routes.
pub async fn is_own_address(handle: &Handle, address: IpAddr) -> bool {
    matches!(observe(handle, address).await, Ok(Found::Foreign))
}

/// Makes an address local.
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

/// Removes our route of an address, if it is there.
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

/// One look-up; none if there is no route.
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
