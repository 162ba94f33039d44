// SPDX-License-Identifier: Apache-2.0

//! Cases from the field, each as reported for another data plane: filters, policy routes, sockets bound to a link,
//! foreign qdiscs, saved rulesets. Foreign NAT and the Service range are in `field/nat.rs`, programs of the host in
//! `field/host.rs`, the node's addresses and routes as other programs read them in `field/addresses.rs`, unusual
//! proxies in `field/proxies.rs`, and idle connections beside churn and floods in `churn.rs`.

mod addresses;
mod host;
mod nat;
mod proxies;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::TRANSLATE;
use tests::client;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, gateway_address, uplink_address};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, cmd, conntrack, doctor, status, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The time-out of a connection that must fail.
const SHORT: Duration = Duration::from_millis(1500);
const BYTES: u64 = 10_000;

fn with_services(more: &[&'static str]) -> Vec<&'static str> {
    [&["--backend=ebpf"], &TRANSLATE[..], more].concat()
}

fn works(path: &Path<'_>) -> Result<TcpStream> {
    let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
        .with_context(|| path.to_string())?;
    transfer::exchange(&mut stream, BYTES, 1).with_context(|| path.to_string())?;
    Ok(stream)
}

/// A host firewall accepts outgoing packets only if they belong to connections that conntrack knows, or if they stay on
/// the node.
#[test]
fn a_policy_that_drops_what_the_node_sends() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        for (program, icmp) in [("iptables", "icmp"), ("ip6tables", "ipv6-icmp")] {
            for rule in [
                "-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
                "-A OUTPUT -o lo -j ACCEPT",
                &format!("-A OUTPUT -p {icmp} -j ACCEPT"),
                "-P OUTPUT DROP",
            ] {
                node.netns.exec(&format!("{program}-nft {rule}"))?;
            }
        }
        let agent = node.start_agent(&with_services(&[]))?;
        let _proxy = Proxy::start(node)?;
        for path in node.paths() {
            works(&path)?;
        }
        // The agent's own rules accept packets that the policy would drop.
        let faults = doctor::doctor(node)?;
        let faults = faults.faults("firewall");
        ensure!(faults.is_empty(), "{faults:#?}");

        // No rule of another table can do so: for a native firewall, `doctor` reports where packets are dropped, and
        // the remedy.
        agent.signal(libc::SIGSTOP)?;
        let native = "table inet fw {\n\
             chain out { type filter hook output priority 0; policy drop; oifname \"lo\" accept\n\
             ct state established,related accept\n meta l4proto icmp accept; meta l4proto ipv6-icmp accept\n\
             }\n}";
        node.netns.feed("nft -f -", native)?;
        let paths = node.paths();
        let of_pods: Vec<_> = paths.iter().filter(|path| path.client == "pod0").collect();
        let refused = client::connect(of_pods[0].netns, of_pods[0].destination(), SHORT);
        ensure!(
            refused.is_err(),
            "{}: its replies are not dropped",
            of_pods[0]
        );
        let faults = doctor::found(node, "firewall", "broken")?;
        for family in Family::ALL {
            // The node's own processes may reach the VIP through `lo`; only packets of pods have a Service's address.
            for (end, verdict) in [
                (family.vip_socket(), "warning"),
                (family.cluster_ip_socket(), "broken"),
            ] {
                let place = "nf_tables table inet fw, chain out";
                let named = format!("{place} drops what is sent untracked from {end}");
                let is_named = |fault: &&Value| doctor::text(fault, "finding").contains(&named);
                let fault = faults
                    .iter()
                    .find(is_named)
                    .with_context(|| named.clone())?;
                ensure!(fault["verdict"] == verdict, "{fault}");
                let line = doctor::text(fault, "command");
                cmd::run(node.netns.command("sh").args(["-c", line]), "")?;
            }
        }
        for path in of_pods {
            works(path).context("with the rules that the doctor proposes")?;
        }
        agent.signal(libc::SIGCONT)
    });
}

/// The endpoint of the Service, which is reachable through the uplink only.
fn endpoint(family: Family) -> SocketAddr {
    SocketAddr::new(gateway_address(family), 6443)
}

