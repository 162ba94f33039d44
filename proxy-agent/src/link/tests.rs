// SPDX-License-Identifier: Apache-2.0

//! Plans against a model of the kernel: golden text, and properties that hold for any table.

use std::net::IpAddr;

use proptest::prelude::*;

use super::apply::Gate;
use super::observe::{Link, LinkAddress, LinkKind, LinkTable, Prefix};
use super::plan::{Desired, Op, Plan, host_prefix, plan, plan_teardown};

const V4: &str = "10.96.0.2";
const V6: &str = "fd00::2";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.to_owned(),
        altnames: Vec::new(),
        up: true,
        kind,
        master: None,
        owned: false,
        foreign_addresses: false,
        lower: None,
        ethernet: true,
        xdp: None,
    }
}

fn address(index: u32, vip: &str, prefix_len: u8) -> LinkAddress {
    LinkAddress {
        index,
        ip: ip(vip),
        prefix_len,
        peer: None,
        scope: libc::RT_SCOPE_UNIVERSE,
        unusable: false,
        permanent: true,
        secondary: false,
        takes_along: Vec::new(),
    }
}

/// `lo`, `eth0`, and a port of the VRF `blue`.
fn table(addresses: Vec<LinkAddress>) -> LinkTable {
    let mut port = link(3, "port", LinkKind::Veth);
    port.master = Some(4);
    let links = vec![
        link(1, "lo", LinkKind::Loopback),
        link(2, "eth0", LinkKind::Other),
        port,
        link(4, "blue", LinkKind::Vrf),
    ];
    LinkTable {
        links,
        addresses,
        ..LinkTable::default()
    }
}

fn desired(interface: &str) -> Desired {
    Desired {
        vips: vec![ip(V4), ip(V6)],
        interface: interface.to_owned(),
    }
}

fn texts(plan: &Plan) -> Vec<String> {
    plan.ops.iter().map(Op::to_string).collect()
}

#[test]
fn an_empty_node_gets_link_and_vips() {
    let plan = plan(&desired("proxy0"), &table(Vec::new()));
    assert_eq!(
        texts(&plan),
        [
            "create link proxy0 as a dummy and set it up",
            "add 10.96.0.2/32 to proxy0",
            "add fd00::2/128 to proxy0",
        ]
    );
}

#[test]
fn a_link_that_went_down_comes_up_before_anything_is_added() {
    let mut table = table(vec![address(1, V4, 32)]);
    table.links[0].up = false;
    assert_eq!(
        texts(&plan(&desired("lo"), &table)),
        ["set link lo up", "add fd00::2/128 to lo"]
    );
}

#[test]
fn vips_leave_other_links_after_they_are_on_theirs() {
    let mut with_peer = address(2, V4, 32);
    with_peer.peer = Some(ip("192.0.2.1"));
    let table = table(vec![address(2, V4, 24), with_peer, address(2, V6, 128)]);
    assert_eq!(
        texts(&plan(&desired("lo"), &table)),
        [
            "add 10.96.0.2/32 to lo",
            "add fd00::2/128 to lo",
            "remove 10.96.0.2/24 from eth0",
            "remove 10.96.0.2 peer 192.0.2.1/32 from eth0",
            "remove fd00::2/128 from eth0",
        ]
    );
}

#[test]
fn copies_with_a_wrong_prefix_are_put_right() {
    let table = table(vec![address(1, V4, 24), address(1, V6, 64)]);
    assert_eq!(
        texts(&plan(&desired("lo"), &table)),
        [
            "add 10.96.0.2/32 to lo",
            "replace fd00::2/64 on lo by fd00::2/128 (wrong prefix or peer)",
            "remove 10.96.0.2/24 from lo",
        ]
    );
}

#[test]
fn scope_detection_and_lifetime_are_put_right() {
    let (mut host_scope, mut failed) = (address(1, V4, 32), address(1, V6, 128));
    host_scope.scope = 254;
    failed.unusable = true;
    assert_eq!(
        texts(&plan(&desired("lo"), &table(vec![host_scope, failed]))),
        [
            "add 10.96.0.2/32 to lo anew (scope not global)",
            "add fd00::2/128 to lo anew (held up by duplicate address detection)",
        ]
    );
    let (mut a, mut b) = (address(1, V4, 32), address(1, V6, 128));
    (a.permanent, b.permanent) = (false, false);
    assert_eq!(
        texts(&plan(&desired("lo"), &table(vec![a, b]))),
        [
            "let 10.96.0.2/32 stay on lo forever",
            "let fd00::2/128 stay on lo forever"
        ]
    );
}

