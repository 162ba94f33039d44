// SPDX-License-Identifier: Apache-2.0

//! The VIP and the route of a ClusterIP as seen by programs that read the node's addresses and routes: a kubelet that
//! uses the first address of a link as the node's, and a mesh that routes by marks.

use anyhow::{Context as _, Result, ensure};
use tests::node::{Node, Topology, uplink_address};
use tests::proxy::Proxy;
use tests::transfer::{Server, exchange};
use tests::{Family, client, cmd, doctor};

use super::host::put_uplink_back;
use super::{BYTES, SHORT, TIMEOUT, with_services};

/// Returns the first global address of the uplink, which kubelet and flannel use as the node's.
fn first_address(node: &Node, family: Family) -> Result<String> {
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let shown = node
        .netns
        .exec(&format!("ip {flag} -o address show dev eth0"))?;
    let mut addresses = shown.lines().filter_map(|line| {
        let (ip, _) = line.split_whitespace().nth(3)?.split_once('/')?;
        Some(ip.to_owned())
    });
    let first = addresses.find(|ip| !ip.starts_with("fe80:"));
    first.with_context(|| format!("no address on eth0: {shown}"))
}

/// A VIP on the uplink is listed before the node's own address, which `doctor` reports: in IPv4 because it has scope
/// link, in IPv6 because it is the newer one. After the uplink has lost and regained its addresses, the node's is the
/// newer one. Programs that use the first address ignore a link-local VIP, as recommended for IPv4.
#[test]
fn a_vip_that_is_listed_first() {
    Node::test(Topology::Veth, |node| {
        let args = ["--backend=nftables", "--interface=eth0"];
        let mut agent = node.start_agent(&args)?;
        let listed_first = |families: &[Family]| -> Result<()> {
            for family in Family::ALL {
                let (vip, own) = (family.vip(), uplink_address(family));
                let expected = if families.contains(&family) { vip } else { own };
                let first = first_address(node, family)?;
                ensure!(first == expected.to_string(), "{first} and not {expected}");
            }
            let findings = doctor::doctor(node)?;
            let faults = findings.faults("first-address");
            for (family, fault) in families.iter().zip(&faults) {
                let (vip, own) = (family.vip(), uplink_address(*family));
                let expected = format!("{vip} is listed before {own} on eth0");
                let finding = doctor::text(fault, "finding");
                ensure!(finding.starts_with(&expected), "{finding}");
                ensure!(fault["verdict"] == "warning", "{fault}");
            }
            ensure!(faults.len() == families.len(), "{faults:#?}");
            Ok(())
        };
        listed_first(&Family::ALL)?;
        node.netns.exec("ip address flush dev eth0")?;
        for family in Family::ALL {
            cmd::wait_until(TIMEOUT, "the VIP to be back", || {
                let first = first_address(node, family);
                let is_back = first.is_ok_and(|ip| ip == family.vip().to_string());
                Ok(is_back.then_some(()))
            })?;
        }
        node.netns.exec("ip -6 route flush dev eth0 default")?;
        put_uplink_back(node, "eth0")?;
        listed_first(&[Family::V4])?;

        agent.stop(libc::SIGTERM)?;
        let recommended = "--ip-address=169.254.20.2,fd00:a91::2";
        let _agent = node.start_agent(&[&args[..], &[recommended]].concat())?;
        let findings = doctor::doctor(node)?;
        let faults = findings.faults("first-address");
        let is_of_ipv6 =
            |fault: &&serde_json::Value| doctor::text(fault, "finding").starts_with("fd00:a91::2 ");
        ensure!(faults.iter().all(is_of_ipv6), "{faults:#?}");
        Ok(())
    });
}

/// A mesh marks packets of pods to the ClusterIP and routes them by the mark, as ambient mode did: packets for the
/// ClusterIP end on the node, as with IPVS, because the route in the table `local` has precedence over that rule. If
/// the rule precedes that table, the packets follow the rule.
#[test]
fn a_mesh_that_routes_by_marks() {
    Node::test(Topology::Veth, |node| {
        let to = Family::V4.cluster_ip_socket();
        node.uplink
            .ip(&format!("address add {}/32 dev lo\n", to.ip()))?;
        let mesh = Server::listen(&node.uplink, to)?;
        node.netns.exec(&format!(
            "iptables-nft -t mangle -A PREROUTING -i pod0 -d {} -j MARK --set-mark 0x100",
            to.ip()
        ))?;
        let rule = "ip rule add pref 101 fwmark 0x100/0x100 lookup 101";
        node.netns.exec(rule)?;
        node.netns
            .exec("ip route add default via 192.168.100.1 dev eth0 table 101")?;
        let pod = &node.pods[0].netns;
        let mut stream = client::connect(pod, to, TIMEOUT).context("without an agent")?;
        exchange(&mut stream, BYTES, 1)?;
        ensure!(mesh.accepted() == 1, "it did not go to the mesh");

        let mut agent = node.start_agent(&with_services(&[]))?;
        let proxy = Proxy::start(node)?;
        let mut stream = client::connect(pod, to, TIMEOUT).context("with an agent")?;
        exchange(&mut stream, BYTES, 1)?;
        ensure!(
            (mesh.accepted(), proxy.accepted()) == (1, 1),
            "it went to the mesh"
        );
        drop(proxy);
        let dropped = client::connect(pod, to, SHORT);
        ensure!(dropped.is_err(), "without a proxy it goes to the mesh");

        // docs/with-others.md recommends this: the agent runs without that Service.
        agent.stop(libc::SIGTERM)?;
        let _agent = node.start_agent(&["--backend=ebpf", "--drain-timeout=0s"])?;
        cmd::wait_until(TIMEOUT, "the route to be gone", || {
            let routes = node.netns.exec("ip route show table local proto 112")?;
            Ok(routes.is_empty().then_some(()))
        })?;
        let mut stream = client::connect(pod, to, TIMEOUT).context("without the Service")?;
        exchange(&mut stream, BYTES, 1)?;
        ensure!(mesh.accepted() == 2, "it did not go to the mesh again");
        Ok(())
    });
}
