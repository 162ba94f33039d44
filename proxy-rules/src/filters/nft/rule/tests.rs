// SPDX-License-Identifier: Apache-2.0

//! Tests rules in the kernel's format, and malformed ones.

use proptest::prelude::*;
use proxy_netlink::netfilter::Element;

use super::super::super::packet::{Direction, Known};
use super::super::sets::Set;
use super::*;

fn packet(direction: Direction) -> Packet {
    Packet {
        end: "10.96.0.2:443".parse().unwrap(),
        known: Known::Vip,
        direction,
    }
}

fn steps(expressions: &[(&str, Expressions)], direction: Direction) -> Step {
    step_with(expressions, direction, &Sets::new())
}

fn step_with(expressions: &[(&str, Expressions)], direction: Direction, sets: &Sets) -> Step {
    let named: Vec<_> = expressions
        .iter()
        .map(|(name, data)| Named {
            name,
            data: Some(data),
        })
        .collect();
    step(&named, &packet(direction), sets)
}

fn load(base: u32, offset: u32, length: u32) -> (&'static str, Expressions) {
    let attributes = vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ];
    ("payload", Expressions::Payload(attributes))
}

fn equals(value: &[u8]) -> (&'static str, Expressions) {
    let attributes = vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ];
    ("cmp", Expressions::Cmp(attributes))
}

fn verdict(code: u32) -> (&'static str, Expressions) {
    let verdict = vec![VerdictAttribute::Code(Verdict::Other(code))];
    let attributes = vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ];
    ("immediate", Expressions::Immediate(attributes))
}

fn raw(name: &'static str, attributes: Vec<DefaultNla>) -> (&'static str, Expressions) {
    let expression_type = name.to_owned();
    let other = Expressions::Other {
        expression_type,
        attributes,
    };
    (name, other)
}

fn ct_state_in(states: u32) -> Vec<(&'static str, Expressions)> {
    let bits = |states: u32| DataAttribute::Value(states.to_ne_bytes().to_vec());
    let not_zero = vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::NotEqual),
        Cmp::Data(bits(0)),
    ];
    let mask = vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Mask(bits(states)),
        Bitwise::Xor(bits(0)),
    ];
    vec![
        ct_state(),
        ("bitwise", Expressions::Bitwise(mask)),
        ("cmp", Expressions::Cmp(not_zero)),
    ]
}

#[test]
fn the_vips_end_is_known_and_the_other_is_not() {
    let to_vip = [
        load(NETWORK_HEADER, 16, 4),
        equals(&[10, 96, 0, 2]),
        load(TRANSPORT_HEADER, 2, 2),
        equals(&[1, 187]),
        verdict(NF_ACCEPT),
    ];
    let request = steps(&to_vip, Direction::Request);
    assert_eq!(
        (request.matches, request.action),
        (Truth::Yes, Action::Accept)
    );
    assert_eq!(steps(&to_vip, Direction::Reply).matches, Truth::Maybe);
    let from = |value: &[u8], direction| {
        let length = u32::try_from(value.len()).unwrap();
        steps(
            &[load(NETWORK_HEADER, 12, length), equals(value)],
            direction,
        )
        .matches
    };
    assert_eq!(from(&[10, 0, 0, 5], Direction::Request), Truth::Likely);
    assert_eq!(from(&[10], Direction::Request), Truth::Likely);
    assert_eq!(from(&[127], Direction::Request), Truth::No);
    assert_eq!(from(&[10, 0, 0, 5], Direction::Reply), Truth::No);
    let elsewhere = [
        load(NETWORK_HEADER, 16, 1),
        equals(&[127]),
        verdict(NF_DROP),
    ];
    let request = steps(&elsewhere, Direction::Request);
    assert_eq!((request.matches, request.action), (Truth::No, Action::Drop));
}

