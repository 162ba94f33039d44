// SPDX-License-Identifier: Apache-2.0

//! kube-proxy's check of the Service range, the NAT of a hostPort, the policy chains of kube-router, and MPTCP sockets:
//! connections to VIP and ClusterIP beside them, and the findings of `doctor`.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, PORT, client, conntrack, doctor, skip, transfer};

use super::{BYTES, SHORT, TIMEOUT, with_services, works};

/// kube-proxy in nftables mode drops tracked connections of the node to a VIP that is an unallocated address of the
/// Service range: `doctor` names the rule, whatever the backend. Packets of pods pass other hooks.
#[test]
fn a_vip_of_the_service_range() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::install_with_service_range(&node.netns)?;
        let services = with_services(&[]);
        for (args, verdict, reached) in [
            (&["--backend=none"][..], "broken", &[][..]),
            (&["--backend=nftables"], "broken", &[Via::Vip]),
            (&services, "warning", &[Via::Vip, Via::ClusterIp]),
        ] {
            let mut agent = node.start_agent(args)?;
            let _proxy = Proxy::start(node)?;
            for path in node.paths() {
                let of_node = !path.client.starts_with("pod");
                if !of_node || reached.contains(&path.via) {
                    works(&path).with_context(|| format!("{args:?}"))?;
                } else if path.family == Family::V4 {
                    // Only one family is tested, because each attempt waits for its time-out.
                    let answer = client::connect(path.netns, path.destination(), SHORT);
                    ensure!(answer.is_err(), "{args:?}: {path} is not dropped");
                }
            }
            let faults = doctor::found(node, "service-range", verdict)?;
            for family in Family::ALL {
                let ip = if family == Family::V4 { "ip" } else { "ip6" };
                let vip = family.vip_socket();
                let named = format!("nf_tables table {ip} kube-proxy, chain cluster-ips-check");
                let is_named = |fault: &Value| {
                    let finding = doctor::text(fault, "finding");
                    finding.contains(&named) && finding.starts_with(&vip.to_string())
                };
                ensure!(faults.iter().any(is_named), "{vip}: {faults:#?}");
            }
            agent.stop(libc::SIGTERM)?;
        }

        // The VIP is the address that docs/operations.md recommends, and the connections are tracked.
        let vips = Family::ALL.map(|family| SocketAddr::new(family.vip_outside(), PORT));
        let args = ["--ip-address=169.254.20.2,fd00:a91::2", "--backend=none"];
        let _agent = node.start_agent(&args)?;
        for vip in vips {
            let _server = Server::listen(&node.netns, vip)?;
            for netns in [&node.netns, &node.pods[0].netns] {
                let mut stream = client::connect(netns, vip, TIMEOUT)
                    .with_context(|| format!("{vip} from {}", netns.name()))?;
                transfer::exchange(&mut stream, BYTES, 1)?;
            }
        }
        let findings = doctor::doctor(node)?;
        let faults = findings.faults("service-range");
        ensure!(faults.is_empty(), "{faults:#?}");
        Ok(())
    });
}

/// A process of the node with an MPTCP socket reaches the proxy, untracked. It sees the VIP as its peer: the kernel
/// calls the program on `getpeername(2)` for another socket than the program on `connect(2)`.
#[test]
fn an_mptcp_socket_of_the_node() {
    const TEST: &str = "an_mptcp_socket_of_the_node";
    Node::test(Topology::Veth, |node| {
        skip::clear(TEST)?;
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(&with_services(&[]))?;
        let proxy = Proxy::start(node)?;
        for family in Family::ALL {
            for to in [family.cluster_ip_socket(), family.vip_socket()] {
                let before = proxy.accepted();
                let mut stream = match client::connect_mptcp(&node.netns, to, TIMEOUT) {
                    Err(error) if is_without_mptcp(&error) => {
                        return skip::record(TEST, "this kernel has no MPTCP, or it is off");
                    }
                    stream => stream.with_context(|| to.to_string())?,
                };
                transfer::exchange(&mut stream, BYTES, 1).with_context(|| to.to_string())?;
                ensure!(proxy.accepted() > before, "{to}: not by the proxy");
                let peer = stream.peer_addr()?;
                ensure!(peer == family.vip_socket(), "{to}: the peer is {peer}");
            }
            let entries = conntrack::list(&node.netns, family)?;
            ensure!(entries.is_empty(), "{entries:#?}");
        }
        Ok(())
    });
}