/// A process that binds its socket to the uplink intends to use that link: the agent does not change its connection.
#[test]
fn a_socket_that_is_bound_to_a_link() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_to(&node.netns, endpoint)?;
        let _servers = [
            Server::listen(&node.uplink, endpoint(Family::V4))?,
            Server::listen(&node.uplink, endpoint(Family::V6))?,
        ];
        let _agent = node.start_agent(&with_services(&[]))?;
        let proxy = Proxy::start(node)?;
        for family in Family::ALL {
            let to = family.cluster_ip_socket();
            let mut stream = client::connect_by(&node.netns, "eth0", to, TIMEOUT)
                .with_context(|| format!("{family:?}"))?;
            transfer::exchange(&mut stream, BYTES, 1)?;
            ensure!(proxy.accepted() == 0, "{family:?}: it came to the proxy");
        }
        Ok(())
    });
}

/// Rules precede the local table: a pod's link has a routing table of its own, which contains the endpoint of the
/// Service.
#[test]
fn a_policy_rule_before_the_local_table() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_to(&node.netns, endpoint)?;
        let servers = [
            Server::listen(&node.uplink, endpoint(Family::V4))?,
            Server::listen(&node.uplink, endpoint(Family::V6))?,
        ];
        let link = &node.pods[0].host_link;
        for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
            let gateway = gateway_address(family);
            for line in [
                format!("ip {flag} rule add pref 20 lookup local"),
                format!("ip {flag} rule add pref 10 iif {link} lookup 101"),
                format!("ip {flag} rule del pref 0"),
                format!("ip {flag} route add default via {gateway} dev eth0 table 101"),
            ] {
                node.netns.exec(&line)?;
            }
        }
        let _agent = node.start_agent(&with_services(&[]))?;
        let proxy = Proxy::start(node)?;
        for family in Family::ALL {
            let path = |pod: usize| Path {
                client: format!("pod{pod}"),
                netns: &node.pods[pod].netns,
                via: Via::ClusterIp,
                family,
            };
            let before = proxy.accepted();
            works(&path(0)).context("by the rule")?;
            ensure!(
                proxy.accepted() == before,
                "{family:?}: it came to the proxy"
            );
            works(&path(1)).context("without a rule")?;
            ensure!(
                proxy.accepted() > before,
                "{family:?}: it did not come to the proxy"
            );
        }
        ensure!(servers.iter().all(|server| server.accepted() > 0));
        Ok(())
    });
}

/// The bandwidth plugin adds an `ingress` qdisc while a pod is set up, and fails if one exists already.
#[test]
fn an_ingress_qdisc_that_comes_right_after_the_link() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&with_services(&["--tc-attach=clsact"]))?;
        let _proxy = Proxy::start(node)?;
        let link = node.add_pod(Topology::Veth)?.host_link.clone();
        std::thread::sleep(Duration::from_millis(500));
        node.netns
            .exec(&format!("tc qdisc add dev {link} handle ffff: ingress"))
            .context("the plugin")?;
        has_our_program(node, &link)?;
        let paths = node.paths();
        let of_pod = paths.iter().filter(|path| path.client == "pod2");
        for path in of_pod {
            works(path)?;
        }
        for family in Family::ALL {
            let entries = conntrack::list(&node.netns, family)?;
            ensure!(entries.is_empty(), "{entries:#?}");
        }
        Ok(())
    });
}

fn has_our_program(node: &Node, link: &str) -> Result<()> {
    cmd::wait_until(TIMEOUT, "the program on the link", || {
        let shown = node
            .netns
            .exec(&format!("tc filter show dev {link} ingress"))?;
        Ok(shown.contains("vip_ingress").then_some(()))
    })
}

