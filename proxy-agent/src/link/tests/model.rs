// SPDX-License-Identifier: Apache-2.0

//! Properties that hold for plans of any table, against a model of the kernel.

use std::net::IpAddr;

use proptest::prelude::*;
use proxy_netlink::route::{Address, Link, LinkKind, Prefix};

use super::{V4, V6, desired, ip};
use crate::link::apply::Gate;
use crate::link::plan::{Op, Source, host_prefix, plan, plan_teardown};
use crate::link::table::{LinkTable, OWN_GROUP, address, is_owned};

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
                let mut created = Link::new(index, name, LinkKind::Dummy);
                created.group = OWN_GROUP;
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
                let found = found.ok_or("nothing to extend")?;
                (found.permanent, found.deprecated) = (true, vip.is_ipv6());
            }
            Op::Replace { old, link, .. } => {
                self.remove(old)?;
                self.add(old.ip, link)?;
            }
            // A copy of the VIP is there at every step: tried in `tests/tests/node/links.rs`.
            Op::Rescope { old, source, .. } => {
                let mut found = self.table.addresses.iter_mut();
                let found = found.find(|found| *found == old).ok_or("no such address")?;
                (found.scope, found.permanent) = (source.scope(), true);
            }
            Op::Prefer { vip, link, source } => {
                let index = self.table.links[self.index(link)?].index;
                let mut found = self.table.addresses.iter_mut();
                let found = found.find(|found| found.index == index && found.ip == *vip);
                found.ok_or("no such address")?.deprecated = *source == Source::Never;
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
        let new = address(link.index, &vip.to_string(), host_prefix(vip));
        let clashes = |found: &Address| {
            let same_subnet = found.prefix_len == new.prefix_len && found.peer.is_none();
            found.index == new.index && found.ip == vip && (vip.is_ipv6() || same_subnet)
        };
        if self.table.addresses.iter().any(clashes) {
            return Err(format!("{vip} exists on {}", link.name));
        }
        self.table.addresses.push(new);
        Ok(())
    }

    fn remove(&mut self, old: &Address) -> Result<(), String> {
        let foreign = self.table.takes_along(old);
        if !foreign.is_empty() {
            return Err(format!("{foreign:?} would go too"));
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
        scope in prop_oneof![2 => Just(253_u8), 1 => Just(0), 1 => Just(254)],
        deprecated in any::<bool>(),
        unusable in any::<bool>(),
        permanent in any::<bool>(),
        endangers in prop::bool::weighted(0.2),
    ) -> (Address, Vec<Prefix>) {
        let (vip, peer, prefix_len) = match (v4, host) {
            (true, true) => (V4, "192.0.2.1", 32),
            (true, false) => (V4, "192.0.2.1", 24),
            (false, true) => (V6, "fd00::99", 128),
            (false, false) => (V6, "fd00::99", 64),
        };
        let found = Address {
            peer: with_peer.then(|| ip(peer)),
            scope: if v4 { scope } else { 0 },
            unusable: unusable && !v4,
            deprecated: deprecated && !v4,
            permanent,
            ..address(index, vip, prefix_len)
        };
        let foreign = (endangers && v4 && !host).then(|| Prefix { ip: ip("10.96.0.9"), len: 24 });
        (found, foreign.into_iter().collect())
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
            Link::new(1, "lo", LinkKind::Loopback),
            Link::new(2, "eth0", LinkKind::Other),
            Link::new(3, "br0", LinkKind::Bridge),
            Link::new(4, "old", LinkKind::Dummy),
        ];
        for (link, up) in links.iter_mut().zip(up) {
            link.up = up;
        }
        links[3].group = if owned { OWN_GROUP } else { 0 };
        // One IPv6 copy for each link; one IPv4 copy for each link, prefix and peer.
        let mut table = LinkTable { links, ..LinkTable::default() };
        table.shared.extend(shared.then_some(4));
        for (new, foreign) in addresses {
            let key = |found: &Address| {
                let v4 = found.ip.is_ipv4().then_some((found.prefix_len, found.peer));
                (found.index, found.ip, v4)
            };
            if !table.addresses.iter().any(|found| key(found) == key(&new)) {
                table.addresses.push(new.clone());
                if !foreign.is_empty() {
                    table.endangering.push((new, foreign));
                }
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
            prop_assert!(!kernel.table.takes_along(found).is_empty());
        }
        // Links: only the target changed, and only links of ours without other addresses were removed.
        for old in &before.table.links {
            match kernel.table.by_index(old.index) {
                None => prop_assert!(is_owned(old) && !before.table.shared.contains(&old.index) && old.name != name),
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
            prop_assert!(!gone || (is_owned(old) && old.name == name && !before.table.shared.contains(&old.index)));
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
