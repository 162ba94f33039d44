// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent cleanup` removes everything that a killed agent left, and breaks no connection.

use std::net::TcpStream;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::{client, cmd, skip, snapshot, transfer};

const TIMEOUT: Duration = Duration::from_secs(5);
const BYTES: u64 = 100_000;

const EBPF: &[&str] = &["--backend=ebpf", "--tc-attach=auto"];
const CLSACT: &[&str] = &["--backend=ebpf", "--tc-attach=clsact"];
const TRANSLATING: &[&str] = &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
const NFTABLES: &[&str] = &["--backend=nftables"];
const IPTABLES: &[&str] = &["--backend=iptables"];
const NONE: &[&str] = &["--backend=none"];
const ALL: [&[&str]; 6] = [EBPF, CLSACT, TRANSLATING, NFTABLES, IPTABLES, NONE];

const NOTHING_LEFT: &str = "no objects of proxy-agent are left";

/// The output of `cleanup`, and its exit code.
struct Report {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Report {
    fn ends_with(&self, last: &str) -> Result<()> {
        let found = self.stdout.lines().last().unwrap_or_default();
        ensure!(
            found == last && self.code == Some(0),
            "{:?}: {}\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(())
    }
}

fn cleanup(node: &Node, args: &[&str]) -> Result<Report> {
    let mut command = node.netns.command(tests::agent::binary()?);
    command
        .arg("cleanup")
        .arg(format!("--bpffs={}", node.agent_bpffs().display()))
        .arg(format!("--run-dir={}", node.run_dir().display()))
        .arg("--drain-timeout=500ms")
        .args(args);
    let Output {
        status,
        stdout,
        stderr,
    } = node.run(command)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Report {
        stdout: text(&stdout),
        stderr: text(&stderr),
        code: status.code(),
    })
}

/// Sets up kube-proxy's rules, and the empty tables that iptables creates and never removes.
fn prepare(node: &Node) -> Result<String> {
    KubeProxy::Nftables.install_without_masquerade(&node.netns)?;
    let tables = "*raw\n:PREROUTING -\n:OUTPUT -\nCOMMIT\n*mangle\n:INPUT -\nCOMMIT\n*filter\n:INPUT -\n:OUTPUT -\nCOMMIT\n";
    for program in ["iptables", "ip6tables"] {
        let line = format!("{program}-nft-restore --noflush");
        node.netns.feed(&line, tables)?;
    }
    snapshot::take(&node.netns)
}

/// Removes the members of our sets, which expire after some time.
fn without_members(snapshot: &str) -> String {
    let lines = snapshot.lines();
    let lines = lines.filter(|line| !line.starts_with("add proxy-agent-"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn as_before(node: &Node, before: &str) -> Result<()> {
    let after = snapshot::take(&node.netns)?;
    if let Some(difference) = snapshot::difference(before, &after) {
        anyhow::bail!("not as it was before:\n{difference}");
    }
    let pins = node.bpffs().join("proxy-agent");
    ensure!(!pins.exists(), "{} is left", pins.display());
    let run_dir = node.run_dir();
    ensure!(!run_dir.exists(), "{} is left", run_dir.display());
    Ok(())
}

fn connect_everywhere(node: &Node) -> Result<Vec<TcpStream>> {
    let connect = |path: tests::path::Path<'_>| {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| path.to_string())?;
        transfer::exchange(&mut stream, BYTES, 7).with_context(|| path.to_string())?;
        Ok(stream)
    };
    node.paths().into_iter().map(connect).collect()
}

/// Checks that the connections continue once the address exists again, and that they are tracked from now on. Those
/// that ended on the proxy at the ClusterIP were reset.
fn go_on(node: &Node, args: &[&str], streams: &mut [TcpStream]) -> Result<()> {
    node.add_vips("lo")?;
    for (path, stream) in node.paths().iter().zip(streams) {
        let exchanged = transfer::exchange(stream, BYTES, 8);
        let ended_here = path.via == Via::ClusterIp && path.client != "host";
        if ended_here && args.starts_with(TRANSLATING) {
            let error = exchanged
                .err()
                .with_context(|| format!("{path}: not reset"))?;
            let text = format!("{error:#}");
            ensure!(
                text.contains("reset") || text.contains("Broken pipe"),
                "{path}: {text}"
            );
        } else {
            exchanged.with_context(|| path.to_string())?;
        }
    }
    Ok(())
}

#[test]
fn after_a_kill() {
    for args in ALL {
        Node::test(Topology::Veth, |node| {
            let before = prepare(node)?;
            let args = [args, &["--accept-rules=always"]].concat();
            let mut agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            let mut streams = connect_everywhere(node)?;
            agent.stop(libc::SIGKILL)?;
            let kept = without_members(&snapshot::take(&node.netns)?);

            let output = cleanup(node, &["--dry-run"])?;
            output.ends_with("dry run: nothing was changed")?;
            let now = without_members(&snapshot::take(&node.netns)?);
            let difference = snapshot::difference(&kept, &now);
            ensure!(difference.is_none(), "a dry run: {difference:?}");

            let output = cleanup(node, &[])?;
            output
                .ends_with(NOTHING_LEFT)
                .with_context(|| format!("{args:?}"))?;
            ensure!(output.stdout.contains("10.96.0.2"), "{}", output.stdout);
            as_before(node, &before).with_context(|| format!("{args:?}"))?;
            cleanup(node, &[])?.ends_with("nothing to do")?;
            as_before(node, &before)?;
            go_on(node, &args, &mut streams)
        });
    }
}

/// Adds qdiscs before the agent starts: only the agent's state file records which of them are the agent's.
fn add_qdiscs(node: &Node) -> Result<()> {
    for link in ["eth0", "pod0", "pod1"] {
        node.netns
            .exec(&format!("tc qdisc add dev {link} clsact"))?;
    }
    Ok(())
}

/// The state file in the run directory is lost: maps, rules and tables still contain the VIPs.
#[test]
fn without_the_state() {
    for args in [EBPF, NFTABLES, IPTABLES] {
        Node::test(Topology::Veth, |node| {
            add_qdiscs(node)?;
            let before = prepare(node)?;
            node.start_agent(args)?.stop(libc::SIGKILL)?;
            std::fs::remove_dir_all(node.run_dir())?;
            cleanup(node, &[])?.ends_with(NOTHING_LEFT)?;
            as_before(node, &before).with_context(|| format!("{args:?}"))
        });
    }
    Node::test(Topology::Veth, |node| {
        let before = prepare(node)?;
        node.start_agent(&["--backend=none"])?.stop(libc::SIGKILL)?;
        std::fs::remove_dir_all(node.run_dir())?;
        let output = cleanup(node, &[])?;
        ensure!(
            output.stdout.contains("the VIPs are unknown"),
            "{}",
            output.stdout
        );
        cleanup(node, &["--ip-address=10.96.0.2,fd00:96::2"])?.ends_with(NOTHING_LEFT)?;
        as_before(node, &before)
    });
}

/// The link is removed with the VIPs, unless another program has added an address to it.
#[test]
fn a_link_of_the_agents() {
    Node::test(Topology::Veth, |node| {
        let name = "cleanup-a_link_of_the_agents";
        skip::clear(name)?;
        if !node.has_dummy_links()? {
            return skip::record(name, "this kernel has no links of the kind dummy");
        }
        let before = prepare(node)?;
        for foreign in [true, false] {
            node.start_agent(&["--backend=none", "--interface=vips"])?
                .stop(libc::SIGKILL)?;
            if foreign {
                node.netns.ip("address add 192.0.2.1/32 dev vips\n")?;
            }
            cleanup(node, &[])?.ends_with(NOTHING_LEFT)?;
            ensure!(node.netns.ifindex("vips").is_ok() == foreign, "{foreign}");
            if foreign {
                node.netns.ip("address del 192.0.2.1/32 dev vips\n")?;
            }
        }
        as_before(node, &before)
    });
}

/// An agent with one backend was killed while objects of another backend still existed.
#[test]
fn after_two_backends() {
    Node::test(Topology::Veth, |node| {
        add_qdiscs(node)?;
        let before = prepare(node)?;
        // The agent behaves as if the first one did not exist, with its own pins and run directory.
        let bpffs = format!("--bpffs={}", node.bpffs().join("proxy-agent/v3").display());
        let run_dir = node.dir().join("other-run");
        let other = format!("--run-dir={}", run_dir.display());
        node.start_agent(&["--backend=ebpf", &bpffs, &other])?
            .stop(libc::SIGKILL)?;
        node.start_agent(&["--backend=none", "--ip-address=10.96.0.2"])?
            .stop(libc::SIGKILL)?;
        std::fs::remove_dir_all(&run_dir)?;
        node.netns.feed(
            "iptables-nft-restore --noflush",
            "*raw\n-A PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443 -m comment \
             --comment proxy-agent -j NOTRACK\nCOMMIT\n",
        )?;
        cleanup(node, &["--ip-address=10.96.0.2,fd00:96::2"])?.ends_with(NOTHING_LEFT)?;
        as_before(node, &before)
    });
}

fn addresses(node: &Node, link: &str) -> Result<String> {
    node.netns.exec(&format!("ip -o address show dev {link}"))
}

/// Another start with other settings removes our objects, and no object that another program has added.
#[test]
fn of_another_start_with_other_settings() {
    for args in [TRANSLATING, NFTABLES, IPTABLES] {
        Node::test(Topology::Veth, |node| {
            node.netns
                .ip("link add vips type ifb\nlink set vips up\n")?;
            let before = prepare(node)?;
            let first = [args, &["--interface=vips"]].concat();
            node.start_agent(&first)?.stop(libc::SIGTERM)?;
            // These belong to other programs: the former VIP on a link on which no agent had it, and an unrelated
            // address.
            let foreign = "address add 10.96.0.2/32 dev eth0\naddress add 10.96.0.9/32 dev vips\n";
            node.netns.ip(foreign)?;

            let pins = node.bpffs().join("proxy-agent-other");
            let bpffs = format!("--bpffs={}", pins.join("v2").display());
            let second = [
                &args[..1],
                &["--ip-address=10.96.0.3,fd00:96::3", "--port=8443", &bpffs],
            ]
            .concat();
            let mut agent = node.start_agent(&second)?;
            let (old, new) = (addresses(node, "vips")?, addresses(node, "lo")?);
            ensure!(
                !old.contains("10.96.0.2") && !old.contains("fd00:96::2"),
                "{old}"
            );
            ensure!(
                new.contains("10.96.0.3/32") && new.contains("fd00:96::3/128"),
                "{new}"
            );
            ensure!(old.contains("10.96.0.9/32"), "another's is gone: {old}");
            let uplink = addresses(node, "eth0")?;
            ensure!(
                uplink.contains("10.96.0.2/32"),
                "another's is gone: {uplink}"
            );
            ensure!(!node.agent_bpffs().exists(), "{args:?}: former pins");
            let ruleset = node.netns.exec("nft list ruleset")?;
            // kube-proxy's own rules refer to the former VIP.
            let mut ours = ruleset
                .lines()
                .filter(|line| line.contains("comment \"from "));
            ensure!(!ours.any(|line| line.contains("10.96.0.2")), "{ruleset}");
            let chains = node.netns.exec("iptables-nft-save -t raw")?;
            ensure!(!chains.contains("10.96.0.2"), "{chains}");
            cmd::wait_until(TIMEOUT, "the route of the former Service to go", || {
                let routes = node.netns.exec("ip route show table all")?;
                Ok((!routes.contains("10.96.0.1 ")).then_some(()))
            })?;
            // From now on, the address belongs to another program.
            node.netns.ip("address add 10.96.0.2/32 dev vips\n")?;
            agent.stop(libc::SIGKILL)?;

            cleanup(node, &[])?.ends_with(NOTHING_LEFT)?;
            let kept = addresses(node, "vips")?;
            ensure!(kept.contains("10.96.0.2/32"), "another's is gone: {kept}");
            ensure!(!pins.exists(), "{} is left", pins.display());
            for (address, link) in [
                ("10.96.0.2", "vips"),
                ("10.96.0.9", "vips"),
                ("10.96.0.2", "eth0"),
            ] {
                node.netns
                    .ip(&format!("address del {address}/32 dev {link}\n"))?;
            }
            as_before(node, &before).with_context(|| format!("{args:?}"))
        });
    }
}

/// Whenever an agent is killed during the change from one VIP and link to others, a clean-up finds all of them.
#[test]
fn of_starts_that_were_killed_early() {
    Node::test(Topology::Veth, |node| {
        node.netns
            .ip("link add vips type ifb\nlink set vips up\n")?;
        let before = prepare(node)?;
        node.start_agent(NONE)?.stop(libc::SIGKILL)?;
        for n in 0..8 {
            let vips = format!("--ip-address=10.96.0.{n},fd00:96::{n}", n = n + 3);
            let link = ["--interface=vips", "--interface=lo"][n % 2];
            let mut agent = node.spawn_agent(&[NONE, &[&vips, link]].concat())?;
            std::thread::sleep(Duration::from_millis(8 * n as u64));
            agent.stop(libc::SIGKILL)?;
        }
        cleanup(node, &[])?.ends_with(NOTHING_LEFT)?;
        as_before(node, &before)
    });
}

#[test]
fn refused_while_an_agent_runs() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(EBPF)?;
        let before = snapshot::take(&node.netns)?;
        let output = cleanup(node, &[])?;
        ensure!(output.code == Some(1), "{:?}", output.code);
        let pid = format!("pid {}", agent.id());
        ensure!(output.stderr.contains(&pid), "{}", output.stderr);
        let difference = snapshot::difference(&before, &snapshot::take(&node.netns)?);
        ensure!(difference.is_none(), "{difference:?}");
        Ok(())
    });
}
