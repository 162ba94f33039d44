// SPDX-License-Identifier: Apache-2.0

//! Several agents on one node, each with its own instance and VIPs: they run side by side with any backends without
//! affecting each other, in every state of one of them. Agents that cannot run side by side are refused, and change
//! nothing.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::Agent;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology};
use tests::ownership::{self, FIRST, SECOND};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::stream::Live;
use tests::streams::{all_end_intact, all_go_on};
use tests::transfer::{self, Server};
use tests::{Family, client, cmd, conntrack, skip, snapshot};

const TIMEOUT: Duration = Duration::from_secs(10);
const BYTES: u64 = 50_000;

/// The VIPs of the second agent.
const OTHER_VIPS: [&str; 2] = ["172.20.0.7", "fd00:172::7"];
/// The ClusterIPs of the second agent.
const OTHER_SERVICES: [&str; 2] = ["172.20.0.1", "fd00:172::1"];

/// Returns the arguments of a run of the second agent.
fn second(node: &Node, args: &[&str]) -> Vec<String> {
    let [v4, v6] = OTHER_VIPS;
    let mut line = vec![
        "--instance=b".to_owned(),
        format!("--ip-address={v4},{v6}"),
        format!("--run-dir={}", node.dir().join("run-b").display()),
        format!("--bpffs={}", other_pins(node).display()),
    ];
    line.extend(args.iter().map(|&arg| arg.to_owned()));
    line
}

fn other_pins(node: &Node) -> std::path::PathBuf {
    node.bpffs().join("proxy-agent-b/v2")
}

fn start(node: &Node, args: &[String]) -> Result<Agent> {
    node.start_agent(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn clients(node: &Node) -> Vec<&Netns> {
    let pods = node.pods.iter().map(|pod| &pod.netns);
    pods.chain([&node.netns]).collect()
}

fn endpoints(addresses: [&str; 2], port: u16) -> Result<[SocketAddr; 2]> {
    let [v4, v6] = addresses.map(str::parse::<IpAddr>);
    Ok([SocketAddr::new(v4?, port), SocketAddr::new(v6?, port)])
}

/// Starts the second proxy.
fn serve(node: &Node, vips: &[SocketAddr]) -> Result<Vec<Server>> {
    let listen = |vip: &SocketAddr| Server::listen(&node.netns, *vip);
    vips.iter().map(listen).collect()
}

/// Connects from every client to each of these endpoints, and checks that this leaves no conntrack entry.
fn untracked(node: &Node, endpoints: &[SocketAddr]) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for netns in clients(node) {
        for &to in endpoints {
            let what = || format!("{} to {to}", netns.name());
            let mut stream = client::connect(netns, to, TIMEOUT).with_context(what)?;
            transfer::exchange(&mut stream, BYTES, 3).with_context(what)?;
            let from = stream.local_addr()?;
            for family in Family::ALL {
                let entries = conntrack::list_all(&node.netns, family)?;
                let found = conntrack::of_client(&entries, from);
                ensure!(found.is_empty(), "{}: {found:#?}", what());
            }
            streams.push(stream);
        }
    }
    Ok(streams)
}

/// Checks that connections to the first agent's VIPs are untracked, and that its ClusterIPs work through kube-proxy.
fn first_works(node: &Node) -> Result<()> {
    untracked(node, &Family::ALL.map(Family::vip_socket))?;
    for path in node
        .paths()
        .iter()
        .filter(|path| path.via == Via::ClusterIp)
    {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| path.to_string())?;
        transfer::exchange(&mut stream, BYTES, 4).with_context(|| path.to_string())?;
    }
    Ok(())
}

fn live(streams: Vec<TcpStream>) -> Result<Vec<Live>> {
    (1..)
        .zip(streams)
        .map(|(seed, stream)| Live::start(&format!("{:?}", stream.peer_addr()?), &stream, seed))
        .collect()
}

