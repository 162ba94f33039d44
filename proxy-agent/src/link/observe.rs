// SPDX-License-Identifier: Apache-2.0

//! What the kernel says about links, and about the addresses that matter. Nothing is changed here.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use super::dump::{DumpError, dump};
use super::parse::{parse_address, parse_link};
use super::table::{Link, LinkAddress, LinkTable, Prefix};

// Messages, include/uapi/linux/rtnetlink.h, and the attributes of the requests.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_EXT_MASK: u16 = 29;
/// Leaves counters out of the answer (4.8), and with them most of its size.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// The families, as errors name their addresses.
const IPV4: (libc::c_int, &str) = (libc::AF_INET, "IPv4 addresses");
const IPV6: (libc::c_int, &str) = (libc::AF_INET6, "IPv6 addresses");

/// The link group that marks a link as created by the agent: "pxag" in ASCII.
///
/// The group is the one marker that the kernel takes in the same message that creates the link (an
/// alias or an alternative name is ignored there), so no crash can leave a link of ours unmarked,
/// and none that is not ours marked. It lives as long as the link, so a later run knows it too.
/// `rtnl_create_link` in <https://github.com/torvalds/linux/blob/v5.4/net/core/rtnetlink.c>, since
/// 2.6.39.
pub(super) const OWN_GROUP: u32 = u32::from_be_bytes(*b"pxag");

/// The links and addresses could not be read, or not completely.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the list of {what} from the kernel")]
pub struct ObserveError {
    pub(super) what: &'static str,
    #[source]
    pub(super) source: DumpError,
}

/// Reads all links of the calling thread's network namespace, the copies of `vips` on them, and which of
/// `services` they carry.
///
/// # Errors
///
/// If a list could not be read to its end, or kept changing while it was read. A list that is not
/// complete is never returned.
pub async fn observe(vips: &[IpAddr], services: &[IpAddr]) -> Result<LinkTable, ObserveError> {
    let mut links = links().await?;
    // Whether a link of ours may be deleted depends on addresses of both families.
    let any_owned = links.iter().any(|link| link.owned);
    let mut addresses = Vec::new();
    let mut secondaries = Vec::new();
    let mut carried = BTreeMap::new();
    for family in [IPV4, IPV6] {
        let mut addresses_asked = vips.iter().chain(services);
        let asked = addresses_asked.any(|ip| ip.is_ipv4() == (family == IPV4));
        if !asked && !any_owned {
            continue;
        }
        let found = read_addresses(family, |found: &mut Addresses, address| {
            if services.contains(&address.ip) {
                found.services.insert(address.ip, address.index);
            }
            found.take(address, vips, &links);
        })
        .await?;
        addresses.extend(found.vips);
        secondaries.extend(found.secondaries);
        carried.extend(found.services);
        for link in &mut links {
            link.foreign_addresses |= found.foreign_on_owned.contains(&link.index);
        }
    }
    let mut table = LinkTable {
        links,
        addresses,
        services: carried,
        ..LinkTable::default()
    };
    table
        .addresses
        .sort_by_key(|address| (address.index, address.ip, address.prefix_len));
    mark_endangered(&mut table, &secondaries, promotes_secondaries);
    Ok(table)
}

/// All links, sorted by ifindex.
pub(super) async fn links() -> Result<Vec<Link>, ObserveError> {
    // struct ifinfomsg, empty, and one attribute.
    let mut body = vec![0; 16];
    body.extend(8_u16.to_ne_bytes());
    body.extend(IFLA_EXT_MASK.to_ne_bytes());
    body.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut links = Vec::new();
    dump(
        RTM_GETLINK,
        RTM_NEWLINK,
        &body,
        &mut links,
        Vec::clear,
        |links, message| {
            links.push(parse_link(message)?);
            Ok(())
        },
    )
    .await
    .map_err(|source| ObserveError {
        what: "links",
        source,
    })?;
    links.sort_by_key(|link: &Link| link.index);
    Ok(links)
}

/// What one family's addresses came to.
#[derive(Default)]
struct Addresses {
    vips: Vec<LinkAddress>,
    services: BTreeMap<IpAddr, u32>,
    /// IPv4 addresses that hang on a primary one.
    secondaries: Vec<(u32, Prefix)>,
    /// The owned links that carry something else.
    foreign_on_owned: Vec<u32>,
}

/// The network of each IPv4 address, with the ifindex of its link.
///
/// # Errors
///
/// As [`observe`].
pub async fn ipv4_networks() -> Result<Vec<(u32, Prefix)>, ObserveError> {
    read_addresses(IPV4, |found: &mut Vec<_>, address| {
        found.push((address.index, address.prefix()));
    })
    .await
}

