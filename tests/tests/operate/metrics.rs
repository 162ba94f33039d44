// SPDX-License-Identifier: Apache-2.0

//! `/metrics` is in the right format, is as documented, and has the right values.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::client::{self, Close};
use tests::metrics::{self, Sample, documented, families, value};
use tests::netns::Netns;
use tests::node::{Node, Topology, UPSTREAM};
use tests::proxy::Proxy;
use tests::{Family, cmd, http, transfer};

const TIMEOUT: Duration = Duration::from_secs(8);
const DECISIONS: &str = "proxy_agent_decisions_total";
const TRANSLATIONS: &str = "proxy_agent_translations_total";

/// Returns every metric that the agent can export, see `telemetry/metrics/tests.rs` of the agent.
fn recorded() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../proxy-agent/src/telemetry/metrics/golden.txt");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Checks a text with promtool.
fn check(netns: &Netns, text: &str) -> Result<()> {
    let mut promtool = netns.command("promtool");
    let output = cmd::output(promtool.args(["check", "metrics"]), text)?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.is_empty(),
        "promtool: {said}"
    );
    Ok(())
}

fn use_connection(netns: &Netns, to: std::net::SocketAddr) -> Result<()> {
    let mut stream = client::connect(netns, to, TIMEOUT).context(to)?;
    transfer::exchange(&mut stream, 10_000, 1)?;
    Ok(client::close(&stream, Close::Fin)?)
}

fn of_vip(samples: &[Sample], name: &str, family: Family) -> Result<f64> {
    let vip = family.vip_socket().to_string();
    value(samples, name, &[("vip", &vip)]).with_context(|| format!("no {name} of {vip}"))
}

#[test]
fn documentation_and_exposition_have_the_same_metrics() {
    let (documented, served) = (
        documented().unwrap(),
        families(&recorded().unwrap()).unwrap(),
    );
    let names =
        |of: &std::collections::BTreeMap<String, _>| of.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&documented), names(&served));
    for (name, metric) in &documented {
        assert_eq!(Some(metric), served.get(name), "{name}");
    }
}

/// Returns the files below a directory of the repository, or none if the directory does not exist.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(found);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// The metrics that the documentation, alert rules and dashboards mention exist.
#[test]
fn whatever_mentions_a_metric_means_one_that_exists() {
    let documented = documented().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut mentions = 0;
    for directory in ["docs", "deploy"] {
        for path in files(&root.join(directory)).unwrap() {
            let content = fs::read(&path).unwrap();
            for name in metrics::mentioned(&String::from_utf8_lossy(&content)) {
                let name = metrics::family(name, &documented);
                assert!(
                    documented.contains_key(name),
                    "{name} in {}",
                    path.display()
                );
                mentions += 1;
            }
        }
    }
    assert!(mentions > 0, "no file was read");
}

#[test]
fn promtool_accepts_all_that_can_be_served() {
    Node::test(Topology::Veth, |node| check(&node.netns, &recorded()?));
}

/// An agent with all features enabled exports the documented metrics, and counts traffic and repairs.
#[test]
fn what_happens_is_counted() {
    Node::test(Topology::Veth, |node| {
        let mut args = vec!["--backend=ebpf", UPSTREAM];
        args.extend(TRANSLATE);
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            use_connection(&node.pods[0].netns, family.vip_socket())?;
            use_connection(&node.pods[0].netns, family.cluster_ip_socket())?;
        }
        http::wait_for(&node.netns, "/readyz", 200)?;
        let answer = http::get(&node.netns, "/metrics?links=true")?;
        ensure!(
            answer
                .header
                .contains("content-type: text/plain; version=0.0.4"),
            "{answer:?}"
        );
        check(&node.netns, &answer.body)?;
        let documented = documented()?;
        let served = families(&answer.body)?;
        for (name, metric) in &served {
            let expected = documented
                .get(name)
                .with_context(|| format!("{name} is not documented"))?;
            ensure!(
                metric == expected,
                "{name}: {metric:?}, documented: {expected:?}"
            );
        }
        // These are metrics of features that this node does not use.
        let absent = [
            "proxy_agent_backend_rejected",
            "proxy_agent_backend_breaks",
            // The API servers are set by a flag.
            "proxy_agent_upstream_learning",
        ];
        for name in documented
            .keys()
            .filter(|name| !absent.contains(&name.as_str()))
        {
            ensure!(served.contains_key(name), "{name} is not served");
        }
        let samples = metrics::samples(&answer.body)?;
        let link = &*node.pods[0].host_link;
        for family in Family::ALL {
            let vip = &*family.vip_socket().to_string();
            ensure!(
                of_vip(&samples, DECISIONS, family)? >= 2.0,
                "{vip}: not two decisions"
            );
            ensure!(
                of_vip(&samples, TRANSLATIONS, family)? >= 1.0,
                "{vip}: no translation"
            );
            for direction in ["request", "reply"] {
                let labels = [("vip", vip), ("direction", direction)];
                let packets = value(&samples, "proxy_agent_packets_total", &labels);
                ensure!(
                    packets > Some(4.0),
                    "{vip} {direction}: {packets:?} packets"
                );
            }
            let by_link = value(
                &samples,
                "proxy_agent_link_decisions_total",
                &[("vip", vip), ("link", link)],
            );
            ensure!(by_link >= Some(1.0), "{vip} by {link}: {by_link:?}");
            let listens = value(&samples, "proxy_agent_listener_up", &[("vip", vip)]);
            ensure!(listens == Some(1.0), "{vip}: no listener is counted");
        }
        let is_one = |name: &str, labels: &[(&str, &str)]| -> Result<()> {
            let found = value(&samples, name, labels);
            ensure!(found == Some(1.0), "{name} {labels:?}: {found:?}");
            Ok(())
        };
        is_one("proxy_agent_ready", &[])?;
        is_one(
            "proxy_agent_backend_info",
            &[("asked", "ebpf"), ("backend", "ebpf")],
        )?;
        is_one(
            "proxy_agent_vip_present",
            &[("vip", "10.96.0.2"), ("link", "lo")],
        )?;
        let entries = value(
            &samples,
            "proxy_agent_bpf_map_entries",
            &[("map", "connections")],
        );
        ensure!(entries >= Some(0.0), "{entries:?} connections are decided");
        let plain = http::scrape(&node.netns, "/metrics")?;
        ensure!(
            !plain
                .iter()
                .any(|sample| sample.name.starts_with("proxy_agent_link_")),
            "links without being asked for"
        );
        Ok(())
    });
}