/// Runs two agents from start to end, and kills, restarts and removes one while the other runs.
fn side_by_side(first: &[&str], second_args: &[&str], port: u16) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let ports = format!("--port={port}");
        let of_second = second(node, &[second_args, &[&ports]].concat());
        let mut a = node.start_agent(first)?;
        let mut b = start(node, &of_second)?;
        let _proxy = Proxy::start(node)?;
        let others = endpoints(OTHER_VIPS, port)?;
        let _servers = serve(node, &others)?;
        first_works(node)?;
        let mine = live(untracked(node, &Family::ALL.map(Family::vip_socket))?)?;
        let theirs = live(untracked(node, &others)?)?;

        // The first agent is killed and restarted, then the second is restarted: the other one is not affected.
        let before = ownership::of(node, &SECOND)?;
        ensure!(before.contains("172.20.0.7"), "nothing found:\n{before}");
        a.stop(libc::SIGKILL)?;
        a = node.start_agent(first)?;
        ownership::is_unchanged(node, &SECOND, &before, "after a restart of the other")?;
        let before = ownership::of(node, &FIRST)?;
        ensure!(before.contains("10.96.0.2"), "nothing found:\n{before}");
        ensure!(b.stop(libc::SIGTERM)?.success(), "SIGTERM");
        b = start(node, &of_second)?;
        ownership::is_unchanged(node, &FIRST, &before, "after a restart of the other")?;
        all_go_on(&mine)?;
        all_go_on(&theirs)?;
        first_works(node)?;
        untracked(node, &others)?;
        all_end_intact(mine)?;

        // The first agent is removed, and every object of the second remains.
        a.stop(libc::SIGKILL)?;
        let before = ownership::of(node, &SECOND)?;
        let mut a = node.start_agent(&[first, &["--cleanup"]].concat())?;
        ensure!(a.stop(libc::SIGTERM)?.success(), "cleanup");
        ownership::is_unchanged(node, &FIRST, "", "after its cleanup")?;
        ownership::is_unchanged(node, &SECOND, &before, "after a cleanup of the other")?;
        ensure!(!node.agent_bpffs().exists(), "pins are left");
        all_go_on(&theirs)?;
        untracked(node, &others)?;
        all_end_intact(theirs)?;

        // Both agents repair their own objects.
        let a = node.start_agent(first)?;
        let before = ownership::marked(node)?;
        node.netns.exec("nft flush ruleset")?;
        cmd::wait_until(TIMEOUT, "both to repair their own", || {
            Ok((ownership::marked(node)? == before).then_some(()))
        })?;
        KubeProxy::IptablesNft.install(&node.netns)?;
        first_works(node)?;
        untracked(node, &others)?;
        drop(a);

        // After the second agent is removed, no object of either is left.
        b.stop(libc::SIGKILL)?;
        let cleanup = ["--cleanup".to_owned()];
        let mut b = start(node, &[&of_second[..], &cleanup].concat())?;
        ensure!(b.stop(libc::SIGTERM)?.success(), "cleanup");
        ownership::is_unchanged(node, &SECOND, "", "after its cleanup")?;
        ensure!(!other_pins(node).exists(), "pins are left");
        let mut a = node.start_agent(&[first, &["--cleanup"]].concat())?;
        ensure!(a.stop(libc::SIGTERM)?.success(), "cleanup");
        let left = snapshot::take(&node.netns)?;
        ensure!(!left.contains("proxy-agent"), "left behind:\n{left}");
        ensure!(!left.contains("vip_"), "left behind:\n{left}");
        Ok(())
    });
}

macro_rules! pairs {
    ($($name:ident: $first:expr, $second:expr, $port:expr;)*) => {$(
        #[test]
        fn $name() {
            side_by_side(&$first, &$second, $port);
        }
    )*};
}

