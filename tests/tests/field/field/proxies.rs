// SPDX-License-Identifier: Apache-2.0

//! Proxies and clients that do more than accept and connect: a proxy with several listeners that is replaced under
//! load, one that sends its server the addresses of the connection (PROXY protocol), and clients that send data with
//! the SYN.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::cmd::Process;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::listening;
use tests::slow_machine::be_noticed;
use tests::streams::entries;
use tests::transfer::Server;
use tests::{Family, PORT, client, cmd, conntrack, skip};

use super::{TIMEOUT, with_services, works};

/// Starts an HAProxy on the VIPs, beside those that already listen there.
fn haproxy(node: &Node, name: &str, bind: &str, server: &str, sockets: usize) -> Result<Process> {
    let mut config = String::from(
        "global\n    maxconn 4000\n    nbthread 2\n\
         defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n",
    );
    config += "frontend vip\n";
    for family in Family::ALL {
        writeln!(config, "    bind {} {bind}", family.vip_socket())?;
    }
    writeln!(
        config,
        "    default_backend api\nbackend api\n    server one {server}"
    )?;
    let path = node.dir().join(format!("{name}.cfg"));
    fs::write(&path, config)?;
    let mut command = node.netns.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    listening(node, name, command, PORT, sockets)
}

/// A proxy with a listener for each thread (`SO_REUSEPORT`, which is Envoy's default) is replaced by another one while
/// clients connect on every path: no client is refused or reset.
#[test]
fn a_proxy_with_several_listeners_is_exchanged() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        // The kernel migrates connections in the accept queue of a closed listener to another listener of its group.
        node.netns.sysctl("net/ipv4/tcp_migrate_req", "1")?;
        let _agent = node.start_agent(&with_services(&[]))?;
        let (old, new) = (node.dir().join("old.sock"), node.dir().join("new.sock"));
        let (old_server, new_server) = (Server::listen_unix(&old)?, Server::listen_unix(&new)?);
        let unix = |path: &std::path::Path| format!("unix@{}", path.display());
        let first = haproxy(node, "old", "shards by-thread", &unix(&old), 4)?;
        be_noticed()?;
        for path in node.paths() {
            works(&path)?;
        }
        let stop = AtomicBool::new(false);
        let clients = |number: usize| -> Result<usize> {
            let mut count = 0;
            let paths = node.paths();
            while !stop.load(Ordering::Relaxed) {
                let path = &paths[(number + count) % paths.len()];
                works(path).with_context(|| format!("connection {count} of client {number}"))?;
                count += 1;
            }
            Ok(count)
        };
        let clients = &clients;
        let second = std::thread::scope(|scope| -> Result<Process> {
            let running: Vec<_> = (0..3)
                .map(|number| scope.spawn(move || clients(4 * number)))
                .collect();
            let exchange = || -> Result<Process> {
                std::thread::sleep(Duration::from_millis(300));
                let second = haproxy(node, "new", "shards by-thread", &unix(&new), 8)?;
                std::thread::sleep(Duration::from_millis(300));
                // The old proxy closes its listeners and serves its connections until they end.
                first.signal(libc::SIGUSR1)?;
                cmd::wait_until(TIMEOUT, "clients of the new one", || {
                    Ok((new_server.accepted() > 50).then_some(()))
                })?;
                Ok(second)
            };
            let second = exchange();
            stop.store(true, Ordering::Relaxed);
            for client in running {
                let count = client.join().expect("no panic")?;
                ensure!(count > 10, "only {count} connections");
            }
            second
        })?;
        if !skip::programs_keep_listeners()? {
            // Until the agent has noticed the new listeners, kube-proxy handles connections of pods there.
            be_noticed()?;
            conntrack::flush(&node.netns)?;
        }
        let before = old_server.accepted();
        for path in node.paths() {
            works(&path)?;
        }
        ensure!(old_server.accepted() == before, "the old one still serves");
        let entries = entries(node)?;
        ensure!(entries.is_empty(), "{entries:#?}");
        drop(second);
        Ok(())
    });
}

/// Checks the destination that the proxy sees for connections to the Service: for a pod, the address to which it
/// connected, and for a process on the node, the VIP.
fn with_the_service(
    node: &Node,
    see: impl Fn(&Netns, SocketAddr) -> Result<SocketAddr>,
) -> Result<()> {
    let (vip, service) = (Family::V4.vip_socket(), Family::V4.cluster_ip_socket());
    let pod = &node.pods[0].netns;
    for (netns, to, expected) in [
        (pod, service, service),
        (pod, vip, vip),
        (&node.netns, service, vip),
    ] {
        let sent = see(netns, to)?;
        ensure!(sent == expected, "{to}: {sent}");
    }
    Ok(())
}

/// Returns the destination address of a connection in the header of HAProxy's PROXY protocol, version 1.
fn destination_sent(server: &TcpListener, netns: &Netns, to: SocketAddr) -> Result<SocketAddr> {
    let mut client = client::connect(netns, to, TIMEOUT)?;
    client.write_all(b"x")?;
    let (stream, _) = server.accept()?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    // PROXY TCP4 source destination source-port destination-port
    let ["PROXY", _, _, destination, _, port] = words[..] else {
        bail!("{line:?} is no line of the PROXY protocol");
    };
    Ok(SocketAddr::new(destination.parse()?, port.parse()?))
}

