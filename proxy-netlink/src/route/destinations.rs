// SPDX-License-Identifier: Apache-2.0

//! Finds addresses to which the node's routes lead, one example for each link.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NlasIterator};

use super::attribute::number_at;
use super::dump::Error;
use super::unicast::{Unicast, read};

// Attributes of linux/rtnetlink.h.
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

/// For each link and family, an address to which a route leads; default routes are excluded.
type Found = BTreeMap<(u32, bool), IpAddr>;

/// Returns, for each link (by ifindex) and family, an address to which a route over that link leads. Default routes do
/// not count.
///
/// # Errors
///
/// Returns an error if a list could not be read completely.
pub async fn destinations() -> Result<Vec<(u32, IpAddr)>, Error> {
    let families = read(take).await?;
    let found = families.into_iter().flatten();
    Ok(found.map(|((link, _), ip)| (link, ip)).collect())
}

fn take(found: &mut Found, route: Unicast<'_>) -> Result<(), DecodeError> {
    let (mut to, mut link) = (None, None);
    for attribute in NlasIterator::new(route.attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            RTA_DST => to = address(value, route.length),
            RTA_OIF => link = number_at(value, 0),
            _ => {}
        }
    }
    if let (Some(to), Some(link)) = (to, link) {
        found.entry((link, to.is_ipv6())).or_insert(to);
    }
    Ok(())
}

/// Returns an address of a network: the address itself for a host route, otherwise the one after the network's first.
/// Returns `None` for link-local and multicast networks, for which the source address depends on the link alone.
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
    use super::super::attribute::attribute;
    use super::*;

    fn route(to: &[u8], length: u8, link: u32) -> Found {
        let attributes = [
            attribute(RTA_DST, to),
            attribute(RTA_OIF, &link.to_ne_bytes()),
        ]
        .concat();
        let mut found = Found::new();
        let attributes = &attributes;
        take(&mut found, Unicast { length, attributes }).expect("well formed");
        found
    }

    #[test]
    fn a_route_has_an_example() {
        let example = |to: &[u8], length| {
            let found = route(to, length, 7);
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
    }
}
