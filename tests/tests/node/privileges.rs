// SPDX-License-Identifier: Apache-2.0

//! A running agent has exactly the privileges that SECURITY.md lists, and can still repair
//! everything.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, agent, client, cmd, skip, transfer};

const TIMEOUT: Duration = Duration::from_secs(20);

/// The names and numbers in linux/capability.h of the capabilities that the agent may keep.
const NUMBERS: [(&str, u8); 5] = [
    ("PERFMON", 38),
    ("NET_ADMIN", 12),
    ("NET_RAW", 13),
    ("SYS_ADMIN", 21),
    ("BPF", 39),
];

/// Returns the capabilities in a row of the table in SECURITY.md, as a mask.
fn documented(moment: &str) -> Result<u64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SECURITY.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let start = format!("| {moment} |");
    let row = text
        .lines()
        .find(|line| line.starts_with(&start))
        .context("no such row")?;
    let mut mask = 0;
    for name in row.split('`').skip(1).step_by(2) {
        let known = NUMBERS.iter().find(|(known, _)| *known == name);
        mask |= 1 << known.with_context(|| name.to_owned())?.1;
    }
    Ok(mask)
}

fn field(status: &str, name: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| name.to_owned())?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

/// Checks the privileges of each thread.
fn ensure_as_documented(pid: u32) -> Result<()> {
    let mask = documented("running")?;
    ensure!(mask.count_ones() == 4, "{mask:x} from SECURITY.md");
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let found = field(&status, set)?;
            ensure!(found == mask, "{set} is {found:x}, documented is {mask:x}");
        }
        for set in ["CapInh", "CapAmb"] {
            let found = field(&status, set)?;
            ensure!(found & !mask == 0, "{set} is {found:x}");
        }
        ensure!(field(&status, "NoNewPrivs")? == 1, "no_new_privs");
    }
    Ok(())
}

fn works(node: &Node) -> Result<()> {
    for netns in [&node.netns, &node.pods[0].netns] {
        for family in Family::ALL {
            let mut stream = client::connect(netns, family.vip_socket(), TIMEOUT)?;
            transfer::exchange(&mut stream, 10_000, 1)?;
        }
    }
    Ok(())
}

/// Waits until a command prints the expected output.
fn comes_back(node: &Node, line: &str, wanted: &str) -> Result<()> {
    cmd::wait_until(TIMEOUT, &format!("{wanted} in `{line}`"), || {
        Ok(node.netns.exec(line)?.contains(wanted).then_some(()))
    })
}

#[test]
fn ebpf() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesLegacy.install(&node.netns)?;
        let args = [&agent::TRANSLATE[..], &["--backend=ebpf"]].concat();
        let agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        ensure_as_documented(agent.id())?;
        ensure!(
            agent
                .log()
                .contains("capabilities kept: NET_ADMIN, NET_RAW, BPF, PERFMON"),
            "not in the log"
        );
        works(node)?;
        // The test removes the agent's objects one after the other.
        node.netns.exec("nft delete table ip proxy-agent")?;
        comes_back(node, "nft list tables", "table ip proxy-agent\n")?;
        node.netns.exec("ip address del 10.96.0.2/32 dev lo")?;
        comes_back(node, "ip address show dev lo", "10.96.0.2/32")?;
        let has_program = |link: &str| {
            cmd::wait_until(TIMEOUT, &format!("the program on {link}"), || {
                Ok(node.is_attached(link)?.then_some(()))
            })
        };
        node.detach("pod0")?;
        has_program("pod0")?;
        let cgroup = node.agent_bpffs().join("sockets/vip_connect4");
        fs::remove_file(&cgroup)?;
        cmd::wait_until(TIMEOUT, "the program on connect(2)", || {
            Ok(cgroup.exists().then_some(()))
        })?;
        // A new link needs a new attachment.
        node.netns
            .ip("link add fresh type ifb\nlink set fresh up\n")?;
        has_program("fresh")?;
        works(node)
    });
}

/// A second start loads programs and takes over the old ones, also with XDP.
#[test]
fn ebpf_that_takes_over() {
    Node::test(Topology::Veth, |node| {
        for _ in 0..2 {
            let mut agent = node.start_agent(&["--backend=ebpf", "--guard-mode=xdp"])?;
            let _proxy = Proxy::start(node)?;
            ensure_as_documented(agent.id())?;
            works(node)?;
            agent.stop(libc::SIGKILL)?;
        }
        Ok(())
    });
}

/// An agent with no more than the capabilities of a running agent can load the programs and read the links.
#[test]
fn the_second_row_is_enough_to_start_with() -> Result<()> {
    let name = "the-second-row-is-enough-to-start-with";
    if skip::before((5, 11), "maps that are no locked memory", name)? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        let mut command = node.agent_command(&["--backend=ebpf", "--guard-mode=xdp"])?;
        tests::degraded_host::keep_only(&mut command, documented("running")?);
        let agent = node.spawn(command)?;
        agent.wait_until_ready()?;
        let _proxy = Proxy::start(node)?;
        works(node)?;
        ensure!(node.is_attached("pod0")?, "no program on pod0");
        Ok(())
    });
    Ok(())
}

/// Child processes, too, have the privileges that they need.
#[test]
fn iptables() {
    for kube_proxy in [KubeProxy::IptablesLegacy, KubeProxy::IptablesNft] {
        Node::test(Topology::Veth, |node| {
            kube_proxy.install(&node.netns)?;
            let agent = node.start_agent(&["--backend=iptables"])?;
            let _proxy = Proxy::start(node)?;
            ensure_as_documented(agent.id())?;
            works(node)?;
            let flavour = match kube_proxy {
                KubeProxy::IptablesLegacy => "legacy",
                _ => "nft",
            };
            node.netns
                .exec(&format!("iptables-{flavour} -t raw -F PREROUTING"))?;
            // The kernel sends no notification for legacy rules.
            agent.signal(libc::SIGHUP)?;
            comes_back(node, &format!("iptables-{flavour}-save"), "proxy-agent: ")?;
            works(node)
        });
    }
}

/// Everything except the run directory and the BPF file system is read-only, and the agent only listens on a loopback
/// address.
#[test]
fn a_read_only_root_will_do() {
    Node::test(Topology::Veth, |node| {
        let dir = node.dir().display().to_string();
        let script = format!(
            "mount --make-rprivate / && mount --rbind {dir} {dir} && mount -o remount,bind,ro / && \
             ! touch /usr/proxy-agent-test 2>/dev/null && exec \"$@\""
        );
        let inner = node.agent_command(&["--backend=ebpf", "--accept-rules=never"])?;
        let mut command = node.netns.command("unshare");
        command
            .args(["--mount", "sh", "-c", &script, "sh"])
            .arg(inner.get_program())
            .args(inner.get_args());
        let agent = node.spawn(command)?;
        agent.wait_until_ready()?;
        let _proxy = Proxy::start(node)?;
        works(node)?;
        let listening = node.netns.exec("ss -H -l -t -u -p")?;
        let is_ours = |line: &&str| line.contains("proxy-agent");
        for line in listening.lines().filter(is_ours) {
            ensure!(
                line.contains("127.0.0.1:") || line.contains("[::1]:"),
                "{line}"
            );
        }
        Ok(())
    });
}