#[test]
fn an_address_that_would_take_foreign_ones_along_stays() {
    let mut primary = address(2, V4, 24);
    primary.takes_along = vec![Prefix {
        ip: ip("10.96.0.9"),
        len: 24,
    }];
    let plan = plan(&desired("lo"), &table(vec![address(1, V6, 128), primary]));
    assert_eq!(texts(&plan), ["add 10.96.0.2/32 to lo"]);
    let [(wanted, refusal)] = plan.refusals.as_slice() else {
        panic!("one refusal, not {:?}", plan.refusals);
    };
    assert_eq!(wanted, "remove 10.96.0.2/24 from eth0");
    assert_eq!(
        refusal.to_string(),
        "the kernel would delete 10.96.0.9/24 with it, as promote_secondaries is off: remove it by \
         hand, or run `sysctl -w net.ipv4.conf.eth0.promote_secondaries=1`"
    );
}

#[test]
fn a_link_in_a_vrf_is_reported() {
    let plan = plan(&desired("port"), &table(Vec::new()));
    assert_eq!(plan.refusals.len(), 1);
    assert!(plan.refusals[0].1.to_string().contains("VRF blue"));
}

#[test]
fn an_alternative_name_is_the_link() {
    let mut table = table(Vec::new());
    table.links[1].altnames.push("enp0s3".to_owned());
    assert_eq!(
        texts(&plan(&desired("enp0s3"), &table)),
        ["add 10.96.0.2/32 to enp0s3", "add fd00::2/128 to enp0s3"]
    );
}

#[test]
fn a_changed_interface_takes_the_old_dummy_of_ours_with_it() {
    let mut table = table(vec![address(5, V4, 32)]);
    let mut old = link(5, "proxy0", LinkKind::Dummy);
    old.owned = true;
    table.links.push(old);
    let wanted = Desired {
        vips: vec![ip(V4)],
        interface: "lo".to_owned(),
    };
    let expected = [
        "add 10.96.0.2/32 to lo",
        "remove 10.96.0.2/32 from proxy0",
        "delete link proxy0, which the agent created",
    ];
    assert_eq!(texts(&plan(&wanted, &table)), expected);

    table.links[4].foreign_addresses = true;
    assert_eq!(texts(&plan(&wanted, &table)), expected[..2]);
    // Without a VIP of ours on it, it may be another agent's.
    table.links[4].foreign_addresses = false;
    table.addresses = vec![address(1, V4, 32)];
    assert!(plan(&wanted, &table).ops.is_empty());
}

#[test]
fn teardown_deletes_only_a_dummy_of_ours() {
    let vips = vec![address(1, V4, 32), address(2, V4, 24), address(5, V4, 32)];
    let mut table = table(vips);
    table.links.push(link(5, "proxy0", LinkKind::Dummy));
    let removal = "remove 10.96.0.2/32 from proxy0";
    assert_eq!(texts(&plan_teardown(&desired("proxy0"), &table)), [removal]);
    table.links[4].owned = true;
    assert_eq!(
        texts(&plan_teardown(&desired("proxy0"), &table)),
        [removal, "delete link proxy0, which the agent created"]
    );
    table.links[4].foreign_addresses = true;
    assert_eq!(texts(&plan_teardown(&desired("proxy0"), &table)), [removal]);
    table.links[0].owned = true;
    assert_eq!(
        texts(&plan_teardown(&desired("lo"), &table)),
        ["remove 10.96.0.2/32 from lo"]
    );
}

/// What a kernel would do, as far as plans rely on it.
#[derive(Debug, Clone)]
struct Kernel {
    table: LinkTable,
}

