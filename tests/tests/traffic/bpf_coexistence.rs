// SPDX-License-Identifier: Apache-2.0

//! Translation beside other programs: on the same TC hooks, before and after ours, on connect(2), and beside IPVS.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::agent::TRANSLATE;
use tests::bpf::{self, ForeignProgram, Hook, Place};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::{Family, all_paths, cmd, conntrack, doctor, skip, status, streams};

const TIMEOUT: Duration = Duration::from_secs(5);

fn every_way_works_untracked(node: &Node) -> Result<()> {
    for path in node.paths() {
        let _alive = all_paths::exchange_as_dialled(&path, TIMEOUT, 1_000_000)?;
        let entries = conntrack::list(&node.netns, path.family)?;
        ensure!(entries.is_empty(), "{path}: conntrack knows {entries:#?}");
    }
    Ok(())
}

/// Attaches one foreign program to each hook of each pod's link.
fn attach(node: &Node, place: Place) -> Result<Vec<ForeignProgram>> {
    let mut programs = Vec::new();
    for pod in &node.pods {
        for hook in Hook::ALL {
            programs.push(ForeignProgram::attach(
                &node.netns,
                &pod.host_link,
                hook,
                place,
            )?);
        }
    }
    Ok(programs)
}

/// Returns the IDs of the programs on the first pod's link.
fn on_the_link(node: &Node) -> Result<[Vec<u32>; 2]> {
    let link = &node.pods[0].host_link;
    Ok([
        bpf::tcx_programs(&node.netns, link, Hook::Ingress)?,
        bpf::tcx_programs(&node.netns, link, Hook::Egress)?,
    ])
}

#[test]
fn tcx_programs() -> Result<()> {
    if skip::without_tcx("beside-tcx-programs")? {
        return Ok(());
    }
    for topology in [Topology::Veth, Topology::BridgeNetfilter] {
        Node::test(topology, |node| {
            KubeProxy::IptablesNft.install(&node.netns)?;
            let mut foreign = attach(node, Place::First)?;
            foreign.extend(attach(node, Place::Last)?);
            let before = on_the_link(node)?;
            let args = ["--backend=ebpf", "--tc-attach=tcx", "--cleanup"];
            let mut agent = node.start_agent(&[&TRANSLATE[..], &args].concat())?;
            let _proxy = Proxy::start(node)?;
            every_way_works_untracked(node).context("with those that were there before")?;
            foreign.extend(attach(node, Place::First)?);
            foreign.extend(attach(node, Place::Last)?);
            every_way_works_untracked(node).context("with those that came later")?;
            let with_all = on_the_link(node)?;
            for (hook, programs) in Hook::ALL.into_iter().zip(&with_all) {
                // There are two before ours and two after it.
                ensure!(programs.len() == 5, "{hook:?}: {programs:?}");
            }
            foreign.truncate(2 * 2 * node.pods.len());
            agent.stop(libc::SIGTERM)?;
            ensure!(on_the_link(node)? == before, "others than before");
            Ok(())
        });
    }
    Ok(())
}

/// There are foreign filters on the clsact qdisc, with higher and with lower priority.
fn beside_filters(tc_attach: &str) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let mut links = Vec::new();
        for pod in &node.pods {
            let link = &pod.host_link;
            node.netns
                .exec(&format!("tc qdisc add dev {link} clsact"))?;
            for hook in ["ingress", "egress"] {
                for (pref, port) in [(3, 443), (60_000, 8443)] {
                    node.netns.exec(&format!(
                        "tc filter add dev {link} {hook} protocol all pref {pref} u32 \
                         match ip dport {port} 0xffff classid 1:1"
                    ))?;
                }
                links.push(format!("tc filter show dev {link} {hook}"));
            }
        }
        let show =
            || -> Result<String> { links.iter().map(|line| node.netns.exec(line)).collect() };
        let before = show()?;
        let args = ["--backend=ebpf", tc_attach, "--cleanup"];
        let mut agent = node.start_agent(&[&TRANSLATE[..], &args].concat())?;
        let _proxy = Proxy::start(node)?;
        every_way_works_untracked(node)?;
        agent.stop(libc::SIGTERM)?;
        let after = show()?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(())
    });
}