/// A proxy that sends its server the address of its own socket, as Envoy does with the PROXY protocol, sends the
/// ClusterIP if a pod's connection to a Service is translated by the agent. Without the agent it sends the VIP, to
/// which kube-proxy's DNAT translates the address.
#[test]
fn a_proxy_that_sends_the_address_of_its_socket() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let (vip, service) = (Family::V4.vip_socket(), Family::V4.cluster_ip_socket());
        let mut agent = node.start_agent(&["--backend=ebpf"])?;
        let pod = &node.pods[0].netns;
        let proxy = node.netns.run(|| TcpListener::bind(vip))?;
        let ask = |netns: &Netns, to: SocketAddr| -> Result<SocketAddr> {
            let _client = client::connect(netns, to, TIMEOUT)?;
            Ok(proxy.accept()?.0.local_addr()?)
        };
        for (netns, to) in [(pod, service), (pod, vip), (&node.netns, service)] {
            let sent = ask(netns, to)?;
            ensure!(sent == vip, "without the Service, {to}: {sent}");
        }
        agent.stop(libc::SIGTERM)?;
        let _agent = node.start_agent(&with_services(&[]))?;
        with_the_service(node, ask)?;
        Ok(())
    });
}

/// HAProxy requests the address before translation from conntrack (`SO_ORIGINAL_DST`), so it sends the ClusterIP of a
/// pod's connection with the agent and without. With `set-dst` it sends the VIP.
#[test]
fn a_proxy_that_asks_conntrack_for_the_destination() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let server = node.netns.run(|| TcpListener::bind("127.0.0.1:7443"))?;
        let backend = "127.0.0.1:7443 send-proxy";
        let (vip, service) = (Family::V4.vip_socket(), Family::V4.cluster_ip_socket());
        let pod = &node.pods[0].netns;
        let mut agent = node.start_agent(&["--backend=ebpf"])?;
        let proxy = haproxy(node, "plain", "", backend, 2)?;
        for (to, expected) in [(service, service), (vip, vip)] {
            let sent = destination_sent(&server, pod, to)?;
            ensure!(sent == expected, "without the Service, {to}: {sent}");
        }
        agent.stop(libc::SIGTERM)?;
        let _agent = node.start_agent(&with_services(&[]))?;
        with_the_service(node, |netns, to| destination_sent(&server, netns, to))?;
        drop(proxy);
        let set = format!("\n    tcp-request connection set-dst ipv4({})", vip.ip());
        let _proxy = haproxy(node, "set-dst", &set, backend, 2)?;
        let shown = destination_sent(&server, pod, service)?;
        ensure!(shown == vip, "with set-dst: {shown}");
        Ok(())
    });
}

/// Returns the number of SYNs with data that a server's namespace has accepted.
fn fast_opened(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = (names.context("no names")?, values.context("no values")?);
    let of = |(name, _): &(&str, &str)| *name == "TCPFastOpenPassive";
    let pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.into_iter().find(of).context("TCPFastOpenPassive")?;
    Ok(value.parse()?)
}

/// Clients send data with the SYN (TCP Fast Open) to a proxy that accepts it: the connections are decided and untracked
/// like any other, and the data arrives once. The clients are pods that connect to VIP and ClusterIP, and the node
/// itself.
#[test]
fn data_that_comes_with_the_syn() {
    for args in [with_services(&[]), vec!["--backend=nftables"]] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
            let _agent = node.start_agent(&args)?;
            let proxies = Family::ALL.map(|family| -> Result<TcpListener> {
                let listener = node.netns.run(|| TcpListener::bind(family.vip_socket()))?;
                client::take_fast(&listener)?;
                Ok(listener)
            });
            let [v4, v6] = proxies;
            let (v4, v6) = (v4?, v6?);
            for netns in node.pods.iter().map(|pod| &pod.netns).chain([&node.netns]) {
                netns.sysctl("net/ipv4/tcp_fastopen", "3")?;
            }
            let mut paths = node.paths();
            paths.retain(|path| args.len() > 1 || path.via == Via::Vip);
            for path in &paths {
                let listener = if path.family == Family::V4 { &v4 } else { &v6 };
                let before = fast_opened(&node.netns)?;
                // The first connection requests the cookie that the second one sends.
                for _ in 0..2 {
                    let mut client = client::connect_fast(path.netns, path.destination(), TIMEOUT)
                        .with_context(|| path.to_string())?;
                    client.write_all(b"request")?;
                    let (mut served, _) = listener.accept()?;
                    served.set_read_timeout(Some(TIMEOUT))?;
                    let mut request = [0; 7];
                    served
                        .read_exact(&mut request)
                        .with_context(|| path.to_string())?;
                    ensure!(&request == b"request", "{path}: {request:?}");
                    served.write_all(b"answer")?;
                    drop(served);
                    let mut answer = String::new();
                    client
                        .read_to_string(&mut answer)
                        .with_context(|| path.to_string())?;
                    ensure!(answer == "answer", "{path}: {answer:?}");
                }
                ensure!(
                    fast_opened(&node.netns)? > before,
                    "{path}: no data came with a SYN: this shows nothing"
                );
            }
            let entries = entries(node)?;
            ensure!(entries.is_empty(), "{entries:#?}");
            Ok(())
        });
    }
}
