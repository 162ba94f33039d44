// SPDX-License-Identifier: Apache-2.0

//! `/healthz`, `/readyz` and `/status`, in every condition.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::agent::{Agent, TRANSLATE};
use tests::degraded_host::Missing;
use tests::http::{self, Answer, wait_for};
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, cmd, doctor, status};

/// Checks that this condition fails, and no other.
fn fails_alone(answer: &Answer, name: &str) -> Result<()> {
    let failing: Vec<_> = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("[-]")?.split(' ').next())
        .collect();
    ensure!(
        failing == [name],
        "{failing:?} fail, not {name}: {answer:?}"
    );
    Ok(())
}

fn start_without(node: &Node, missing: Missing, args: &[&str]) -> Result<Agent> {
    let mut command = node.agent_command(args)?;
    missing.apply(&mut command);
    node.spawn(command)
}

#[test]
fn a_node_as_desired_is_healthy_and_ready() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&[])?;
        let ready = wait_for(&node.netns, "/readyz", 200)?;
        for text in [
            "[+]vip ok: on lo: 10.96.0.2, fd00:96::2\n",
            "[+]link ok: lo is up\n",
        ] {
            ensure!(ready.body.contains(text), "{ready:?}");
        }
        ensure!(ready.body.ends_with("\npassed\n"), "{ready:?}");
        let healthy = http::get(&node.netns, "/healthz")?;
        ensure!(healthy.code == 200, "{healthy:?}");
        ensure!(
            healthy.body.starts_with("[+]pass ok: the last "),
            "{healthy:?}"
        );
        let status = http::get(&node.netns, "/status")?;
        ensure!(
            status.header.contains("content-type: application/json"),
            "{status:?}"
        );
        let status: Value = serde_json::from_str(&status.body)?;
        ensure!(status["agent"]["running"] == true, "{status}");
        ensure!(status["agent"]["pid"] == agent.id(), "{status}");
        ensure!(
            status["drift"]["changes"]
                .as_array()
                .is_some_and(Vec::is_empty),
            "{status}"
        );
        ensure!(
            status["unreadable"].as_array().is_some_and(Vec::is_empty),
            "{status}"
        );
        Ok(())
    });
}

/// `/status` returns the output of `proxy-agent status`.
#[test]
fn status_is_that_of_the_subcommand() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&["--backend=nftables"])?;
        wait_for(&node.netns, "/readyz", 200)?;
        let served: Value = serde_json::from_str(&http::get(&node.netns, "/status")?.body)?;
        let printed = status::read(node)?;
        // Only the agent counts the passes since the state file was written.
        let steady = |mut status: Value| {
            status["agent"]["uptime_seconds"].take();
            status["passes"].take();
            status
        };
        let (served, printed) = (steady(served), steady(printed));
        ensure!(served == printed, "served {served}\nprinted {printed}");
        Ok(())
    });
}

#[test]
fn a_missing_backend_is_not_ready_and_alive() {
    Node::test(Topology::Veth, |node| {
        let _agent = start_without(node, Missing::Bpf, &["--backend=ebpf"])?;
        let answer = wait_for(&node.netns, "/readyz", 503)?;
        fails_alone(&wait_for_pass(node, answer)?, "data_plane")?;
        ensure!(http::get(&node.netns, "/healthz")?.code == 200, "not alive");
        Ok(())
    });
}

/// The first response may be sent before the first pass has ended.
fn wait_for_pass(node: &Node, first: Answer) -> Result<Answer> {
    let mut answer = first;
    cmd::wait_until(Duration::from_secs(30), "the first pass", || {
        if answer.body.contains("[+]pass") {
            return Ok(Some(()));
        }
        answer = http::get(&node.netns, "/readyz")?;
        Ok(None)
    })?;
    Ok(answer)
}

/// With `--backend=auto` the agent does the possible part: it is degraded, not broken.
#[test]
fn no_backend_at_all_is_degraded_and_ready() {
    Node::test(Topology::Veth, |node| {
        let mut command = node.agent_command(&[])?;
        for missing in [Missing::Bpf, Missing::Nfnetlink, Missing::Iptables] {
            missing.apply(&mut command);
        }
        let agent = node.spawn(command)?;
        agent.wait_until_ready()?;
        let answer = wait_for(&node.netns, "/readyz", 200)?;
        ensure!(
            answer.body.contains("[+]data_plane ok: degraded"),
            "{answer:?}"
        );
        let samples = http::scrape(&node.netns, "/metrics")?;
        let degraded = tests::metrics::value(&samples, "proxy_agent_degraded", &[]);
        ensure!(degraded == Some(1.0), "{degraded:?}");
        Ok(())
    });
}

/// A VXLAN link cannot be set up while another socket uses its UDP port.
#[test]
fn a_link_that_cannot_be_set_up_is_not_ready() {
    const PORT: u16 = 47_890;
    Node::test(Topology::Veth, |node| {
        node.netns.ip(&format!(
            "link add vips type vxlan id 5 dstport {PORT} dev eth0\n"
        ))?;
        let taken = node.netns.run(|| UdpSocket::bind(("::", PORT)))?;
        let _agent = node.spawn_agent(&["--backend=none", "--interface=vips"])?;
        let answer = wait_for(&node.netns, "/readyz", 503)?;
        let answer = wait_for_pass(node, answer)?;
        ensure!(
            answer.body.contains("[-]link failed: vips is not up\n"),
            "{answer:?}"
        );
        ensure!(
            answer.body.contains("[-]other failed: link: "),
            "{answer:?}"
        );
        drop(taken);
        wait_for(&node.netns, "/readyz", 200)?;
        Ok(())
    });
}

