// SPDX-License-Identifier: Apache-2.0

//! Tests rules and elements in the kernel's format, and malformed ones.

use netlink_packet_core::{DefaultNla, Emitable as _};
use netlink_packet_netfilter::nftables::{
    DataAttribute, Expressions, Immediate, Lookup, Register, RuleAttribute,
};
use proptest::prelude::*;

use super::*;

fn vips() -> Vec<IpAddr> {
    ["10.96.0.2", "fd00:96::2"]
        .map(|vip| vip.parse().unwrap())
        .to_vec()
}

fn rule(table: &str, expressions: Vec<Expressions>) -> RuleMessage {
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain("chain".to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
        ],
    }
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    }
}

fn number_attribute(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn immediate(register: Register, value: &[u8]) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(register),
        Immediate::Data(DataAttribute::Value(value.to_vec())),
    ])
}

fn lookup(register: Register, set: &str) -> Expressions {
    Expressions::Lookup(vec![
        Lookup::Set(set.to_owned()),
        Lookup::SourceRegister(register),
        Lookup::DestinationRegister(register),
    ])
}

fn nat(kind: u32, family: u32, address: Register, port: Option<Register>) -> Expressions {
    let mut attributes = vec![
        number_attribute(NFTA_NAT_TYPE, kind),
        number_attribute(NFTA_NAT_FAMILY, family),
        number_attribute(NFTA_NAT_REG_ADDR_MIN, address.into()),
    ];
    attributes.extend(port.map(|port| number_attribute(NFTA_NAT_REG_PROTO_MIN, port.into())));
    other("nat", attributes)
}

fn scan_of(title: &str, rule: &RuleMessage) -> Scan {
    let mut scan = Scan::default();
    let mut bytes = vec![0; rule.attributes.as_slice().buffer_len()];
    rule.attributes.as_slice().emit(&mut bytes);
    look_at(&bytes, title, &vips(), Marks::TEST, &mut scan);
    scan
}

fn found(title: &str, expressions: Vec<Expressions>) -> Vec<String> {
    let scan = scan_of(title, &rule("nat", expressions));
    scan.found.iter().map(Finding::to_string).collect()
}

const V4: [u8; 4] = [10, 96, 0, 2];
const PORT: [u8; 2] = [1, 187];

#[test]
fn constants_are_followed_to_the_dnat() {
    let to_v4 = "nf_tables table ip nat, chain chain, to 10.96.0.2:443";
    let expressions = vec![
        immediate(Register::Reg1, &V4),
        immediate(Register::Reg2, &PORT),
        nat(NFT_NAT_DNAT, 2, Register::Reg1, Some(Register::Reg2)),
    ];
    assert_eq!(found("ip", expressions), [to_v4]);
    // The same register by its other name; the last write counts.
    let expressions = vec![
        immediate(Register::Reg1, &[10, 96, 0, 3]),
        immediate(Register::Reg32_00, &V4),
        nat(NFT_NAT_DNAT, 2, Register::Reg1, None),
    ];
    assert_eq!(
        found("ip", expressions),
        ["nf_tables table ip nat, chain chain, to 10.96.0.2"]
    );
    let v6 = octets(vips()[1]);
    let expressions = vec![
        immediate(Register::Reg1, &v6),
        immediate(Register::Reg2, &PORT),
        nat(
            NFT_NAT_DNAT,
            NFPROTO_IPV6,
            Register::Reg1,
            Some(Register::Reg2),
        ),
    ];
    assert_eq!(
        found("inet", expressions),
        ["nf_tables table inet nat, chain chain, to [fd00:96::2]:443"]
    );
}

#[test]
fn other_rules_are_passed_over() {
    let source_nat = vec![
        immediate(Register::Reg1, &V4),
        nat(0, 2, Register::Reg1, None),
    ];
    assert!(found("ip", source_nat).is_empty());
    let elsewhere = vec![
        immediate(Register::Reg1, &[10, 96, 0, 3]),
        nat(NFT_NAT_DNAT, 2, Register::Reg1, None),
    ];
    assert!(found("ip", elsewhere).is_empty());
    // Only the port is translated.
    let port_only = vec![
        immediate(Register::Reg1, &PORT),
        other(
            "nat",
            vec![
                number_attribute(NFTA_NAT_TYPE, NFT_NAT_DNAT),
                number_attribute(NFTA_NAT_FAMILY, 2),
                number_attribute(NFTA_NAT_REG_PROTO_MIN, 1),
            ],
        ),
    ];
    assert!(found("ip", port_only).is_empty());
    let ours = rule(
        "proxy-agent",
        vec![
            immediate(Register::Reg1, &V4),
            nat(NFT_NAT_DNAT, 2, Register::Reg1, None),
        ],
    );
    assert!(scan_of("ip", &ours).found.is_empty());
}