#[test]
fn clsact_filters_and_tcx() -> Result<()> {
    if !skip::without_tcx("tcx-beside-clsact-filters")? {
        beside_filters("--tc-attach=tcx");
    }
    Ok(())
}

#[test]
fn clsact_filters() {
    beside_filters("--tc-attach=clsact");
}

#[test]
fn programs_on_connect() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _first = [
            ForeignProgram::attach_to_connect(false)?,
            ForeignProgram::attach_to_connect(true)?,
        ];
        let newest = || -> Result<[Option<u32>; 2]> {
            Ok([
                bpf::connect_programs(false)?.pop(),
                bpf::connect_programs(true)?.pop(),
            ])
        };
        let foreign = newest()?;
        let args = ["--backend=ebpf", "--cleanup"];
        let mut agent = node.start_agent(&[&TRANSLATE[..], &args].concat())?;
        let _proxy = Proxy::start(node)?;
        every_way_works_untracked(node).context("with those that were there before")?;
        let _second = [
            ForeignProgram::attach_to_connect(false)?,
            ForeignProgram::attach_to_connect(true)?,
        ];
        every_way_works_untracked(node).context("with those that came later")?;
        agent.stop(libc::SIGTERM)?;
        // Other tests' agents attach to the same cgroup, so only the programs of this test are checked.
        for (v6, program) in [false, true].into_iter().zip(foreign) {
            let program = program.context("a program was just attached")?;
            let left = bpf::connect_programs(v6)?;
            ensure!(left.contains(&program), "{program} is gone: {left:?}");
        }
        Ok(())
    });
}

/// Two agents, as on two nodes, run on the same machine and the same cgroup: each translates in its own network
/// namespace only.
#[test]
fn two_nodes_on_one_machine() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf", "--cleanup"]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        every_way_works_untracked(node).context("alone")?;

        let other = Node::with_pods(Topology::Bridge, 1)?;
        KubeProxy::Nftables.install(&other.netns)?;
        let mut other_agent = other.start_agent(&args)?;
        let _other_proxy = Proxy::start(&other)?;
        every_way_works_untracked(&other).context("the second node")?;
        every_way_works_untracked(node).context("beside a second node")?;
        other_agent.stop(libc::SIGTERM)?;
        every_way_works_untracked(node).context("after the second node")
    });
}

/// Makes every ClusterIP an address of the node, as kube-proxy does in IPVS mode.
fn add_ipvs_link(node: &Node) -> Result<()> {
    // kube-proxy creates a dummy link. A bridge is supported by every kernel, and carries addresses as well.
    node.netns.ip("link add kube-ipvs0 type bridge\n")?;
    for family in Family::ALL {
        let (address, len) = (family.cluster_ip(), family.host_prefix());
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        node.netns.ip(&format!(
            "address add {address}/{len} dev kube-ipvs0{nodad}\n"
        ))?;
    }
    Ok(())
}

/// Waits until the agent handles the right number of Services: it leaves `left` of them unchanged and reports why.
fn wait_until_left(node: &Node, left: usize) -> Result<()> {
    let what = format!("{left} Services to be left alone, and nothing else to be done");
    cmd::wait_until(Duration::from_secs(30), &what, || {
        let status = status::read(node)?;
        let services = status::array(&status["services"])?.iter();
        let why = services.filter_map(|service| service["undecided"].as_str());
        let is_told = why.filter(|why| why.contains("kube-ipvs0")).count() == left;
        let drift = status::array(&status["drift"]["changes"])?;
        Ok((is_told && drift.is_empty()).then_some(()))
    })
}

/// Checks that no object of ours affects the ClusterIPs.
fn nothing_is_left(node: &Node) -> Result<()> {
    for family in ["-4", "-6"] {
        let line = format!("ip {family} route show table local proto 112");
        let routes = node.netns.exec(&line)?;
        ensure!(routes.is_empty(), "{routes}");
    }
    let tables = node.netns.exec("nft list tables")?;
    ensure!(!tables.contains("proxy-agent_services"), "{tables}");
    for pins in ["sockets", "links_egress"] {
        let pins = node.agent_bpffs().join(pins);
        let names: Vec<_> = fs::read_dir(&pins)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        ensure!(names.is_empty(), "{names:?}");
    }
    Ok(())
}