pairs! {
    ebpf_by_tcx: ["--backend=ebpf"], ["--backend=ebpf"], 443;
    ebpf_by_clsact: ["--backend=ebpf", "--tc-attach=clsact"],
        ["--backend=ebpf", "--tc-attach=clsact"], 6443;
    nftables: ["--backend=nftables"], ["--backend=nftables"], 443;
    iptables: ["--backend=iptables"], ["--backend=iptables"], 443;
    ebpf_and_nftables: ["--backend=ebpf"], ["--backend=nftables"], 443;
    nftables_and_ebpf: ["--backend=nftables"], ["--backend=ebpf"], 8443;
}

/// Each agent translates its own Service, and conntrack sees neither.
#[test]
fn two_services_are_translated() {
    Node::test(Topology::Veth, |node| {
        let _first =
            node.start_agent(&["--backend=ebpf", "--service-address=10.96.0.1,fd00:96::1"])?;
        let [v4, v6] = OTHER_SERVICES;
        let services = format!("--service-address={v4},{v6}");
        let of_second = second(node, &["--backend=ebpf", &services]);
        let mut other = start(node, &of_second)?;
        let _proxy = Proxy::start(node)?;
        let vips = endpoints(OTHER_VIPS, 443)?;
        let _servers = serve(node, &vips)?;
        let all = [
            Family::ALL.map(Family::vip_socket),
            Family::ALL.map(Family::cluster_ip_socket),
            vips,
            endpoints(OTHER_SERVICES, 443)?,
        ]
        .concat();
        untracked(node, &all)?;
        other.stop(libc::SIGKILL)?;
        untracked(node, &all)?;
        let cleanup = ["--cleanup".to_owned()];
        let mut other = start(node, &[&of_second[..], &cleanup].concat())?;
        let streams = live(untracked(node, &all[..4])?)?;
        ensure!(other.stop(libc::SIGTERM)?.success(), "cleanup");
        all_go_on(&streams)?;
        untracked(node, &all[..4])?;
        all_end_intact(streams)
    });
}

/// A link that one agent has created also carries the other's VIPs: the agent that is removed last removes it.
#[test]
fn a_link_goes_with_the_last_of_them() {
    Node::test(Topology::Veth, |node| {
        let name = "instances-a_link_goes_with_the_last_of_them";
        skip::clear(name)?;
        if !node.has_dummy_links()? {
            return skip::record(name, "this kernel has no links of the kind dummy");
        }
        let args = ["--backend=none", "--interface=vips", "--cleanup"];
        let mut a = node.start_agent(&args)?;
        let mut b = start(node, &second(node, &args))?;
        let before = ownership::of(node, &SECOND)?;
        ensure!(a.stop(libc::SIGTERM)?.success(), "cleanup");
        ownership::is_unchanged(node, &SECOND, &before, "after a cleanup of the other")?;
        ownership::is_unchanged(node, &FIRST, "", "after its cleanup")?;
        ensure!(b.stop(libc::SIGTERM)?.success(), "cleanup");
        ensure!(node.netns.ifindex("vips").is_err(), "the link is left");
        Ok(())
    });
}

fn is_refused(output: &Output, words: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1),
        "{}\n{stderr}",
        output.status
    );
    for word in words {
        ensure!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
    ensure!(stderr.lines().count() == 1, "more than one line: {stderr}");
    Ok(())
}

