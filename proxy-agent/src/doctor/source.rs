// SPDX-License-Identifier: Apache-2.0

//! Whether the kernel selects a VIP as the source address of other traffic of the node, such as probes to pods. The check asks
//! the kernel for the route to one destination behind each link, and to an address outside of the node.

use std::net::IpAddr;

use proxy_netlink::route::{self, Address};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::ebpf;
use crate::link::{self, LinkTable};

const ID: &str = "vip-source";
/// Maximum number of links to check: on a node with many pods their results are alike.
const MOST: usize = 64;

/// Results: destination, link, and source address.
type Sources = Vec<(IpAddr, String, IpAddr)>;

pub async fn checks(subject: &Subject) -> Vec<Check> {
    let table = match subject.links_for_vips(ID) {
        Ok(table) => table,
        Err(check) => return vec![check],
    };
    match ask(table).await {
        Ok(sources) => judge(&subject.vips, &sources, table),
        Err(error) => {
            let what = "ask the kernel for the source address of routes";
            vec![check::unknown(ID, what, &*error, "try again")]
        }
    }
}

async fn ask(table: &LinkTable) -> Result<Sources, Box<dyn std::error::Error>> {
    let (handle, _connection) = link::connect()?;
    let mut sources = Sources::new();
    let found = route::destinations().await?;
    let found = found
        .into_iter()
        .map(|(index, to)| (to, table.name_of(index)));
    let outside = ebpf::OUTSIDE.map(|to| (to, "the default route".to_owned()));
    for (to, by) in outside.into_iter().chain(found.take(MOST)) {
        if let Some(source) = ebpf::source_towards(&handle, to).await? {
            sources.push((to, by, source));
        }
    }
    Ok(sources)
}

fn judge(vips: &[IpAddr], sources: &Sources, table: &LinkTable) -> Vec<Check> {
    let mut checks = Vec::new();
    for vip in vips {
        let mut towards = sources
            .iter()
            .filter(|(to, _, source)| source == vip && !vips.contains(to));
        let Some((to, by, _)) = towards.next() else {
            continue;
        };
        let others = match towards.count() {
            0 => String::new(),
            more => format!(", and to {more} other destinations"),
        };
        let finding = format!(
            "the kernel selects {vip} as the source address to {to} by {by}{others}: probes and other traffic of \
             the node come from it"
        );
        let mut copies = table.addresses.iter().filter(|copy| copy.ip == *vip);
        checks.push(match copies.find(|copy| is_borrowed(copy)) {
            Some(copy) => with_command(finding, copy, &table.name_of(copy.index)),
            None => Check::warning(
                ID,
                finding,
                "add an address to the node: it has no other one that the kernel could select",
            ),
        });
    }
    if checks.is_empty() {
        let finding = "the kernel selects no VIP as the source address of other traffic";
        checks.push(Check::ok(ID, finding));
    }
    checks
}

/// Whether the kernel may select this address for other traffic.
fn is_borrowed(copy: &Address) -> bool {
    match copy.ip {
        IpAddr::V4(_) => copy.scope < libc::RT_SCOPE_LINK,
        IpAddr::V6(_) => !copy.deprecated,
    }
}

fn with_command(finding: String, copy: &Address, link: &str) -> Check {
    let remedy = "run the agent with --address-scope=link, or set a source for the routes; connections of the node \
         that are masqueraded to the VIP break when its scope changes. With Cilium keep it as it is";
    let (vip, len) = (copy.ip, copy.prefix_len);
    let command = match vip {
        IpAddr::V4(_) => format!(
            "ip address del {vip}/{len} dev {link} && ip address add {vip}/32 dev {link} scope link"
        ),
        IpAddr::V6(_) => format!("ip address replace {vip}/{len} dev {link} nodad preferred_lft 0"),
    };
    Check::warning(ID, finding, remedy).with_command(command)
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::{Link, LinkKind};
    use proxy_serve::doctor::Verdict;

    use super::*;
    use crate::link::address;

    #[test]
    fn a_vip_as_the_source_to_others_is_a_warning() {
        let vip: IpAddr = "10.96.0.2".parse().unwrap();
        let from = |to: &str, source: IpAddr| (to.parse().unwrap(), "pod9".to_owned(), source);
        let mut copy = address(1, "10.96.0.2", 32);
        let judged = |sources: Sources, copy: &Address| {
            let table = LinkTable {
                links: vec![Link::new(1, "lo", LinkKind::Loopback)],
                addresses: vec![copy.clone()],
                ..LinkTable::default()
            };
            let check = judge(&[vip], &sources, &table).remove(0);
            (check.verdict, check.finding, check.command)
        };
        let own = "192.0.2.1".parse().unwrap();
        let to_itself = vec![from("10.0.0.5", own), from("10.96.0.2", vip)];
        assert_eq!(judged(to_itself, &copy).0, Verdict::Ok);
        let found = || vec![from("10.0.0.5", vip), from("10.0.0.6", vip)];
        let (verdict, finding, command) = judged(found(), &copy);
        assert_eq!((verdict, command), (Verdict::Warning, None));
        assert!(
            finding.contains("to 10.0.0.5 by pod9, and to 1 other"),
            "{finding}"
        );
        copy.scope = libc::RT_SCOPE_UNIVERSE;
        let command = judged(found(), &copy).2.unwrap();
        assert!(
            command.ends_with("10.96.0.2/32 dev lo scope link"),
            "{command}"
        );
    }
}