#[test]
fn a_vip_that_cannot_be_added_is_not_ready() {
    Node::test(Topology::Veth, |node| {
        node.netns.sysctl("net/ipv6/conf/lo/disable_ipv6", "1")?;
        let _agent = node.spawn_agent(&["--backend=none"])?;
        let answer = wait_for(&node.netns, "/readyz", 503)?;
        let answer = wait_for_pass(node, answer)?;
        ensure!(
            answer
                .body
                .contains("[-]vip failed: not usable on lo: fd00:96::2\n"),
            "{answer:?}"
        );
        node.netns.sysctl("net/ipv6/conf/lo/disable_ipv6", "0")?;
        wait_for(&node.netns, "/readyz", 200)?;
        Ok(())
    });
}

#[test]
fn the_listener_counts_if_that_is_wanted() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&["--ready-requires-listener"])?;
        let answer = wait_for(&node.netns, "/readyz", 503)?;
        fails_alone(&answer, "listener")?;
        for family in Family::ALL {
            ensure!(
                answer.body.contains(&family.vip_socket().to_string()),
                "{answer:?}"
            );
        }
        let proxy = Proxy::start(node)?;
        wait_for(&node.netns, "/readyz", 200)?;
        drop(proxy);
        wait_for(&node.netns, "/readyz", 503)?;
        Ok(())
    });
}

/// An unrelated process listens on every address while the proxy is down: `/readyz`, `status`, `doctor` and one line in
/// the log report that it does not count as the proxy. With `--proxy-listener=any` it does.
#[test]
fn a_wildcard_listener_is_not_taken_for_the_proxy() {
    for (which, counts) in [("vip", false), ("any", true)] {
        Node::test(Topology::Veth, |node| {
            let which = format!("--proxy-listener={which}");
            let args = [&TRANSLATE[..], &["--backend=ebpf", &which]].concat();
            let agent = node.start_agent(&[&args[..], &["--ready-requires-listener"]].concat())?;
            fails_alone(&wait_for(&node.netns, "/readyz", 503)?, "listener")?;
            // This listener accepts IPv4 connections, too.
            let _stranger = Server::listen(&node.netns, "[::]:443".parse()?)?;
            let passes = || Ok::<_, anyhow::Error>(status::read(node)?["passes"]["total"].clone());
            for _ in 0..2 {
                let before = passes()?;
                agent.signal(libc::SIGHUP)?;
                cmd::wait_until(Duration::from_secs(30), "another pass", || {
                    Ok((passes()? != before).then_some(()))
                })?;
            }
            let refusal = "the listener on [::]:443 does not count as the proxy";
            let logged = agent.log();
            let logged: Vec<_> = logged
                .lines()
                .filter(|line| line.contains(refusal))
                .collect();
            // There is one line for each VIP.
            ensure!(logged.len() == if counts { 0 } else { 2 }, "{logged:?}");
            let answer = http::get(&node.netns, "/readyz")?;
            if counts {
                ensure!(answer.code == 200, "{answer:?}");
            } else {
                fails_alone(&answer, "listener")?;
                ensure!(answer.body.contains(refusal), "{answer:?}");
            }
            for service in status::read(node)?["services"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let why = service["undecided"].as_str().unwrap_or_default();
                ensure!(why.contains(refusal) != counts, "{service}");
            }
            let checks = doctor::doctor(node)?.checks;
            for check in checks.iter().filter(|check| check["id"] == "listener") {
                let expected = if counts { "ok" } else { "warning" };
                ensure!(check["verdict"] == expected, "{check}");
                ensure!(
                    check.to_string().contains("--proxy-listener=any"),
                    "{check}"
                );
            }
            Ok(())
        });
    }
}

#[test]
fn wrong_requests_get_an_error() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&["--listen=:9999"])?;
        wait_for_address(node, "127.0.0.1:9999")?;
        let ask = |path: &str, args: &[&str]| http::ask(&node.netns, "[::1]:9999", path, args);
        for method in ["POST", "DELETE", "OPTIONS"] {
            let answer = ask("/metrics", &["--request", method, "--data", "x"])?;
            ensure!(answer.code == 405, "{method}: {answer:?}");
            ensure!(
                answer.header.contains("allow: GET, HEAD"),
                "{method}: {answer:?}"
            );
        }
        for path in ["/metrics/", "/metricsx", "/readyz/vip", "/../etc/passwd"] {
            let answer = ask(path, &["--path-as-is"])?;
            ensure!(answer.code == 404, "{path}: {answer:?}");
            ensure!(answer.body.contains("/readyz"), "{path}: {answer:?}");
        }
        let head = ask("/readyz", &["--head"])?;
        ensure!(head.code == 200 && head.body.is_empty(), "{head:?}");
        // The server ignores a body with GET.
        let answer = ask("/healthz", &["--request", "GET", "--data", "x"])?;
        ensure!(answer.code == 200, "{answer:?}");
        let long = format!("x: {}", "y".repeat(100_000));
        let answer = ask("/healthz", &["--header", &long])?;
        ensure!(answer.code != 200, "100 kB of header: {answer:?}");
        Ok(())
    });
}

fn wait_for_address(node: &Node, address: &str) -> Result<()> {
    cmd::wait_until(Duration::from_secs(10), "an answer", || {
        let answer = http::ask(&node.netns, address, "/healthz", &[])?;
        Ok((answer.code == 200).then_some(()))
    })
}

#[test]
fn an_empty_address_serves_nothing() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&["--listen="])?;
        ensure!(
            http::get(&node.netns, "/healthz")?.code == 0,
            "there is an answer"
        );
        ensure!(!agent.log().contains("serving"), "{}", agent.log());
        Ok(())
    });
}