#[test]
fn who_comes_second_changes_nothing() {
    Node::test(Topology::Veth, |node| {
        let service = "--service-address=10.96.0.1,fd00:96::1";
        let mut agent = node.start_agent(&["--backend=ebpf", service])?;
        let pid = format!("pid {}", agent.id());
        let before = snapshot::take(&node.netns)?;
        let [v4, v6] = OTHER_VIPS;
        let (elsewhere, pins) = (node.dir().join("elsewhere"), other_pins(node));
        let other_vips = format!("--ip-address={v4},{v6}");
        let run_dir = format!("--run-dir={}", elsewhere.display());
        let bpffs = format!("--bpffs={}", pins.display());
        let first_run_dir = format!("--run-dir={}", node.run_dir().display());
        let cases: [(&str, &[&str], &[&str]); 4] = [
            (
                "the same run directory",
                &["--instance=b", &other_vips, &bpffs],
                &[&pid, &first_run_dir],
            ),
            (
                "the same instance",
                &[&other_vips, &run_dir, &bpffs],
                &[&pid, &first_run_dir, "--instance"],
            ),
            (
                "the same VIP",
                &[
                    "--instance=b",
                    "--ip-address=172.20.0.7,10.96.0.2",
                    &run_dir,
                    &bpffs,
                ],
                &[&pid, &first_run_dir, "10.96.0.2"],
            ),
            (
                "the same Service",
                &[
                    "--instance=b",
                    &other_vips,
                    &run_dir,
                    &bpffs,
                    "--service-address=10.96.0.1",
                ],
                &[&pid, &first_run_dir, "10.96.0.1:443"],
            ),
        ];
        for (what, args, words) in cases {
            for mode in ["--daemon=false", "--cleanup"] {
                let output = node.run_agent(&[args, &["--backend=ebpf", mode]].concat())?;
                is_refused(&output, words).context(what)?;
            }
            let after = snapshot::take(&node.netns)?;
            let difference = snapshot::difference(&before, &after);
            ensure!(difference.is_none(), "{what}: {difference:?}");
            ensure!(
                !elsewhere.exists() && !pins.exists(),
                "{what}: files are left"
            );
        }
        // An agent that changes nothing is not refused.
        let output = node.run_agent(&["--backend=ebpf", service, "--dry-run"])?;
        ensure!(output.status.success(), "a dry run: {}", output.status);
        // Even if it is killed at any moment, it blocks no other agent.
        agent.stop(libc::SIGKILL)?;
        let output = node.run_agent(&["--backend=ebpf", service, "--daemon=false"])?;
        ensure!(output.status.success(), "after a kill: {}", output.status);
        Ok(())
    });
}

/// Any user of the node can create sockets with any name, and cannot prevent an agent from running by it.
#[test]
fn a_stranger_keeps_no_agent_from_running() {
    const NOBODY: libc::c_long = 65534;
    Node::test(Topology::Veth, |node| {
        let _strangers = node.netns.run(|| -> Result<Vec<UnixListener>> {
            // SAFETY: without the C library the call affects this thread only, which ends here.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            ensure!(changed == 0, "{}", std::io::Error::last_os_error());
            let names = ["proxy-agent/instance/", "proxy-agent/vip/10.96.0.2"];
            let bind = |name| UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?);
            Ok(names.into_iter().map(bind).collect::<Result<_, _>>()?)
        })?;
        let mut agent = node.start_agent(&["--backend=none"])?;
        ensure!(
            agent.log().contains("its holder runs as another user"),
            "no word about it"
        );
        ensure!(agent.stop(libc::SIGTERM)?.success(), "SIGTERM");
        Ok(())
    });
}

/// `status` finds the agent of an instance by its run directory.
#[test]
fn status_reports_the_requested_instance() {
    Node::test(Topology::Veth, |node| {
        let _first = node.start_agent(&["--backend=nftables"])?;
        let _second = start(node, &second(node, &["--backend=nftables"]))?;
        let status = |run_dir: &Path| -> Result<String> {
            let mut command = node.netns.command(tests::agent::binary()?);
            command.arg("status").arg("--run-dir").arg(run_dir);
            let output = cmd::output(&mut command, "")?;
            ensure!(output.status.success(), "{output:?}");
            Ok(String::from_utf8(output.stdout)?)
        };
        for (run_dir, own, other) in [
            (node.run_dir(), "10.96.0.2", "172.20.0.7"),
            (node.dir().join("run-b"), "172.20.0.7", "10.96.0.2"),
        ] {
            let text = status(&run_dir)?;
            ensure!(text.contains(own) && !text.contains(other), "{text}");
        }
        Ok(())
    });
}