/// The qdisc exists first: the agent's filter is added beside its filters, no repair repeats, and a single pass
/// succeeds.
#[test]
fn an_ingress_qdisc_that_was_there_first() {
    Node::test(Topology::Veth, |node| {
        for pod in &node.pods {
            let link = &pod.host_link;
            node.netns
                .exec(&format!("tc qdisc add dev {link} handle ffff: ingress"))?;
        }
        let args = with_services(&["--tc-attach=clsact", "--daemon=false"]);
        let output = node.run_agent(&args)?;
        ensure!(output.status.success(), "one pass: {output:?}");
        let args = with_services(&["--tc-attach=clsact", "--sync-interval=200ms"]);
        let mut agent = node.start_agent(&args)?;
        std::thread::sleep(Duration::from_secs(1));
        let log = agent.log();
        let attached = log.matches("attach vip_ingress to link pod").count();
        ensure!(
            attached == node.pods.len(),
            "repaired again and again: {log}"
        );
        let _proxy = Proxy::start(node)?;
        for pod in &node.pods {
            has_our_program(node, &pod.host_link)?;
        }
        for path in node.paths() {
            works(&path)?;
        }
        agent.stop(libc::SIGTERM)?;
        clean_up(node, node.netns.command(tests::agent::binary()?))?;
        for pod in &node.pods {
            let shown = node
                .netns
                .exec(&format!("tc qdisc show dev {}", pod.host_link))?;
            ensure!(shown.contains("ingress ffff:"), "it is gone: {shown}");
        }
        Ok(())
    });
}

fn clean_up(node: &Node, mut command: std::process::Command) -> Result<()> {
    command
        .arg("cleanup")
        .arg("--drain-timeout=0s")
        .arg(format!("--bpffs={}", node.agent_bpffs().display()))
        .arg(format!("--run-dir={}", node.run_dir().display()));
    let output = node.run(command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// A clsact qdisc that the agent has created holds a foreign filter of a kind that no library here can parse: the qdisc
/// remains when the agent cleans up.
#[test]
fn a_foreign_filter_on_our_qdisc() {
    Node::test(Topology::Veth, |node| {
        let mut agent = node.start_agent(&["--backend=ebpf", "--tc-attach=clsact"])?;
        let link = node.pods[0].host_link.clone();
        has_our_program(node, &link)?;
        node.netns.exec(&format!(
            "tc filter add dev {link} ingress pref 77 protocol ip u32 match ip dst 192.0.2.1/32 classid 1:1"
        ))?;
        agent.stop(libc::SIGTERM)?;
        clean_up(node, node.netns.command(tests::agent::binary()?))?;
        let shown = node
            .netns
            .exec(&format!("tc filter show dev {link} ingress"))?;
        ensure!(
            shown.contains("u32") && !shown.contains("vip_ingress"),
            "{shown}"
        );
        let other = &node.pods[1].host_link;
        let shown = node.netns.exec(&format!("tc qdisc show dev {other}"))?;
        ensure!(!shown.contains("clsact"), "ours is left: {shown}");
        Ok(())
    });
}

/// Another classifier with the priority of our filter was added later: the kernel runs it first, and it accepts packets
/// finally. `status` and `doctor` report this, and the command that `doctor` prints moves ours to the front.
#[test]
fn a_later_filter_of_our_priority() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&with_services(&["--tc-attach=clsact"]))?;
        let _proxy = Proxy::start(node)?;
        KubeProxy::IptablesNft.install(&node.netns)?;
        let paths = node.paths();
        let is_one = |path: &&Path| {
            path.client == "pod0" && path.via == Via::ClusterIp && path.family == Family::V4
        };
        let path = paths.iter().find(is_one).context("no such path")?;
        let entries = || -> Result<usize> {
            let stream = works(path)?;
            let entries = conntrack::list(&node.netns, path.family)?;
            Ok(conntrack::of_client(&entries, stream.local_addr()?).len())
        };
        let hidden = || Ok::<_, anyhow::Error>(status::read(node)?["hidden"].clone());
        let link = node.pods[0].host_link.clone();
        has_our_program(node, &link)?;
        ensure!(entries()? == 0, "tracked with nothing in front");
        ensure!(hidden()? == json!([]), "{}", hidden()?);

        // The foreign filter matches everything and ends the chain.
        let add = format!(
            "tc filter add dev {link} ingress protocol all pref 1 bpf bytecode '1,6 0 0 4294967295' classid 1:1"
        );
        cmd::run(node.netns.command("sh").args(["-c", &add]), "")?;
        ensure!(entries()? == 1, "it does not hide ours");
        let by = json!([{ "link": link, "by": ["a filter of kind bpf (priority 1)"] }]);
        ensure!(hidden()? == by, "{}", hidden()?);
        let faults = doctor::found(node, "tc-programs", "warning")?;
        let cure = doctor::text(&faults[0], "command");
        cmd::run(node.netns.command("sh").args(["-c", cure]), "")?;
        cmd::wait_until(TIMEOUT, "ours to be in front", || {
            Ok((hidden()? == json!([])).then_some(()))
        })?;
        has_our_program(node, &link)?;
        ensure!(entries()? == 0, "tracked with ours in front");
        let findings = doctor::doctor(node)?;
        let faults = findings.faults("tc-programs");
        ensure!(faults.is_empty(), "{faults:#?}");
        Ok(())
    });
}