impl Kernel {
    /// Carries out `op`. An error is an operation that the kernel would refuse.
    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::CreateDummy { link: name } => {
                if self.table.by_name(name).is_some() {
                    return Err(format!("{name} exists"));
                }
                let index = self.table.links.last().map_or(1, |link| link.index + 1);
                let mut created = link(index, name, LinkKind::Dummy);
                created.owned = true;
                self.table.links.push(created);
            }
            Op::SetUp { link } => self.index(link).map(|at| self.table.links[at].up = true)?,
            Op::Add { vip, link } => self.add(*vip, link)?,
            Op::Extend { vip, link } => {
                let index = self.table.links[self.index(link)?].index;
                let found = self.table.addresses.iter_mut().find(|found| {
                    found.index == index
                        && found.ip == *vip
                        && found.peer.is_none()
                        && found.prefix_len == host_prefix(*vip)
                });
                found.ok_or("nothing to extend")?.permanent = true;
            }
            Op::Replace { old, link, .. } => {
                self.remove(old)?;
                self.add(old.ip, link)?;
            }
            Op::Remove { old, .. } => self.remove(old)?,
            Op::DeleteLink { index, .. } => {
                self.table.links.retain(|link| link.index != *index);
                self.table.addresses.retain(|found| found.index != *index);
            }
        }
        Ok(())
    }

    fn index(&self, name: &str) -> Result<usize, String> {
        let found = self.table.by_name(name).ok_or("no such link")?;
        self.table
            .links
            .iter()
            .position(|link| link.index == found.index)
            .ok_or_else(|| "no such index".to_owned())
    }

    fn add(&mut self, vip: IpAddr, link: &str) -> Result<(), String> {
        let link = &self.table.links[self.index(link)?];
        if !link.up {
            return Err(format!("{} is down", link.name));
        }
        let new = LinkAddress {
            ip: vip,
            ..address(link.index, V4, host_prefix(vip))
        };
        let clashes = |found: &LinkAddress| {
            let same_subnet = found.prefix_len == new.prefix_len && found.peer.is_none();
            found.index == new.index && found.ip == vip && (vip.is_ipv6() || same_subnet)
        };
        if self.table.addresses.iter().any(clashes) {
            return Err(format!("{vip} exists on {}", link.name));
        }
        self.table.addresses.push(new);
        Ok(())
    }

    fn remove(&mut self, old: &LinkAddress) -> Result<(), String> {
        if !old.takes_along.is_empty() {
            return Err(format!("{:?} would go too", old.takes_along));
        }
        let at = self.table.addresses.iter().position(|found| found == old);
        self.table.addresses.remove(at.ok_or("no such address")?);
        Ok(())
    }

    fn carries(&self, vip: IpAddr) -> bool {
        self.table.addresses.iter().any(|found| found.ip == vip)
    }
}

prop_compose! {
    /// A copy of a VIP on one of four links, with any state the kernel lets it have.
    fn any_address()(
        index in 1_u32..=4,
        v4 in any::<bool>(),
        host in any::<bool>(),
        with_peer in any::<bool>(),
        scope in prop_oneof![3 => Just(0_u8), 1 => Just(254)],
        unusable in any::<bool>(),
        permanent in any::<bool>(),
        endangers in prop::bool::weighted(0.2),
    ) -> LinkAddress {
        let (vip, peer, prefix_len) = match (v4, host) {
            (true, true) => (V4, "192.0.2.1", 32),
            (true, false) => (V4, "192.0.2.1", 24),
            (false, true) => (V6, "fd00::99", 128),
            (false, false) => (V6, "fd00::99", 64),
        };
        LinkAddress {
            peer: with_peer.then(|| ip(peer)),
            scope: if v4 { scope } else { 0 },
            unusable: unusable && !v4,
            permanent,
            takes_along: if endangers && v4 && !host {
                vec![Prefix { ip: ip("10.96.0.9"), len: 24 }]
            } else {
                Vec::new()
            },
            ..address(index, vip, prefix_len)
        }
    }
}