#[test]
fn repairs_and_errors_are_counted() {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&["--backend=nftables"])?;
        http::wait_for(&node.netns, "/readyz", 200)?;
        let repairs = |part: &str| -> Result<Option<f64>> {
            let samples = http::scrape(&node.netns, "/metrics")?;
            Ok(value(
                &samples,
                "proxy_agent_repairs_total",
                &[("part", part)],
            ))
        };
        ensure!(repairs("link")? == Some(0.0), "repairs on a quiet node");
        node.netns.exec("ip address del 10.96.0.2/32 dev lo")?;
        node.netns.exec("nft delete table ip proxy-agent")?;
        cmd::wait_until(TIMEOUT, "both repairs to be counted", || {
            let both = repairs("link")? == Some(1.0) && repairs("nftables")? >= Some(1.0);
            Ok(both.then_some(()))
        })?;
        // Without IPv6 on the link its VIP cannot be added.
        node.netns.sysctl("net/ipv6/conf/lo/disable_ipv6", "1")?;
        http::wait_for(&node.netns, "/readyz", 503)?;
        let samples = http::scrape(&node.netns, "/metrics")?;
        for name in ["proxy_agent_errors_total", "proxy_agent_failing"] {
            let errors = value(&samples, name, &[("part", "link")]);
            ensure!(errors >= Some(1.0), "{name}: {errors:?}");
        }
        ensure!(
            value(&samples, "proxy_agent_reconcile_failures_total", &[]) >= Some(1.0),
            "no pass has failed"
        );
        let present = value(
            &samples,
            "proxy_agent_vip_present",
            &[("vip", "fd00:96::2")],
        );
        ensure!(present == Some(0.0), "the VIP is present: {present:?}");
        Ok(())
    });
}

/// Counters of the programs survive the agent, and those of a deleted link remain in the sums.
#[test]
fn counters_never_shrink() {
    Node::test(Topology::Veth, |node| {
        let args = [&["--backend=ebpf", "--sync-interval=200ms"], &TRANSLATE[..]].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        for pod in &node.pods {
            use_connection(&pod.netns, Family::V4.cluster_ip_socket())?;
        }
        let counted = |node: &Node| -> Result<[f64; 2]> {
            let samples = http::scrape(&node.netns, "/metrics")?;
            let vip = Family::V4.vip_socket().to_string();
            let labels = [("vip", &*vip), ("direction", "request")];
            let packets = value(&samples, "proxy_agent_packets_total", &labels);
            Ok([
                of_vip(&samples, DECISIONS, Family::V4)?,
                packets.unwrap_or_default(),
            ])
        };
        http::wait_for(&node.netns, "/readyz", 200)?;
        let before = counted(node)?;
        ensure!(before[0] >= 2.0, "{before:?}");
        let link = node.pods[1].host_link.clone();
        let by_link = |node: &Node| -> Result<Option<f64>> {
            let samples = http::scrape(&node.netns, "/metrics?links=true")?;
            let vip = Family::V4.vip_socket().to_string();
            let labels = [("vip", &*vip), ("link", &*link)];
            Ok(value(&samples, "proxy_agent_link_decisions_total", &labels))
        };
        ensure!(by_link(node)? >= Some(1.0), "nothing by {link}");
        node.remove_pod()?;
        // The counters of a deleted link are removed at a resync, whatever name they have without the link.
        cmd::wait_until(TIMEOUT, "the counters of the link to go", || {
            let samples = http::scrape(&node.netns, "/metrics?links=true")?;
            let links = samples
                .iter()
                .filter(|sample| sample.name == "proxy_agent_link_decisions_total")
                .filter(|sample| sample.labels["vip"].starts_with("10."));
            Ok((links.count() == 2).then_some(()))
        })?;
        let after = counted(node)?;
        ensure!(
            after[0] >= before[0] && after[1] >= before[1],
            "{before:?}, then {after:?}"
        );
        agent.stop(libc::SIGKILL)?;
        let _agent = node.start_agent(&args)?;
        http::wait_for(&node.netns, "/readyz", 200)?;
        let restarted = counted(node)?;
        ensure!(
            restarted[0] >= after[0] && restarted[1] >= after[1],
            "{after:?}, then {restarted:?}"
        );
        Ok(())
    });
}
