// SPDX-License-Identifier: Apache-2.0

//! Which addresses go along with others.

use super::*;

fn address(ip: &str, len: u8, secondary: bool) -> LinkAddress {
    LinkAddress {
        index: 2,
        ip: ip.parse().expect("an address"),
        prefix_len: len,
        peer: None,
        scope: 0,
        unusable: false,
        permanent: true,
        secondary,
        takes_along: Vec::new(),
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

#[test]
fn links_are_found_by_every_name() {
    let link = |index, name: &str, altname: &str| Link {
        index,
        name: name.to_owned(),
        altnames: vec![altname.to_owned()],
        up: true,
        kind: LinkKind::Other,
        master: None,
        owned: false,
        foreign_addresses: false,
        lower: None,
        ethernet: true,
        xdp: None,
    };
    let table = LinkTable {
        links: vec![link(2, "eth0", "enp0s3"), link(7, "eth1", "enp0s4")],
        ..LinkTable::default()
    };
    let index = |name| table.by_name(name).map(|link| link.index);
    assert_eq!(
        (index("eth0"), index("enp0s4"), index("lo")),
        (Some(2), Some(7), None)
    );
    assert_eq!(table.name_of(7), "eth1");
    assert_eq!(table.name_of(8), "ifindex 8");
}