prop_compose! {
    fn any_kernel()(
        addresses in prop::collection::vec(any_address(), 0..8),
        up in prop::array::uniform4(any::<bool>()),
        owned in any::<bool>(),
        shared in any::<bool>(),
    ) -> Kernel {
        let mut links = vec![
            link(1, "lo", LinkKind::Loopback),
            link(2, "eth0", LinkKind::Other),
            link(3, "br0", LinkKind::Bridge),
            link(4, "old", LinkKind::Dummy),
        ];
        for (link, up) in links.iter_mut().zip(up) {
            link.up = up;
        }
        links[3].owned = owned;
        links[3].foreign_addresses = shared;
        // One IPv6 copy for each link; one IPv4 copy for each link, prefix and peer.
        let mut table = LinkTable { links, ..LinkTable::default() };
        for new in addresses {
            let key = |found: &LinkAddress| {
                let v4 = found.ip.is_ipv4().then_some((found.prefix_len, found.peer));
                (found.index, found.ip, v4)
            };
            if !table.addresses.iter().any(|found| key(found) == key(&new)) {
                table.addresses.push(new);
            }
        }
        Kernel { table }
    }
}

fn any_interface() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("lo"), Just("eth0"), Just("old"), Just("proxy0")]
}

proptest! {
    #[test]
    fn one_plan_converges_without_a_gap(mut kernel in any_kernel(), name in any_interface()) {
        let wanted = desired(name);
        let before = kernel.clone();
        let first = plan(&wanted, &kernel.table);
        for op in &first.ops {
            let present: Vec<_> = wanted.vips.iter().map(|vip| kernel.carries(*vip)).collect();
            kernel.apply(op).map_err(|error| TestCaseError::fail(format!("{op}: {error}")))?;
            for (vip, present) in wanted.vips.iter().zip(present) {
                prop_assert!(!present || kernel.carries(*vip), "{} left no {}", op, vip);
            }
        }
        let second = plan(&wanted, &kernel.table);
        prop_assert_eq!(&second.ops, &Vec::new());
        prop_assert_eq!(second.refusals.len(), first.refusals.len());
        // What is left over on other links is what had to be left.
        let target = kernel.table.by_name(name).expect("it was created").index;
        for found in kernel.table.addresses.iter().filter(|found| found.index != target) {
            prop_assert!(!found.takes_along.is_empty());
        }
        // Links: only the target changed, and only links of ours nobody else uses went away.
        for old in &before.table.links {
            match kernel.table.by_index(old.index) {
                None => prop_assert!(old.owned && !old.foreign_addresses && old.name != name),
                Some(new) if old.name == name => prop_assert!(new.up),
                Some(new) => prop_assert_eq!(new, old),
            }
        }
    }

    #[test]
    fn a_vip_survives_any_failures(
        mut kernel in any_kernel(),
        name in any_interface(),
        fails in prop::collection::vec(any::<bool>(), 24),
    ) {
        let wanted = desired(name);
        let plan = plan(&wanted, &kernel.table);
        let before = kernel.clone();
        let mut gate = Gate::default();
        let mut replaced = Vec::new();
        for (op, fails) in plan.ops.iter().zip(fails) {
            let allowed = gate.allows(op);
            if let Op::Replace { old, .. } = op {
                // The kernel offers no way to do this without a moment between two steps.
                replaced.push(old.ip);
            }
            if !allowed || fails || kernel.apply(op).is_err() {
                gate.failed(op);
            }
        }
        for vip in wanted.vips.iter().filter(|vip| !replaced.contains(vip)) {
            prop_assert!(!before.carries(*vip) || kernel.carries(*vip));
        }
    }

    #[test]
    fn teardown_leaves_nothing_of_ours_and_all_else(mut kernel in any_kernel(), name in any_interface()) {
        let wanted = desired(name);
        let before = kernel.clone();
        for op in plan_teardown(&wanted, &kernel.table).ops {
            kernel.apply(&op).map_err(TestCaseError::fail)?;
        }
        prop_assert!(plan_teardown(&wanted, &kernel.table).ops.is_empty());
        for old in &before.table.links {
            let gone = kernel.table.by_index(old.index).is_none();
            prop_assert!(!gone || (old.owned && old.name == name && !old.foreign_addresses));
        }
        let elsewhere = |kernel: &Kernel| {
            let target = before.table.by_name(name).map(|link| link.index);
            let mut found = kernel.table.addresses.clone();
            found.retain(|found| Some(found.index) != target);
            found
        };
        prop_assert_eq!(elsewhere(&kernel), elsewhere(&before));
    }
}
