// SPDX-License-Identifier: Apache-2.0

//! Foreign objects survive a start, resyncs and a clean-up unchanged, byte for byte.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::bpf::{self, ForeignProgram, Hook, Place};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, client, conntrack, skip, snapshot};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Foreign rules that look like ours, in the tables and chains to which ours are added.
const IPTABLES: &str = "*raw
-A PREROUTING -d VIP -p tcp -m tcp --dport 443 -m comment --comment \"not the proxy agent's\" -j NOTRACK
-A PREROUTING -s 192.0.2.0/24 -j DROP
-A OUTPUT -s VIP -p tcp -m tcp --sport 8443 -j NOTRACK
COMMIT
*mangle
-A INPUT -d VIP -p tcp -m tcp --dport 443 -m conntrack --ctstate DNAT -j MARK --set-xmark 0x1/0x1
COMMIT
*filter
:FOREIGN - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j FOREIGN
-A OUTPUT -s VIP -p tcp -m tcp --sport 8443 -j ACCEPT
-A FOREIGN -m comment --comment \"proxy\" -j RETURN
COMMIT
";

/// Foreign tables with names and hooks similar to ours.
const NFTABLES: &str = r#"
table ip foreign {
    set clients { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        ip saddr @clients tcp dport 443 counter notrack comment "proxy-agent?"
    }
}
table inet proxy {
    chain output {
        type filter hook output priority -300; policy accept;
        ip6 daddr fd00:96::2 tcp dport 8443 notrack
    }
}
table netdev foreign {
    chain ingress {
        type filter hook ingress device "pod0" priority 0; policy accept;
        ip saddr 192.0.2.3 drop
    }
}
"#;

/// Foreign sets with names similar to ours.
const SETS: &str = "create proxy-agents hash:ip
add proxy-agents 192.0.2.1
create KUBE-LOOP-BACK hash:ip,port,ip timeout 0
add KUBE-LOOP-BACK 10.96.0.2,tcp:443,10.96.0.2
";

fn add_foreign_things(node: &Node) -> Result<()> {
    node.netns.feed("ipset restore", SETS)?;
    for flavour in ["legacy", "nft"] {
        for (program, vip) in [("iptables", "10.96.0.2"), ("ip6tables", "fd00:96::2")] {
            let mut rules = IPTABLES.replace("VIP", vip);
            if program == "ip6tables" {
                rules = rules.replace("192.0.2.0/24", "2001:db8::/32");
            }
            let line = format!("{program}-{flavour}-restore --noflush --wait=10");
            node.netns.feed(&line, &rules)?;
        }
    }
    node.netns.feed("nft -f -", NFTABLES)?;
    node.netns.ip("address add 10.96.0.20/32 dev lo\n\
         address add 10.96.0.2/32 dev lo label lo:vip\n\
         address del 10.96.0.2/32 dev lo\n\
         address add fd00:96::20/128 dev lo nodad\n\
         address add 10.96.0.21/24 dev eth0\n\
         link add other type ifb\n\
         address add 10.96.1.2/32 dev other\n\
         rule add pref 77 from 192.0.2.0/24 lookup 77\n\
         route add 10.96.0.0/24 dev eth0 table 77\n")?;
    for (link, hook) in [("pod0", "ingress"), ("pod0", "egress"), ("eth0", "ingress")] {
        // pod0 has it after the first filter.
        let _ = node.netns.exec(&format!("tc qdisc add dev {link} clsact"));
        node.netns.exec(&format!(
            "tc filter add dev {link} {hook} protocol ip pref 7 u32 match ip dst 192.0.2.9/32 classid 1:1"
        ))?;
    }
    Ok(())
}