/// `nft -f` can load the output of `nft list ruleset` again, with every backend that has tables.
#[test]
fn a_saved_ruleset_loads_again() {
    for args in [with_services(&[]), vec!["--backend=nftables"]] {
        Node::test(Topology::Veth, |node| {
            let _agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            let saved = node.dir().join("ruleset");
            let ruleset = node.netns.exec("nft list ruleset")?;
            ensure!(ruleset.contains("table ip6 proxy-agent"), "{ruleset}");
            fs::write(&saved, format!("flush ruleset\n{ruleset}"))?;
            node.netns.exec(&format!("nft -c -f {}", saved.display()))?;
            node.netns.exec(&format!("nft -f {}", saved.display()))?;
            for path in node.paths().iter().filter(|path| path.via == Via::Vip) {
                works(path)?;
            }
            Ok(())
        });
    }
}

/// A neighbour on the uplink that routes VIP and ClusterIP to the node gets no reply from the proxy, and no reply to
/// ARP requests and neighbour solicitations for them.
#[test]
fn a_neighbour_that_routes_both_addresses_to_the_node() {
    Node::test(Topology::Veth, |node| {
        for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
            let (node_ip, length) = (uplink_address(family), family.host_prefix());
            for ip in [family.vip(), family.cluster_ip()] {
                node.uplink
                    .exec(&format!("ip {flag} route add {ip}/{length} via {node_ip}"))?;
            }
        }
        let _agent = node.start_agent(&with_services(&[]))?;
        let proxy = Proxy::start(node)?;
        let stranger = Server::listen(&node.netns, "0.0.0.0:8080".parse()?)?;
        for family in Family::ALL {
            // Afterwards the programs have seen a decided connection and have stored a listener.
            let path = Path {
                client: "pod0".to_owned(),
                netns: &node.pods[0].netns,
                via: Via::ClusterIp,
                family,
            };
            works(&path)?;
            for to in [family.vip_socket(), family.cluster_ip_socket()] {
                let answer = client::connect(&node.uplink, to, SHORT);
                let kind = answer.map(drop).map_err(|error| error.kind());
                ensure!(
                    kind == Err(std::io::ErrorKind::TimedOut),
                    "{to} answers a neighbour: {kind:?}"
                );
            }
        }
        let before = proxy.accepted();
        let other_port = SocketAddr::new(Family::V4.cluster_ip(), 8080);
        for netns in [&node.uplink, &node.pods[0].netns] {
            ensure!(
                client::connect(netns, other_port, SHORT).is_err(),
                "{other_port}"
            );
        }
        ensure!(proxy.accepted() == before && stranger.accepted() == 0);
        // The node also replies to no ARP request or neighbour solicitation for the addresses from a neighbour that has
        // the route on its own link.
        for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
            let length = family.host_prefix();
            for ip in [family.vip(), family.cluster_ip()] {
                node.uplink
                    .exec(&format!("ip {flag} route replace {ip}/{length} dev node"))?;
                let to = SocketAddr::new(ip, tests::PORT);
                ensure!(client::connect(&node.uplink, to, SHORT).is_err(), "{to}");
                let known = node.uplink.exec(&format!("ip {flag} neigh show {ip}"))?;
                ensure!(!known.contains("lladdr"), "the node answered: {known}");
            }
        }
        Ok(())
    });
}