#[test]
fn a_map_is_followed_to_the_dnat() {
    let expressions = vec![
        lookup(Register::Reg1, "endpoints"),
        nat(NFT_NAT_DNAT, 2, Register::Reg1, Some(Register::Reg32_01)),
    ];
    let scan = scan_of("ip", &rule("nat", expressions));
    let used = scan.maps.first().expect("one map");
    assert_eq!(
        (used.map.as_str(), used.address, used.length, used.port),
        ("endpoints", 0, 4, Some(4))
    );
    let element = |value: &[u8]| Element {
        key: Some(vec![0, 0, 0, 1]),
        value: Some(value.to_vec()),
        ..Element::default()
    };
    let elements = [
        element(&[10, 96, 0, 3, 1, 187, 0, 0]),
        element(&[10, 96, 0, 2, 1, 187, 0, 0]),
        element(&[10, 96]),
    ];
    let targets = elements
        .iter()
        .filter_map(|element| target_in(element, used, &vips()));
    let targets: Vec<_> = targets.collect();
    assert_eq!(targets, [(vips()[0], Some(443))]);
}

fn xtables(revision: u32, info: Vec<u8>) -> Expressions {
    let mut name = b"DNAT".to_vec();
    name.resize(29, 0);
    other(
        "target",
        vec![
            DefaultNla::new(NFTA_TARGET_NAME, name),
            number_attribute(NFTA_TARGET_REV, revision),
            DefaultNla::new(NFTA_TARGET_INFO, info),
        ],
    )
}

#[test]
fn the_target_of_iptables_is_read_in_each_revision() {
    let to_v4 = "nf_tables table ip nat, chain chain, to 10.96.0.2:443";
    let flags = (MAP_IPS | MAP_PORTS).to_ne_bytes();
    let first = [&1_u32.to_ne_bytes()[..], &flags, &V4, &V4, &PORT, &PORT].concat();
    assert_eq!(found("ip", vec![xtables(0, first)]), [to_v4]);
    let field = |ip: &[u8]| {
        let mut field = ip.to_vec();
        field.resize(16, 0);
        field
    };
    let later = [&flags[..], &field(&V4), &field(&V4), &PORT, &PORT].concat();
    for revision in [1, 2] {
        assert_eq!(found("ip", vec![xtables(revision, later.clone())]), [to_v4]);
    }
    let v6 = octets(vips()[1]);
    let later = [&flags[..], &v6, &v6, &PORT, &PORT, &[0; 4]].concat();
    assert_eq!(
        found("ip6", vec![xtables(2, later)]),
        ["nf_tables table ip6 nat, chain chain, to [fd00:96::2]:443"]
    );
    // A range that starts below the VIP and ends above it.
    let range = [
        &MAP_IPS.to_ne_bytes()[..],
        &field(&[10, 96, 0, 1]),
        &field(&[10, 96, 0, 9]),
        &[0; 4],
    ]
    .concat();
    assert_eq!(
        found("ip", vec![xtables(2, range)]),
        ["nf_tables table ip nat, chain chain, to 10.96.0.2"]
    );
}

proptest! {
    #[test]
    fn any_expression_is_read(
        name in prop_oneof![Just("nat"), Just("target")],
        attributes in prop::collection::vec((0_u16..9, prop::collection::vec(any::<u8>(), 0..64)), 0..9),
        registers in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..20)), 0..4),
        title in prop_oneof![Just("ip"), Just("ip6"), Just("inet")],
    ) {
        let mut expressions: Vec<_> = registers
            .iter()
            .map(|(register, value)| immediate(Register::from(*register), value))
            .collect();
        expressions.push(lookup(Register::Reg2, "map"));
        let attributes = attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
        expressions.push(other(name, attributes.collect()));
        let _ = scan_of(title, &rule("nat", expressions));
    }

    #[test]
    fn any_element_is_read(
        value in prop::collection::vec(any::<u8>(), 0..40),
        address in 0_usize..64,
        port in prop::option::of(0_usize..64),
    ) {
        let used = MapUse {
            table: String::new(),
            chain: String::new(),
            map: String::new(),
            address,
            length: 16,
            port,
        };
        let element = Element {
            value: Some(value),
            ..Element::default()
        };
        let _ = target_in(&element, &used, &vips());
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        look_at(&bytes, "ip", &vips(), Marks::TEST, &mut Scan::default());
    }

    #[test]
    fn a_rule_cut_anywhere_is_read(length in 0_usize..400) {
        let expressions = vec![
            immediate(Register::Reg1, &V4),
            lookup(Register::Reg2, "map"),
            nat(NFT_NAT_DNAT, 2, Register::Reg1, Some(Register::Reg2)),
        ];
        let rule = rule("nat", expressions);
        let mut bytes = vec![0; rule.attributes.as_slice().buffer_len()];
        rule.attributes.as_slice().emit(&mut bytes);
        look_at(&bytes[..length.min(bytes.len())], "ip", &vips(), Marks::TEST, &mut Scan::default());
    }
}
