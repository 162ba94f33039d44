// SPDX-License-Identifier: Apache-2.0

//! Filters of the node that accept established connections only: with iptables the agent lets the proxy's untracked
//! packets pass (`--accept-rules`), with native nf_tables they stay tracked.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, UPSTREAM, api_server, uplink_address};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::{Family, client, cmd, conntrack, doctor, status};

use super::upstream::{
    api_servers, connect, entries, host_to_vip, is_too_old, none_is_tracked, resync, sources,
};
use super::{SHORT_TIMEOUT, TIMEOUT, fill, works_on};

/// A port of the node that the firewall blocks.
const CLOSED: u16 = 8443;

/// Sets up a firewall that drops everything except established connections and new ones to the outside.
fn firewall(node: &Node, flavour: &str) -> Result<()> {
    let common = "*filter\n:INPUT DROP [0:0]\n:OUTPUT DROP [0:0]\n\
         -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A INPUT -i lo -j ACCEPT\n\
         -A INPUT -p tcp -m tcp --dport 443 -j ACCEPT\n\
         -A OUTPUT -o lo -j ACCEPT\n\
         -A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT\n";
    for (program, icmp) in [("iptables", "icmp"), ("ip6tables", "ipv6-icmp")] {
        let rules = format!(
            "{common}-A INPUT -p {icmp} -j ACCEPT\n-A OUTPUT -p {icmp} -j ACCEPT\nCOMMIT\n"
        );
        node.netns
            .feed(&format!("{program}-{flavour}-restore"), &rules)?;
    }
    Ok(())
}

fn accepts(node: &Node, flavour: &str) -> Result<usize> {
    let rules = node
        .netns
        .exec(&format!("iptables-{flavour}-save -t filter"))?;
    let ours = rules
        .lines()
        .filter(|line| line.contains("proxy-agent") && line.contains("UNTRACKED"));
    Ok(ours.count())
}

fn iptables_lets_it_pass(flavour: &str, backend: &str, upstream: &[&str]) {
    if is_too_old() {
        return;
    }
    Node::test(Topology::Veth, |node| {
        let kube_proxy = match flavour {
            "legacy" => KubeProxy::IptablesLegacy,
            _ => KubeProxy::IptablesNft,
        };
        kube_proxy.install(&node.netns)?;
        let _servers = api_servers(node)?;
        firewall(node, flavour)?;
        let cgroup = node.cgroup("one")?;
        let args = [&[backend, "--cleanup"], upstream].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        if upstream.is_empty() {
            status::wait_until_learning(node)?;
        }
        let mut paths = node.paths();
        paths.retain(|path| path.via == Via::Vip);
        for family in Family::ALL {
            let mut of_family = paths.clone();
            of_family.retain(|path| path.family == family && &*path.client == "host");
            connect(&of_family[0])?;
            status::wait_until_known(node, api_server(family), "")?;
        }
        let mut tracked = sources(node, &Family::ALL)?;
        ensure!(accepts(node, flavour)? == 2, "one for each direction");
        doctor_is_content(node)?;
        works_on(node, &paths)?;
        none_is_tracked(node, &tracked)?;
        no_other_packet_gets_in(node, flavour)?;
        tracked.push(SocketAddr::new(uplink_address(Family::V4), CLOSED));
        fill(node)?;
        works_on(node, &paths)?;
        none_is_tracked(node, &tracked)?;
        agent.stop(libc::SIGTERM)?;
        ensure!(accepts(node, flavour)? == 0, "removed with everything else");
        Ok(())
    });
}