/// The node's own processes are not connected to the address of a Service, and it is an address of the node because of
/// the agent's route.
#[test]
fn what_is_known_of_a_service_counts() {
    let service = Packet {
        end: "10.96.0.1:443".parse().unwrap(),
        known: Known::Service,
        direction: Direction::Reply,
    };
    let matches = |expressions: &[(&str, Expressions)], packet: &Packet| {
        let named = expressions.iter().map(|(name, data)| Named {
            name,
            data: Some(data),
        });
        step(&named.collect::<Vec<_>>(), packet, &Sets::new()).matches
    };
    let by_link = |key, link: &[u8]| {
        let attributes = vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)];
        [("meta", Expressions::Meta(attributes)), equals(link)]
    };
    let loopback = by_link(MetaKey::Oifname, b"lo\0");
    assert_eq!(matches(&loopback, &service), Truth::No);
    assert_eq!(matches(&loopback, &packet(Direction::Reply)), Truth::Likely);
    let by_index = by_link(MetaKey::Oif, &1_u32.to_ne_bytes());
    assert_eq!(matches(&by_index, &service), Truth::No);
    let by_prefix = by_link(MetaKey::Oifname, b"lo");
    assert_eq!(matches(&by_prefix, &service), Truth::Likely);
    let arrives = by_link(MetaKey::Iifname, b"lo\0");
    assert_eq!(matches(&arrives, &service), Truth::Maybe);

    // RTN_UNICAST and RTN_LOCAL.
    for (source, destination, flags, expected) in [
        (1_u16 << 2, 0, 0, Truth::Yes),
        (1 << 2, 0, 1, Truth::No),
        (1 << 1, 0, 0, Truth::No),
        (1 << 2, 0, 1 << 3, Truth::Maybe),
        (0, 1_u16 << 2, 0, Truth::Maybe),
    ] {
        let mut info = [source.to_ne_bytes(), destination.to_ne_bytes()].concat();
        info.extend(u32::to_ne_bytes(flags));
        let attributes = vec![
            DefaultNla::new(NFTA_MATCH_NAME, b"addrtype\0".to_vec()),
            DefaultNla::new(NFTA_MATCH_INFO, info),
        ];
        let rule = [raw("match", attributes)];
        assert_eq!(matches(&rule, &service), expected, "{source} {flags}");
    }
}

#[test]
fn an_untracked_packet_is_in_one_state_only() {
    /// `new | established`, in the bits of nft.
    const NEW_OR_ESTABLISHED: u32 = 8 | 2;
    const UNTRACKED: u32 = 64;
    let matches = |states| steps(&ct_state_in(states), Direction::Request).matches;
    assert_eq!(matches(NEW_OR_ESTABLISHED), Truth::No);
    assert_eq!(matches(1), Truth::No);
    assert_eq!(matches(UNTRACKED), Truth::Yes);
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let status = raw("ct", vec![number(NFTA_CT_DREG, 1), number(NFTA_CT_KEY, 2)]);
    assert_eq!(steps(&[status], Direction::Request).matches, Truth::No);
}

/// `ct load state => reg 1`.
fn ct_state() -> (&'static str, Expressions) {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    raw(
        "ct",
        vec![number(NFTA_CT_DREG, 1), number(NFTA_CT_KEY, NFT_CT_STATE)],
    )
}

