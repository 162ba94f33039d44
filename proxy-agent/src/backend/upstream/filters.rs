// SPDX-License-Identifier: Apache-2.0

//! Finds filters that would drop the proxy's untracked packets, by the same simulation as in the doctor, before a connection hits
//! them. The agent's ACCEPT rules count, but cannot override a drop in a native table.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proxy_netlink::netfilter;
use proxy_rules::filters::{self, Fate, Found, Known, packets};
use proxy_rules::xtables::{self, Family, Flavour};

use crate::ownership::MARKS;

/// Failure to read the filters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Those of nf_tables, including iptables-nft's.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// Those of iptables-legacy.
    #[error(transparent)]
    Iptables(#[from] xtables::Error),
}

/// The endpoints whose untracked packets a chain drops or may drop, with a description of the chain.
///
/// # Errors
///
/// If not all filters can be read.
pub async fn dropping(endpoints: &[SocketAddr]) -> Result<BTreeMap<SocketAddr, String>, Error> {
    if endpoints.is_empty() {
        return Ok(BTreeMap::new());
    }
    let packets = packets(endpoints, Known::Upstream);
    let mut found = filters::find_in_nf_tables(&packets, MARKS)?;
    for family in Family::ALL {
        let of_family = packets.iter().filter(|packet| packet.is_of(family));
        let of_family: Vec<_> = of_family.copied().collect();
        if !of_family.is_empty() {
            let table = xtables::table(Flavour::Legacy, family, "filter").await?;
            let program = format!("{}-{}", family.program(), Flavour::Legacy);
            found.extend(filters::find_in_iptables(&table, &program, &of_family));
        }
    }
    Ok(judge(found))
}

/// The first chain that drops packets is reported, else the first one that may.
fn judge(mut found: Vec<Found>) -> BTreeMap<SocketAddr, String> {
    found.sort_by_key(|found| found.fate != Fate::Dropped);
    let mut dropping = BTreeMap::new();
    for Found {
        place,
        packet,
        fate,
        ..
    } in found
    {
        let verb = match fate {
            // Most such rules are for other links; the connections that they concern begin again as tracked ones.
            Fate::Passes | Fate::MayDrop => continue,
            Fate::Dropped => "drops",
            Fate::MayPass => "may drop",
        };
        let how = || format!("{place} {verb} {packet}");
        dropping.entry(packet.end).or_insert_with(how);
    }
    dropping
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_possible_drop_counts_and_a_certain_one_is_named() {
        let endpoint = "192.0.2.1:443".parse().unwrap();
        let [answer, onward] = packets(&[endpoint], Known::Upstream)[..] else {
            panic!("one for each direction");
        };
        let found = |packet, fate, place: &str| Found {
            place: place.to_owned(),
            packet,
            fate,
            of_iptables: false,
            command: String::new(),
        };
        let may = || found(answer, Fate::MayPass, "a");
        let drops = || found(onward, Fate::Dropped, "b");
        let judged = |found| judge(found).remove(&endpoint);
        assert_eq!(judged(Vec::new()), None);
        for passes in [Fate::Passes, Fate::MayDrop] {
            assert_eq!(judged(vec![found(answer, passes, "a")]), None);
        }
        let text = judged(vec![may()]).unwrap();
        assert!(text.starts_with("a may drop"), "{text}");
        let text = judged(vec![may(), drops()]).unwrap();
        assert!(text.starts_with("b drops"), "{text}");
    }
}
