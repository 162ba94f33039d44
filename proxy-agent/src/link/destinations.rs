// SPDX-License-Identifier: Apache-2.0

//! Addresses that the node's routes lead to, an example for each link. Nothing is changed here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NlasIterator};

use super::dump::dump;
use super::observe::ObserveError;

// Messages and attributes of linux/rtnetlink.h.
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTN_UNICAST: u8 = 1;
/// Length of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

/// Of each link and family one address that a route of its own leads to; without default routes.
type Found = BTreeMap<(u32, bool), IpAddr>;

/// An address for each link, by ifindex, and family that a route leads to by it; default routes do not count.
///
/// # Errors
///
/// If a list could not be read to its end.
pub async fn destinations() -> Result<Vec<(u32, IpAddr)>, ObserveError> {
    let mut all = Vec::new();
    for (family, what) in [
        (libc::AF_INET, "IPv4 routes"),
        (libc::AF_INET6, "IPv6 routes"),
    ] {
        let family = u8::try_from(family).expect("the two families are 2 and 10");
        let mut body = vec![0; ROUTE_HEADER];
        body[0] = family;
        let mut found = Found::new();
        dump(
            RTM_GETROUTE,
            RTM_NEWROUTE,
            &body,
            &mut found,
            Found::clear,
            |found, message| take(found, message, family),
        )
        .await
        .map_err(|source| ObserveError { what, source })?;
        all.extend(found.into_iter().map(|((link, _), ip)| (link, ip)));
    }
    Ok(all)
}

/// One `RTM_NEWROUTE`: `struct rtmsg`, then attributes.
fn take(found: &mut Found, message: &[u8], family: u8) -> Result<(), DecodeError> {
    let (header, attributes) = message
        .split_first_chunk::<ROUTE_HEADER>()
        .ok_or_else(|| DecodeError::from("a message shorter than struct rtmsg"))?;
    // Without IPv6 in the kernel, the request for it is answered with IPv4.
    if header[0] != family || header[7] != RTN_UNICAST {
        return Ok(());
    }
    let (mut to, mut link) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            RTA_DST => to = address(value, header[1]),
            RTA_OIF => link = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
            _ => {}
        }
    }
    if let (Some(to), Some(link)) = (to, link) {
        found.entry((link, to.is_ipv6())).or_insert(to);
    }
    Ok(())
}

/// An address of a network: itself if it is one, the one behind its first otherwise. None of link-local and multicast
/// ones, whose sources depend on the link alone.
fn address(network: &[u8], length: u8) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(network) {
        let first = u32::from_be_bytes(bytes);
        let ip = IpAddr::from((first | u32::from(length < 32)).to_be_bytes());
        return (!ip.is_multicast()).then_some(ip);
    }
    let bytes = <[u8; 16]>::try_from(network).ok()?;
    let first = u128::from_be_bytes(bytes) | u128::from(length < 128);
    let ip = std::net::Ipv6Addr::from(first);
    (!ip.is_multicast() && !ip.is_unicast_link_local()).then_some(ip.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &[u8], length: u8, kind: u8, link: u32) -> Found {
        let family = if to.len() == 4 { 2 } else { 10 };
        let mut message = vec![family, length, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
        for (kind, value) in [(RTA_DST, to), (RTA_OIF, &link.to_ne_bytes())] {
            let size = u16::try_from(4 + value.len()).expect("short");
            message.extend(size.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value);
        }
        let mut found = Found::new();
        take(&mut found, &message, family).expect("well formed");
        found
    }

    #[test]
    fn a_route_has_an_example() {
        let example = |to: &[u8], length| {
            let found = route(to, length, RTN_UNICAST, 7);
            let found = found.into_iter().next();
            found.map(|((link, _), ip)| format!("{ip} by {link}"))
        };
        let host = Some("10.0.0.5 by 7".to_owned());
        assert_eq!(example(&[10, 0, 0, 5], 32), host);
        assert_eq!(
            example(&[10, 0, 0, 0], 24),
            Some("10.0.0.1 by 7".to_owned())
        );
        let six = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(example(&six("fd00::"), 64), Some("fd00::1 by 7".to_owned()));
        assert_eq!(example(&six("fe80::"), 64), None);
        assert!(route(&[10, 0, 0, 5], 32, 2, 7).is_empty(), "a local one");
    }
}