/// `lookup reg 1 set NAME`, with flags, or with register 0 as the destination.
fn look_up_in(name: &str, flags: u32, decides: bool) -> (&'static str, Expressions) {
    let mut attributes = vec![
        Lookup::Set(name.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::Flags(flags),
    ];
    attributes.extend(decides.then_some(Lookup::DestinationRegister(Register::Verdict)));
    ("lookup", Expressions::Lookup(attributes))
}

fn elements(list: &[(Option<u32>, Option<u32>)]) -> Set {
    let mut set = Set::default();
    for (key, verdict) in list {
        set.add(Element {
            key: key.map(|state| state.to_ne_bytes().to_vec()),
            verdict: verdict.map(|code| vec![VerdictAttribute::Code(Verdict::Other(code))]),
            ..Element::default()
        });
    }
    set
}

/// What nft 1.0.6 compiles `ct state { invalid, untracked } drop` and `ct state != { new, established, related } drop`
/// to: look-ups of the whole state in an anonymous set.
#[test]
fn a_state_is_looked_up_in_a_set() {
    let sets = Sets::from([
        (
            "__set0".to_owned(),
            elements(&[(Some(1), None), (Some(64), None)]),
        ),
        (
            "__set1".to_owned(),
            elements(&[(Some(8), None), (Some(4), None), (Some(2), None)]),
        ),
    ]);
    let matches = |set: &str, flags, direction| {
        let rule = [ct_state(), look_up_in(set, flags, false), verdict(NF_DROP)];
        let step = step_with(&rule, direction, &sets);
        assert_eq!(step.action, Action::Drop);
        step.matches
    };
    assert_eq!(matches("__set0", 0, Direction::Request), Truth::Yes);
    assert_eq!(matches("__set0", 0, Direction::Opening), Truth::No);
    assert_eq!(matches("__set1", 1, Direction::Request), Truth::Yes);
    assert_eq!(matches("__set1", 1, Direction::Opening), Truth::No);
    assert_eq!(matches("__set1", 0, Direction::Reply), Truth::No);
    // A set that was not read.
    assert_eq!(matches("__set2", 0, Direction::Request), Truth::Maybe);
}

#[test]
fn a_verdict_map_decides_by_the_state() {
    let sets = Sets::from([
        (
            "__map0".to_owned(),
            elements(&[(Some(64), Some(NF_DROP)), (Some(2), Some(NF_ACCEPT))]),
        ),
        (
            "__map1".to_owned(),
            elements(&[(Some(2), Some(NF_ACCEPT)), (None, Some(NF_DROP))]),
        ),
        ("unread".to_owned(), elements(&[(Some(64), None)])),
    ]);
    let decides = |map: &str, direction| {
        let rule = [ct_state(), look_up_in(map, 0, true)];
        let step = step_with(&rule, direction, &sets);
        (step.matches, step.action)
    };
    let dropped = (Truth::Yes, Action::Drop);
    assert_eq!(decides("__map0", Direction::Request), dropped);
    assert_eq!(decides("__map0", Direction::Opening).0, Truth::No);
    assert_eq!(decides("__map1", Direction::Request), dropped);
    let unknown = (Truth::Maybe, Action::Unknown);
    assert_eq!(decides("__map2", Direction::Request), unknown);
    assert_eq!(decides("unread", Direction::Request), unknown);
}

/// The rules correspond to `cluster-ips-check` of kube-proxy in nftables mode, with and without its `ct state new`.
#[test]
fn a_new_connection_of_the_node_is_tracked() {
    let opens = |expressions: &[(&str, Expressions)]| steps(expressions, Direction::Opening);
    assert_eq!(opens(&ct_state_in(8)).matches, Truth::Yes);
    for other in [64, 2 | 4, 1] {
        assert_eq!(opens(&ct_state_in(other)).matches, Truth::No, "{other}");
    }
    let masked = |network: [u8; 4]| {
        let mask = vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Mask(DataAttribute::Value(vec![255, 240, 0, 0])),
            Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
        ];
        let bitwise = ("bitwise", Expressions::Bitwise(mask));
        opens(&[
            load(NETWORK_HEADER, 16, 4),
            bitwise,
            equals(&network),
            verdict(NF_DROP),
        ])
    };
    let dropped = masked([10, 96, 0, 0]);
    assert_eq!(
        (dropped.matches, dropped.action),
        (Truth::Yes, Action::Drop)
    );
    assert_eq!(masked([10, 112, 0, 0]).matches, Truth::No);
    // Of a conntrack entry only the state is known.
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let status = raw("ct", vec![number(NFTA_CT_DREG, 1), number(NFTA_CT_KEY, 2)]);
    assert_eq!(opens(&[status, equals(&[0; 4])]).matches, Truth::Maybe);
}

#[test]
fn matches_of_iptables_are_known() {
    let of = |name: &[u8], info: Vec<u8>| {
        let mut padded = name.to_vec();
        padded.resize(29, 0);
        let attributes = vec![
            DefaultNla::new(NFTA_MATCH_NAME, padded),
            DefaultNla::new(NFTA_MATCH_INFO, info),
        ];
        steps(&[raw("match", attributes)], Direction::Request).matches
    };
    assert_eq!(of(b"comment", vec![0; 256]), Truth::Yes);
    assert_eq!(of(b"mark", vec![0; 12]), Truth::Maybe);
    let ports = |first: u16, last: u16| {
        let range = [0, u16::MAX, first, last].map(u16::to_ne_bytes).concat();
        [range, vec![0; 4]].concat()
    };
    assert_eq!(of(b"tcp", ports(443, 443)), Truth::Yes);
    assert_eq!(of(b"tcp", ports(22, 22)), Truth::No);
    let states = |states: u16, inverted: u16| {
        let numbers = [1, inverted, states, 0].map(u16::to_ne_bytes).concat();
        [vec![0; 146], numbers].concat()
    };
    assert_eq!(of(b"conntrack", states(2 | 4, 0)), Truth::No);
    assert_eq!(of(b"conntrack", states(1 << 8, 0)), Truth::Yes);
    // SNAT.
    assert_eq!(of(b"conntrack", states(1 << 6, 0)), Truth::No);
    assert_eq!(of(b"conntrack", states(1, 1)), Truth::Yes);
}

proptest! {
    #[test]
    fn any_expression_is_read(
        name in prop_oneof![Just("ct"), Just("match"), Just("target"), Just("x")],
        attributes in prop::collection::vec((0_u16..5, prop::collection::vec(any::<u8>(), 0..180)), 0..5),
        (base, offset, length) in (0_u32..4, any::<u32>(), any::<u32>()),
        value in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let attributes = attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
        let expressions = [
            load(base, offset, length),
            equals(&value),
            raw(name, attributes.collect()),
        ];
        let _ = steps(&expressions, Direction::Request);
    }
}