fn doctor_is_content(node: &Node) -> Result<()> {
    let found = doctor::doctor(node)?;
    let faults = found.faults("firewall");
    ensure!(faults.is_empty(), "{faults:#?}");
    let faults = found.faults("proxy-upstream");
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

/// Checks that the firewall still handles packets with the API server's source address that belong to no connection of
/// the proxy as before.
fn no_other_packet_gets_in(node: &Node, flavour: &str) -> Result<()> {
    let address = SocketAddr::new(uplink_address(Family::V4), CLOSED);
    let _listener = node.netns.run(|| TcpListener::bind(address))?;
    // The API server listens on that port, so no client could bind to it.
    node.uplink.feed(
        "nft -f -",
        &format!(
            "table ip pretend {{ chain postrouting {{ type nat hook postrouting priority 100; policy accept;\n\
             tcp dport {CLOSED} snat to {}\n}}\n}}\n",
            api_server(Family::V4)
        ),
    )?;
    let got_in = client::connect(&node.uplink, address, SHORT_TIMEOUT);
    match got_in {
        Ok(_) => bail!("a packet that claims to be an answer was let in"),
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        Err(error) => return Err(error).context("a connection from the API server's port"),
    }
    // The firewall had blocked the connection. The uplink can use that port for one connection at a time.
    conntrack::flush(&node.uplink)?;
    let rule = format!("INPUT -p tcp --dport {CLOSED} -j ACCEPT");
    node.netns.exec(&format!("iptables-{flavour} -I {rule}"))?;
    client::connect(&node.uplink, address, TIMEOUT).context("with a rule that lets it in")?;
    node.netns.exec(&format!("iptables-{flavour} -D {rule}"))?;
    node.uplink.exec("nft delete table ip pretend")?;
    Ok(())
}

#[test]
fn iptables_legacy_lets_learned_ones_pass() {
    iptables_lets_it_pass("legacy", "--backend=nftables", &[]);
}

#[test]
fn iptables_nft_lets_learned_ones_pass() {
    iptables_lets_it_pass("nft", "--backend=ebpf", &[]);
}

#[test]
fn iptables_nft_lets_named_ones_pass() {
    iptables_lets_it_pass("nft", "--backend=nftables", &[UPSTREAM]);
}

/// Rules in the form that firewalld writes, shortened.
const FIREWALLD: &str = "\
    table inet firewalld {\n\
      chain filter_INPUT {\n\
        type filter hook input priority filter + 10; policy accept;\n\
        ct state { established, related } accept\n\
        ct status dnat accept\n\
        iifname \"lo\" accept\n\
        ct state invalid drop\n\
        jump filter_INPUT_ZONES\n\
        reject with icmpx admin-prohibited\n\
      }\n\
      chain filter_INPUT_ZONES {\n\
        iifname \"eth0\" goto filter_IN_public\n\
        goto filter_IN_public\n\
      }\n\
      chain filter_IN_public {\n\
        tcp dport { 22, 443 } accept\n\
        meta l4proto { icmp, ipv6-icmp } accept\n\
      }\n\
    }\n";

/// The rules of a firewall with a policy.
const POLICY: &str = "\
    table inet fw {\n\
      chain input {\n\
        type filter hook input priority filter; policy drop;\n\
        ct state established,related accept\n\
        iif lo accept\n\
        tcp dport { 22, 443 } accept\n\
        meta l4proto { icmp, ipv6-icmp } accept\n\
      }\n\
    }\n";

/// No ACCEPT rule of another table helps here: the connections stay tracked, and none is delayed. With a rule in the
/// firewall's own table, as the doctor proposes it, they are untracked.
fn a_native_filter_leaves_it_tracked(rules: &str, chain: &str, upstream: &[&str]) {
    if is_too_old() {
        return;
    }
    Node::test(Topology::Veth, |node| {
        let _servers = api_servers(node)?;
        let cgroup = node.cgroup("one")?;
        node.netns.feed("nft -f -", rules)?;
        let agent = node.start_agent(&[&["--backend=nftables"], upstream].concat())?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        if upstream.is_empty() {
            status::wait_until_learning(node)?;
        }
        let path = host_to_vip(node);
        connect(&path)?;
        status::wait_until_known(node, api_server(Family::V4), "filter")?;
        let start = Instant::now();
        connect(&path)?;
        println!("connected after {} ms", start.elapsed().as_millis());
        ensure!(entries(node, Family::V4)?.len() == 2, "both are tracked");
        let found = doctor::doctor(node)?;
        let tracked = found.faults("proxy-upstream");
        let names = |finding: &&Value| doctor::text(finding, "finding").contains(chain);
        ensure!(tracked.iter().any(names), "{tracked:#?}");
        let faults = found.faults("firewall");
        let fault = faults
            .iter()
            .find(|fault| {
                let finding = doctor::text(fault, "finding");
                finding.contains(chain) && finding.contains("from 192.168.100.1:6443")
            })
            .with_context(|| format!("{faults:#?}"))?;
        node.netns.exec(doctor::text(fault, "command"))?;
        let tracked = sources(node, &[Family::V4])?;
        resync(node, &agent)?;
        cmd::wait_until(TIMEOUT, "the endpoint to be untracked", || {
            let known = status::endpoints(node)?;
            let is_free = known
                .get(&api_server(Family::V4))
                .is_some_and(String::is_empty);
            Ok(is_free.then_some(()))
        })?;
        connect(&path)?;
        none_is_tracked(node, &tracked)
    });
}

#[test]
fn firewalld_leaves_it_tracked() {
    let chain = "table inet firewalld, chain filter_INPUT";
    a_native_filter_leaves_it_tracked(FIREWALLD, chain, &[]);
}

#[test]
fn a_policy_leaves_it_tracked() {
    let chain = "table inet fw, chain input";
    a_native_filter_leaves_it_tracked(POLICY, chain, &[UPSTREAM]);
}
