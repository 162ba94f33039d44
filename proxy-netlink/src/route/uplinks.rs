// SPDX-License-Identifier: Apache-2.0

//! Finds the links that carry a default route, in any routing table and of either family.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{DecodeError, NlasIterator};

use super::attribute::number_at;
use super::dump::{Error, dump};
use super::unicast::{Unicast, read};

// Message types and attributes of linux/rtnetlink.h and linux/nexthop.h.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;

/// The lengths of `struct rtnexthop`, `struct nhmsg` and `struct nexthop_grp`.
const HOP_HEADER: usize = 8;
const NEXTHOP_HEADER: usize = 8;
const GROUP_ENTRY: usize = 8;

/// The destinations of the default routes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Routes {
    links: BTreeSet<u32>,
    /// The ids of next hop objects, for routes that do not specify a link.
    nexthops: BTreeSet<u32>,
}

/// The next hop objects by id, with the links or further next hops to which they lead.
#[derive(Debug, Default)]
struct Nexthops(BTreeMap<u32, (Vec<u32>, Vec<u32>)>);

/// Returns the links that carry a default route, by ifindex.
///
/// # Errors
///
/// Returns an error if a list could not be read completely.
pub async fn uplinks() -> Result<BTreeSet<u32>, Error> {
    let mut links = BTreeSet::new();
    let mut nexthops = BTreeSet::new();
    for mut routes in read(Routes::take).await? {
        links.append(&mut routes.links);
        nexthops.append(&mut routes.nexthops);
    }
    if !nexthops.is_empty() {
        let known = read_nexthops().await?;
        for id in nexthops {
            known.links_of(id, &mut links);
        }
    }
    Ok(links)
}

async fn read_nexthops() -> Result<Nexthops, Error> {
    dump(
        RTM_GETNEXTHOP,
        RTM_NEWNEXTHOP,
        &[0; NEXTHOP_HEADER],
        Nexthops::take,
    )
    .await
    .map_err(|source| Error {
        what: "next hops",
        source,
    })
}

impl Routes {
    fn take(&mut self, route: Unicast<'_>) -> Result<(), DecodeError> {
        if route.length > 0 {
            return Ok(());
        }
        let mut nexthop = None;
        let before = self.links.len();
        for attribute in NlasIterator::new(route.attributes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                RTA_OIF => self.links.extend(number_at(value, 0)),
                RTA_NH_ID => nexthop = number_at(value, 0),
                RTA_MULTIPATH => {
                    let mut rest = value;
                    while let Some(header) = rest.first_chunk::<HOP_HEADER>() {
                        self.links.extend(number_at(header, 4));
                        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
                        let length = length.max(HOP_HEADER).next_multiple_of(4);
                        rest = rest.get(length..).unwrap_or_default();
                    }
                }
                _ => {}
            }
        }
        if self.links.len() == before {
            self.nexthops.extend(nexthop);
        }
        Ok(())
    }
}

impl Nexthops {
    /// Parses one `RTM_NEWNEXTHOP`: `struct nhmsg`, followed by attributes.
    fn take(&mut self, message: &[u8]) -> Result<(), DecodeError> {
        let attributes = message.get(NEXTHOP_HEADER..).unwrap_or_default();
        let (mut id, mut links, mut members) = (None, Vec::new(), Vec::new());
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                NHA_ID => id = number_at(value, 0),
                NHA_OIF => links.extend(number_at(value, 0)),
                NHA_GROUP => members.extend(
                    value
                        .chunks(GROUP_ENTRY)
                        .filter_map(|entry| number_at(entry, 0)),
                ),
                _ => {}
            }
        }
        self.0.extend(id.map(|id| (id, (links, members))));
        Ok(())
    }

    fn links_of(&self, id: u32, links: &mut BTreeSet<u32>) {
        let Some((own, members)) = self.0.get(&id) else {
            return;
        };
        links.extend(own);
        // The members of a group are never groups.
        for (own, _) in members.iter().filter_map(|member| self.0.get(member)) {
            links.extend(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attribute::attribute;
    use super::*;

    fn route(length: u8, attributes: &[Vec<u8>]) -> Routes {
        let attributes = &attributes.concat();
        let mut routes = Routes::default();
        let route = Unicast { length, attributes };
        routes.take(route).expect("well formed");
        routes
    }

    #[test]
    fn only_default_routes_count() {
        let oif = || [attribute(RTA_OIF, &7_u32.to_ne_bytes())];
        assert_eq!(route(0, &oif()).links, BTreeSet::from([7]));
        assert!(route(1, &oif()).links.is_empty());
    }

    #[test]
    fn every_hop_of_a_route_counts() {
        let hop = |link: u32, attributes: &[u8]| {
            let length = u16::try_from(HOP_HEADER + attributes.len()).expect("short");
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(link.to_ne_bytes());
            bytes.extend(attributes);
            bytes
        };
        let hops = [hop(3, &attribute(5, &[192, 0, 2, 1])), hop(4, &[])].concat();
        let routes = route(0, &[attribute(RTA_MULTIPATH, &hops)]);
        assert_eq!(routes.links, BTreeSet::from([3, 4]));
        // A hop that specifies length zero must end the list instead of looping forever.
        route(0, &[attribute(RTA_MULTIPATH, &[0; 20])]);
    }

    #[test]
    fn next_hops_with_numbers_are_followed() {
        let routes = route(0, &[attribute(RTA_NH_ID, &9_u32.to_ne_bytes())]);
        assert_eq!(routes.nexthops, BTreeSet::from([9]));
        let mut known = Nexthops::default();
        let mut take = |id: u32, attribute_: Vec<u8>| {
            let id = attribute(NHA_ID, &id.to_ne_bytes());
            let message = [vec![0; NEXTHOP_HEADER], id, attribute_].concat();
            known.take(&message).expect("well formed");
        };
        take(1, attribute(NHA_OIF, &5_u32.to_ne_bytes()));
        take(2, attribute(NHA_OIF, &6_u32.to_ne_bytes()));
        let mut members = Vec::new();
        for member in [1_u32, 2] {
            members.extend(member.to_ne_bytes());
            members.extend([0; 4]);
        }
        take(9, attribute(NHA_GROUP, &members));
        let mut links = BTreeSet::new();
        known.links_of(9, &mut links);
        known.links_of(77, &mut links);
        assert_eq!(links, BTreeSet::from([5, 6]));
    }
}