fn survive(args: &[&str], kube_proxy: KubeProxy) {
    Node::test(Topology::Veth, |node| {
        kube_proxy.install(&node.netns)?;
        add_foreign_things(node)?;
        let has_tcx = skip::has_tcx()?;
        let attach = || ForeignProgram::attach(&node.netns, "pod0", Hook::Ingress, Place::Last);
        let program = has_tcx.then(attach).transpose()?;
        let programs = || {
            let all = || bpf::tcx_programs(&node.netns, "pod0", Hook::Ingress);
            has_tcx.then(all).transpose().map(Option::unwrap_or_default)
        };
        let foreign = programs()?;
        let before = snapshot::take(&node.netns)?;

        let args = [args, &["--cleanup", "--sync-interval=200ms"]].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        for path in node.paths() {
            // Other tests check whether the connection works; here the foreign rules may block it.
            let _ = client::connect(path.netns, path.destination(), Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_millis(700));
        let during = snapshot::take(&node.netns)?;
        ensure!(
            snapshot::contains(&during, &before),
            "foreign things are changed or moved while the agent runs:\n{}",
            snapshot::difference(&before, &during).unwrap_or_default()
        );
        let now = programs()?;
        ensure!(
            foreign.iter().all(|id| now.contains(id)),
            "{foreign:?} {now:?}"
        );

        ensure!(agent.stop(libc::SIGTERM)?.success(), "the clean-up failed");
        let after = snapshot::take(&node.netns)?;
        if let Some(difference) = snapshot::difference(&before, &after) {
            bail!("not as it was before the agent:\n{difference}");
        }
        ensure!(programs()? == foreign);
        drop(program);
        Ok(())
    });
}

#[test]
fn ebpf_by_tcx() {
    survive(&["--backend=ebpf"], KubeProxy::IptablesNft);
}

#[test]
fn ebpf_by_clsact() {
    survive(
        &["--backend=ebpf", "--tc-attach=clsact"],
        KubeProxy::IptablesLegacy,
    );
}

#[test]
fn ebpf_with_accept_rules() {
    survive(
        &["--backend=ebpf", "--accept-rules=always"],
        KubeProxy::Nftables,
    );
}

#[test]
fn nftables_beside_iptables_nft() {
    survive(&["--backend=nftables"], KubeProxy::IptablesNft);
}

#[test]
fn nftables_beside_nftables() {
    survive(
        &["--backend=nftables", "--accept-rules=always"],
        KubeProxy::Nftables,
    );
}

#[test]
fn iptables_nft() {
    survive(&["--backend=iptables"], KubeProxy::IptablesNft);
}

#[test]
fn iptables_legacy() {
    survive(&["--backend=iptables"], KubeProxy::IptablesLegacy);
}

#[test]
fn none() {
    survive(&["--backend=none"], KubeProxy::Nftables);
}

/// Untracked packets match no `ctstate ESTABLISHED` rule: a firewall must not break the connection.
fn behind_a_firewall(backend: &str, flavour: &str) {
    Node::test(Topology::Veth, |node| {
        for program in ["iptables", "ip6tables"] {
            node.netns.feed(
                &format!("{program}-{flavour}-restore --noflush --wait=10"),
                "*filter\n:INPUT DROP [0:0]\n:OUTPUT DROP [0:0]\n\
                 -A INPUT -i lo -s 127.0.0.0/8 -j ACCEPT\n-A OUTPUT -o lo -s 127.0.0.0/8 -j ACCEPT\n\
                 -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                 -A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                 -A INPUT -p ICMP -j ACCEPT\n-A OUTPUT -p ICMP -j ACCEPT\nCOMMIT\n"
                    .replace("127.0.0.0/8", if program == "iptables" { "127.0.0.0/8" } else { "::1" })
                    .replace("ICMP", if program == "iptables" { "icmp" } else { "ipv6-icmp" })
                    .as_str(),
            )?;
        }
        let _agent = node.start_agent(&[backend])?;
        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            let stream = client::connect(&node.pods[0].netns, family.vip_socket(), TIMEOUT)
                .with_context(|| format!("{family:?} through the firewall"))?;
            let entries = conntrack::list(&node.netns, family)?;
            let found = conntrack::of_client(&entries, stream.local_addr()?);
            ensure!(found.is_empty(), "{found:#?}");
        }
        Ok(())
    });
}

#[test]
fn ebpf_behind_a_legacy_firewall() {
    behind_a_firewall("--backend=ebpf", "legacy");
}

#[test]
fn ebpf_behind_an_nft_firewall() {
    behind_a_firewall("--backend=ebpf", "nft");
}

#[test]
fn nftables_behind_a_legacy_firewall() {
    behind_a_firewall("--backend=nftables", "legacy");
}

#[test]
fn nftables_behind_an_nft_firewall() {
    behind_a_firewall("--backend=nftables", "nft");
}

#[test]
fn iptables_behind_a_legacy_firewall() {
    behind_a_firewall("--backend=iptables", "legacy");
}

#[test]
fn iptables_behind_an_nft_firewall() {
    behind_a_firewall("--backend=iptables", "nft");
}