/// All addresses, of IPv4 and then of IPv6, in the order in which the kernel lists them.
///
/// # Errors
///
/// As [`observe`].
pub async fn addresses() -> Result<Vec<LinkAddress>, ObserveError> {
    let mut all = Vec::new();
    for family in [IPV4, IPV6] {
        all.append(&mut read_addresses(family, Vec::push).await?);
    }
    Ok(all)
}

/// Gives each address of a family to `each`. A list that has to be read again begins anew.
async fn read_addresses<S: Default>(
    (family, what): (libc::c_int, &'static str),
    each: impl Fn(&mut S, LinkAddress),
) -> Result<S, ObserveError> {
    let family = u8::try_from(family).expect("the two families are 2 and 10");
    // struct ifaddrmsg with nothing but the family.
    let body = [family, 0, 0, 0, 0, 0, 0, 0];
    let mut found = S::default();
    dump(
        RTM_GETADDR,
        RTM_NEWADDR,
        &body,
        &mut found,
        |found| *found = S::default(),
        |found, message| {
            // Without IPv6 in the kernel, the request for it is answered with IPv4.
            if message.first() == Some(&family) {
                each(found, parse_address(message)?);
            }
            Ok(())
        },
    )
    .await
    .map_err(|source| ObserveError { what, source })?;
    Ok(found)
}

impl Addresses {
    fn take(&mut self, address: LinkAddress, vips: &[IpAddr], links: &[Link]) {
        if vips.contains(&address.ip) {
            self.vips.push(address);
            return;
        }
        if address.secondary {
            self.secondaries.push((address.index, address.prefix()));
        }
        let owned = || {
            links
                .iter()
                .any(|link| link.owned && link.index == address.index)
        };
        if !is_link_local(address.ip) && owned() {
            self.foreign_on_owned.push(address.index);
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Finds the foreign secondaries of each VIP that is a primary address itself: the kernel deletes
/// them with it, unless the link promotes secondaries.
fn mark_endangered(
    table: &mut LinkTable,
    secondaries: &[(u32, Prefix)],
    promotes: impl Fn(&str) -> bool,
) {
    for at in 0..table.addresses.len() {
        let address = &table.addresses[at];
        if address.secondary {
            continue;
        }
        let network = Prefix {
            ip: address.peer.unwrap_or(address.ip),
            len: address.prefix_len,
        };
        let endangered: Vec<_> = secondaries
            .iter()
            .filter(|(index, other)| *index == address.index && network.same_subnet(*other))
            .map(|(_, other)| *other)
            .collect();
        if !endangered.is_empty() && !promotes(&table.name_of(address.index)) {
            table.addresses[at].takes_along = endangered;
        }
    }
}

/// The `promote_secondaries` setting in force on a link. If it cannot be read, it counts as off: the
/// kernel's default, and the side on which nothing foreign is lost.
fn promotes_secondaries(link: &str) -> bool {
    ["all", link].into_iter().any(|name| {
        fs::read_to_string(format!(
            "/proc/sys/net/ipv4/conf/{name}/promote_secondaries"
        ))
        .is_ok_and(|value| value.trim() != "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, len: u8, secondary: bool) -> LinkAddress {
        LinkAddress {
            secondary,
            ..LinkAddress::new(2, ip, len)
        }
    }

    fn endangered(vip: LinkAddress, promotes: bool) -> Vec<String> {
        let mut table = LinkTable {
            addresses: vec![vip],
            ..LinkTable::default()
        };
        let other = |index, ip: &str, len| {
            let ip = ip.parse().expect("an address");
            (index, Prefix { ip, len })
        };
        let secondaries = [
            other(2, "10.96.0.9", 24),
            other(2, "10.96.1.9", 24),
            other(2, "10.96.0.9", 25),
            other(3, "10.96.0.9", 24),
        ];
        mark_endangered(&mut table, &secondaries, |_| promotes);
        let found = &table.addresses[0].takes_along;
        found.iter().map(Prefix::to_string).collect()
    }

    #[test]
    fn only_the_secondaries_of_a_primary_are_endangered() {
        let primary = || address("10.96.0.2", 24, false);
        assert_eq!(endangered(primary(), false), ["10.96.0.9/24"]);
        assert!(endangered(primary(), true).is_empty());
        assert!(endangered(address("10.96.0.2", 24, true), false).is_empty());
        assert!(endangered(address("10.96.0.2", 32, false), false).is_empty());
    }
}