/// Checks that every path works and that connections to ClusterIPs are tracked, because kube-proxy handles them.
fn every_way_works_as_without_services(node: &Node) -> Result<()> {
    for path in node.paths() {
        let stream = all_paths::exchange(&path, TIMEOUT, 10_000)?;
        let entries = conntrack::list(&node.netns, path.family)?;
        let tracked = conntrack::of_client(&entries, stream.local_addr()?).len();
        let expected = usize::from(path.via == Via::ClusterIp);
        ensure!(tracked == expected, "{path}: {entries:#?}");
    }
    Ok(())
}

/// kube-proxy changes to IPVS mode and back: its link with the ClusterIPs is created and deleted. Live connections
/// continue, and kube-proxy handles new ones at once. In place of IPVS, rules that every kernel supports handle the
/// connections.
#[test]
fn a_cluster_ip_becomes_an_address_of_the_node() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf", "--drain-timeout=5m"]].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        every_way_works_untracked(node)?;
        let streams = streams::open(node)?;
        add_ipvs_link(node)?;
        cmd::wait_until(TIMEOUT, "the agent to ignore the Services", || {
            let left = agent
                .log()
                .matches(":443: it is an address of the node")
                .count();
            Ok((left == 2).then_some(()))
        })?;
        every_way_works_as_without_services(node).context("while connections are drained")?;
        streams::all_go_on(&streams)?;
        streams::all_end_intact(streams)?;
        wait_until_left(node, 2)?;
        nothing_is_left(node)?;
        every_way_works_as_without_services(node)?;
        let faults = doctor::found(node, "backend", "warning")?;
        ensure!(faults[0].to_string().contains("kube-ipvs0"), "{faults:?}");
        let all = doctor::doctor(node)?;
        ensure!(all.all_faults().len() == 1, "{:#?}", all.all_faults());

        // This also holds at the start; without the link the agent would refuse such an address.
        ensure!(agent.stop(libc::SIGTERM)?.success(), "it failed");
        let mut agent = node.start_agent(&args)?;
        wait_until_left(node, 2)?;
        nothing_is_left(node)?;
        every_way_works_as_without_services(node).context("from the start")?;

        node.netns.ip("link delete kube-ipvs0\n")?;
        wait_until_left(node, 0)?;
        node.netns.exec("conntrack -F")?;
        every_way_works_untracked(node).context("the link is gone")?;
        ensure!(agent.stop(libc::SIGTERM)?.success(), "it failed");
        Ok(())
    });
}

/// With IPVS itself, there is a virtual server at each ClusterIP.
#[test]
fn ipvs() -> Result<()> {
    let test = "translation-beside-ipvs";
    skip::clear(test)?;
    if !Path::new("/proc/net/ip_vs").exists() {
        return skip::record(
            test,
            "this kernel has no IPVS (no ip_vs); that the ClusterIP is an address of the node, as \
             with IPVS, is tested with kube-proxy's rules in its place",
        );
    }
    Node::test(Topology::Veth, |node| {
        add_ipvs_link(node)?;
        // kube-proxy sets this.
        node.netns.sysctl("net/ipv4/vs/conntrack", "1")?;
        for family in Family::ALL {
            let (service, vip) = (family.cluster_ip_socket(), family.vip_socket());
            node.netns.exec(&format!("ipvsadm -A -t {service} -s rr"))?;
            node.netns
                .exec(&format!("ipvsadm -a -t {service} -r {vip} -m"))?;
        }
        let _agent = node.start_agent(&[&TRANSLATE[..], &["--backend=ebpf"]].concat())?;
        let _proxy = Proxy::start(node)?;
        wait_until_left(node, 2)?;
        nothing_is_left(node)?;
        for path in node.paths() {
            all_paths::exchange(&path, TIMEOUT, 10_000)?;
        }
        let virtual_servers = node.netns.exec("ipvsadm -L -n --stats")?;
        if virtual_servers.is_empty() {
            bail!("IPVS has lost its virtual servers");
        }
        Ok(())
    });
    Ok(())
}