/// Returns true if the sysctl disables MPTCP or the kernel does not know the protocol.
fn is_without_mptcp(error: &std::io::Error) -> bool {
    let refused = [
        libc::ENOPROTOOPT,
        libc::EPROTONOSUPPORT,
        libc::ESOCKTNOSUPPORT,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| refused.contains(&code))
}

/// A pod has hostPort 443: the portmap plugin translates packets to port 443 of an address of the node. Untracked
/// connections to the VIP are not affected; tracked ones are, and `doctor` reports it.
#[test]
fn a_host_port_on_the_port_of_the_vip() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let pod = &node.pods[1];
        let behind = SocketAddr::new(pod.address(Family::V4), 8443);
        let server = Server::listen(&pod.netns, behind)?;
        for rule in [
            "-N CNI-HOSTPORT-DNAT",
            "-N CNI-DN-0123456789abcdef",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 80,443 -j CNI-DN-0123456789abcdef",
            &format!(
                "-A CNI-DN-0123456789abcdef -p tcp -m tcp --dport 443 -j DNAT --to-destination {behind}"
            ),
        ] {
            node.netns.exec(&format!("iptables-nft -t nat {rule}"))?;
        }
        let places = "iptables-nft table nat, chain CNI-DN-0123456789abcdef";
        for (args, verdict) in [
            (with_services(&[]), "warning"),
            (vec!["--backend=nftables"], "warning"),
            (vec!["--backend=none"], "broken"),
        ] {
            let mut agent = node.start_agent(&args)?;
            let proxy = Proxy::start(node)?;
            let (mut to_proxy, mut to_pod) = (proxy.accepted(), server.accepted());
            for path in node.paths().iter().filter(|path| path.client != "pod1") {
                works(path).with_context(|| format!("{args:?}"))?;
                let is_taken =
                    verdict == "broken" && path.family == Family::V4 && path.via == Via::Vip;
                if is_taken {
                    to_pod += 1;
                } else {
                    to_proxy += 1;
                }
                ensure!(
                    (proxy.accepted(), server.accepted()) == (to_proxy, to_pod),
                    "{args:?}, {path}: it went elsewhere"
                );
            }
            let faults = doctor::found(node, "local-dnat", verdict)?;
            let is_named = |fault: &Value| doctor::text(fault, "finding").contains(places);
            ensure!(faults.iter().all(is_named), "{faults:#?}");
            agent.stop(libc::SIGTERM)?;
        }
        Ok(())
    });
}

/// kube-router's chains for a pod with a policy accept packets of the node to it if conntrack knows the connection or
/// if their source is local to the node, and reject all others. VIP and ClusterIP are local, so untracked replies pass
/// without rules of the agent.
#[test]
fn a_policy_that_rejects_what_is_not_local() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let pod = &node.pods[0];
        for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
            let address = pod.address(family);
            for rule in [
                "-N KUBE-POD-FW".to_owned(),
                format!("-A OUTPUT -d {address} -j KUBE-POD-FW"),
                "-A KUBE-POD-FW -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
                format!("-A KUBE-POD-FW -m addrtype --src-type LOCAL -d {address} -j ACCEPT"),
                "-A KUBE-POD-FW -j REJECT".to_owned(),
            ] {
                node.netns.exec(&format!("{program}-nft {rule}"))?;
            }
        }
        let args = with_services(&["--accept-rules=never"]);
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        for path in node.paths() {
            works(&path)?;
        }
        for family in Family::ALL {
            let entries = conntrack::list(&node.netns, family)?;
            ensure!(entries.is_empty(), "{entries:#?}");
        }
        let faults = doctor::doctor(node)?;
        let faults = faults.faults("firewall");
        ensure!(faults.is_empty(), "{faults:#?}");
        Ok(())
    });
}
