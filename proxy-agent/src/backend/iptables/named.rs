// SPDX-License-Identifier: Apache-2.0

//! Finds the VIPs in the rules of an agent that does not run. Changes nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxy_rules::xtables::{self, Error, Family, Flavour, words};
use tracing::warn;

use super::PART;
use crate::instance::Instance;
use crate::ownership::Owned as _;
use crate::reconcile::report::chain;

/// The state in rules that accept packets of the proxy's own connections.
const UNTRACKED: &str = "UNTRACKED";

/// The VIPs in an instance's rules, as far as the tables can be read.
pub async fn owned_vips(owner: Instance) -> BTreeSet<IpAddr> {
    let mut vips = BTreeSet::new();
    for flavour in Flavour::ALL {
        for family in Family::ALL {
            let unread = |error: &Error| {
                warn!(
                    part = PART.name(),
                    "cannot search for VIPs in rules: {}",
                    chain(error)
                );
            };
            let tables = xtables::tables(flavour, family).await.inspect_err(unread);
            let tables = tables.unwrap_or_default().into_iter();
            let tables = tables.filter_map(|(_, table)| table.inspect_err(unread).ok());
            let rules = tables.flat_map(|table| table.rules);
            for rule in rules.filter(|rule| rule.owner() == Some(owner)) {
                let words = words(&rule.spec).unwrap_or_default();
                // Such a rule has the address of an API server, which may be on the node.
                if words.iter().any(|word| word == UNTRACKED) {
                    continue;
                }
                let option = |name| words.windows(2).find(|pair| pair[0] == name);
                // In a rule with both options, the destination is the VIP.
                let address = option("-d").or_else(|| option("-s"));
                let host = address.and_then(|pair| pair[1].split('/').next());
                vips.extend(host.and_then(|host| host.parse::<IpAddr>().ok()));
            }
        }
    }
    vips
}
