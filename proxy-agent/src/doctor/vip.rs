// SPDX-License-Identifier: Apache-2.0

//! The VIPs on their link.

use std::fs;
use std::net::IpAddr;

use proxy_netlink::route::Address;
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::link::LinkTable;

const ID: &str = "vip";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let table = match &subject.links {
        Ok(table) => table,
        Err(error) => {
            let remedy = "try again";
            return vec![check::unknown(ID, "read the node's links", error, remedy)];
        }
    };
    let vips = subject.vips.iter();
    vips.map(|vip| judge(*vip, subject.interface(), table, without_ipv6))
        .collect()
}

/// Whether IPv6 is disabled on a link.
fn without_ipv6(link: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

fn judge(
    vip: IpAddr,
    interface: Option<&str>,
    table: &LinkTable,
    without_ipv6: impl Fn(&str) -> bool,
) -> Check {
    let mut copies = table.addresses.iter().filter(|address| address.ip == vip);
    let on_its_link = |copy: &&Address| {
        let link = table.by_index(copy.index);
        interface.is_none_or(|name| link.is_some_and(|link| link.name == name))
    };
    let Some(copy) = copies.clone().find(on_its_link) else {
        return missing(vip, interface.unwrap_or("lo"), without_ipv6);
    };
    let link = table.name_of(copy.index);
    let prefix = prefix(vip);
    if table.by_index(copy.index).is_some_and(|link| !link.up) {
        return Check::broken(
            ID,
            format!("{vip} is on {link}, which is down"),
            format!("set {link} up; a running agent does so"),
        )
        .with_command(format!("ip link set {link} up"));
    }
    if copy.unusable {
        return Check::broken(
            ID,
            format!(
                "{vip} is on {link}, but duplicate address detection has not completed or failed \
                 (tentative or dadfailed)"
            ),
            "add it without duplicate address detection: every node has the same VIP, and no neighbour sees it",
        )
        .with_command(format!(
            "ip address del {vip}/{len} dev {link} && ip address add {prefix} dev {link} nodad",
            len = copy.prefix_len
        ));
    }
    if let Some(other) = copies.find(|other| other.index != copy.index) {
        let (name, len) = (table.name_of(other.index), other.prefix_len);
        return Check::warning(
            ID,
            format!("{vip} is on {link} and on {name}"),
            format!("remove it from {name}; a running agent does so"),
        )
        .with_command(format!("ip address del {vip}/{len} dev {name}"));
    }
    Check::ok(ID, format!("{vip} is on {link}, which is up"))
}

fn missing(vip: IpAddr, link: &str, without_ipv6: impl Fn(&str) -> bool) -> Check {
    if vip.is_ipv6() && without_ipv6(link) {
        return Check::broken(
            ID,
            format!("{vip} cannot be on {link}: IPv6 is disabled there (disable_ipv6)"),
            format!("enable it, or remove {vip} from --ip-address"),
        )
        .with_command(format!("sysctl -w net/ipv6/conf/{link}/disable_ipv6=0"));
    }
    Check::broken(
        ID,
        format!("{vip} is not on {link}"),
        "start the agent, which adds it, or check its log; or add it by hand",
    )
    .with_command(format!("ip address add {} dev {link}", prefix(vip)))
}

fn prefix(vip: IpAddr) -> String {
    let length = if vip.is_ipv4() { 32 } else { 128 };
    format!("{vip}/{length}")
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::{Link, LinkKind};
    use proxy_serve::doctor::Verdict;

    use super::*;
    use crate::link;

    fn table(up: bool, addresses: &[(u32, &str, bool)]) -> LinkTable {
        let link = |index, name| Link {
            up,
            ..Link::new(index, name, LinkKind::Other)
        };
        let address = |(index, ip, unusable): &(u32, &str, bool)| Address {
            unusable: *unusable,
            ..link::address(*index, ip, 32)
        };
        LinkTable {
            links: vec![link(1, "lo"), link(2, "eth0")],
            addresses: addresses.iter().map(address).collect(),
            ..LinkTable::default()
        }
    }

    #[test]
    fn each_fault_has_its_command() {
        let judged = |vip: &str, table: &LinkTable, off: bool| {
            let check = judge(vip.parse().unwrap(), Some("lo"), table, |_| off);
            (check.verdict, check.command.unwrap_or_default())
        };
        let (v4, v6) = ("10.96.0.2", "fd00:96::2");
        let good = table(true, &[(1, v4, false), (1, v6, false)]);
        assert_eq!(judged(v4, &good, false), (Verdict::Ok, String::new()));
        let down = table(false, &[(1, v4, false)]);
        assert_eq!(
            judged(v4, &down, false),
            (Verdict::Broken, "ip link set lo up".to_owned())
        );
        let nowhere = table(true, &[]);
        let add = "ip address add 10.96.0.2/32 dev lo".to_owned();
        assert_eq!(judged(v4, &nowhere, false), (Verdict::Broken, add.clone()));
        let elsewhere = table(true, &[(2, v4, false)]);
        assert_eq!(judged(v4, &elsewhere, false), (Verdict::Broken, add));
        let enable = "sysctl -w net/ipv6/conf/lo/disable_ipv6=0".to_owned();
        assert_eq!(judged(v6, &nowhere, true), (Verdict::Broken, enable));
        let twice = table(true, &[(1, v4, false), (2, v4, false)]);
        let del = "ip address del 10.96.0.2/32 dev eth0".to_owned();
        assert_eq!(judged(v4, &twice, false), (Verdict::Warning, del));
        let tentative = table(true, &[(1, v6, true)]);
        assert_eq!(judged(v6, &tentative, false).0, Verdict::Broken);
    }
}
