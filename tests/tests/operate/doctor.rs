// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent doctor` finds nothing on a good node; it finds and names each planted fault, and the remedy that it
//! prints removes the fault. A remedy that is a command is run as printed.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::agent::{self, TRANSLATE};
use tests::bpf::{ForeignProgram, Hook, Place};
use tests::cmd::{self, Process};
use tests::degraded_host::Missing;
use tests::doctor::{
    BROKEN, GOOD, WARNINGS, command, cure, doctor, ensure_good, found, plant, run, text,
};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, ctnetlink, skip};

/// The maximum time until the agent's next pass has repaired a fault.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(20);

/// Sets up a good node: kube-proxy, proxy and agent, on which the doctor finds nothing.
fn good_node(flags: &[&str], body: impl FnOnce(&mut Node, &mut agent::Agent) -> Result<()>) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let flags = [&["--sync-interval=200ms"], flags].concat();
        let mut agent = node.start_agent(&flags)?;
        body(node, &mut agent)
    });
}

fn ebpf() -> Vec<&'static str> {
    [&TRANSLATE[..], &["--backend=ebpf"]].concat()
}

/// Faults that the agent would repair at once are planted while it is stopped.
#[test]
fn commands_cure_what_is_wrong_with_addresses_and_settings() {
    good_node(&ebpf(), |node, agent| {
        let _proxy = Proxy::start(node)?;
        ensure_good(node)?;
        agent.signal(libc::SIGSTOP)?;
        for (id, verdict, fault) in [
            (
                "vip-source",
                "warning",
                "ip address del 10.96.0.2/32 dev lo && ip address add 10.96.0.2/32 dev lo && \
                 ip address replace fd00:96::2/128 dev lo",
            ),
            ("vip", "broken", "ip address del 10.96.0.2/32 dev lo"),
            ("vip", "broken", "ip link set lo down"),
            ("vip", "warning", "ip address add 10.96.0.2/32 dev eth0"),
            (
                "vip",
                "broken",
                "sysctl -qw net/ipv6/conf/lo/disable_ipv6=1",
            ),
            (
                "vip",
                "broken",
                "ip address del fd00:96::2/128 dev lo && sysctl -qw net/ipv6/conf/all/accept_dad=1 \
                 net/ipv6/conf/pod0/accept_dad=1 net/ipv6/conf/pod0/dad_transmits=60 && \
                 ip address add fd00:96::2/128 dev pod0 && \
                 sed -i 's/\"interface\":\"lo\"/\"interface\":\"pod0\"/' RUN/state.json && \
                 ip address del 10.96.0.2/32 dev lo",
            ),
            ("arp", "warning", "ip address add 10.96.0.7/24 dev pod1"),
            (
                "conntrack-loose",
                "warning",
                "sysctl -qw net/netfilter/nf_conntrack_tcp_loose=0",
            ),
        ] {
            let fault = fault.replace("RUN", &node.run_dir().display().to_string());
            plant(node, id, verdict, &fault)?;
        }
        agent.signal(libc::SIGCONT)
    });
}

/// A VIP in the subnet of a link is a finding only if the node replies to ARP requests for it on that link.
#[test]
fn a_link_whose_guard_drops_arp_is_good() {
    let flags = [&ebpf()[..], &["--guard=eth0"]].concat();
    good_node(&flags, |node, _| {
        let _proxy = Proxy::start(node)?;
        node.netns.exec("ip address add 10.96.0.7/24 dev eth0")?;
        ensure_good(node)
    });
}

#[test]
fn commands_cure_rules_that_are_in_the_way() {
    let flags = [&ebpf()[..], &["--accept-rules=never"]].concat();
    good_node(&flags, |node, agent| {
        let _proxy = Proxy::start(node)?;
        ensure_good(node)?;
        agent.signal(libc::SIGSTOP)?;
        // These are the rules of apiserver-proxy-sidecar.
        let notrack = "for i in 'PREROUTING -d 10.96.0.2/32 -p tcp -m tcp --dport 443' \
             'OUTPUT -s 10.96.0.2/32 -p tcp -m tcp --sport 443'; \
             do iptables-nft -t raw -A $i -j NOTRACK; done";
        let native = "nft -f - <<END\n\
             table inet fw {\n\
             chain input { type filter hook input priority 0; policy drop;\n\
             ct state established,related accept\n\
             tcp dport { 22, 6443 } accept\n\
             ct state invalid drop\n }\n\
             }\nEND";
        for (id, verdict, fault) in [
            ("notrack-rules", "broken", notrack),
            ("firewall", "broken", "iptables-nft -P INPUT DROP"),
            ("firewall", "broken", "ip6tables-nft -A OUTPUT -j REJECT"),
            ("firewall", "broken", native),
            (
                "firewall",
                "broken",
                "nft add chain inet fw out '{ type filter hook output priority 0; policy drop; }'",
            ),
        ] {
            plant(node, id, verdict, fault)?;
        }
        agent.signal(libc::SIGCONT)
    });
}

#[test]
fn a_firewall_of_legacy_iptables_is_seen() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesLegacy.install(&node.netns)?;
        let flags = [&ebpf()[..], &["--accept-rules=never"]].concat();
        let agent = node.start_agent(&flags)?;
        let _proxy = Proxy::start(node)?;
        ensure_good(node)?;
        agent.signal(libc::SIGSTOP)?;
        let fault = "iptables-legacy -P INPUT DROP && \
             iptables-legacy -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        plant(node, "firewall", "broken", fault)?;
        agent.signal(libc::SIGCONT)
    });
}

#[test]
fn who_listens_is_named() {
    good_node(&ebpf(), |node, _| {
        found(node, "listener", "warning")?;
        let everywhere = node.netns.run(|| TcpListener::bind("0.0.0.0:443"))?;
        let faults = found(node, "listener", "warning")?;
        let own = format!("(pid {})", std::process::id());
        let named = |fault: &Value| text(fault, "finding").contains(&own);
        ensure!(faults.iter().any(named), "{own} is not named: {faults:#?}");
        drop(everywhere);
        let _proxy = Proxy::start(node)?;
        ensure_good(node)
    });
}

#[test]
fn another_agent_is_found() {
    good_node(&ebpf(), |node, _| {
        let _proxy = Proxy::start(node)?;
        let mut sidecar = node.netns.command("sh");
        sidecar.arg0("/bin/apiserver-proxy-sidecar");
        sidecar.args(["-c", "sleep 600; true", "--ip-address=10.96.0.2"]);
        let sidecar = Process::new(cmd::guard_child(&mut sidecar).spawn()?);
        found(node, "other-agents", "broken")?;
        cure(node)?;
        drop(sidecar);
        Ok(())
    });
}

#[test]
fn an_agent_that_ended_is_missed() {
    good_node(&ebpf(), |node, agent| {
        let _proxy = Proxy::start(node)?;
        agent.stop(libc::SIGTERM)?;
        found(node, "agent", "warning")?;
        let _agent = node.start_agent(&ebpf())?;
        ensure_good(node)
    });
}

/// Waits until the agent has done the repairs that `doctor` announces.
fn wait_until_good(node: &Node) -> Result<()> {
    cmd::wait_until(REPAIR_TIMEOUT, "the doctor to find nothing", || {
        Ok((doctor(node)?.code == GOOD).then_some(()))
    })
    .with_context(|| format!("{:#?}", doctor(node).map(|found| found.checks)))
}

#[test]
fn the_agent_repairs_what_is_its_own() {
    good_node(&ebpf(), |node, agent| {
        let _proxy = Proxy::start(node)?;
        ensure_good(node)?;
        agent.signal(libc::SIGSTOP)?;
        node.netns.exec("nft delete table ip proxy-agent")?;
        found(node, "tables", "warning")?;
        node.detach("pod0")?;
        found(node, "tc-programs", "warning")?;
        agent.signal(libc::SIGCONT)?;
        wait_until_good(node)
    });
}

#[test]
fn a_program_in_front_of_ours_is_named_and_gets_behind() -> Result<()> {
    if skip::without_tcx("a-program-in-front-of-ours")? {
        return Ok(());
    }
    good_node(&ebpf(), |node, _| {
        let _proxy = Proxy::start(node)?;
        let _foreign = ForeignProgram::attach(&node.netns, "pod0", Hook::Ingress, Place::First)?;
        let faults = found(node, "tc-programs", "warning")?;
        let line = text(&faults[0], "command");
        cmd::run(node.netns.command("sh").args(["-c", line]), "")?;
        wait_until_good(node)
    });
    Ok(())
}

#[test]
fn a_full_conntrack_table_is_reported() {
    good_node(&ebpf(), |node, _| {
        let _proxy = Proxy::start(node)?;
        ctnetlink::fill(&node.netns)?;
        found(node, "conntrack", "warning")?;
        // The limit applies to the whole machine, so the entries are removed instead.
        node.netns.exec("conntrack -F")?;
        ensure_good(node)
    });
}

#[test]
fn both_flavours_of_iptables_are_reported() {
    good_node(&ebpf(), |node, _| {
        let _proxy = Proxy::start(node)?;
        node.netns
            .exec("iptables-legacy -A FORWARD -s 192.0.2.1 -j DROP")?;
        found(node, "iptables-flavour", "warning")?;
        node.netns.exec("iptables-legacy -F")?;
        ensure_good(node)
    });
}

/// Without ipset the rules untrack every reply; with it each connection is decided.
#[test]
fn dnat_to_the_vip_breaks_stateless_rules_only() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let flags = ["--backend=iptables"];
        let mut agent = node.start_agent_missing(Missing::Ipset, &flags)?;
        let _proxy = Proxy::start(node)?;
        let faults = found(node, "dnat", "broken")?;
        ensure!(faults.len() == Family::ALL.len(), "{faults:#?}");
        found(node, "ipset", "warning")?;
        agent.stop(libc::SIGTERM)?;
        let mut agent = node.start_agent(&flags)?;
        ensure_good(node)?;
        agent.stop(libc::SIGTERM)?;
        let _agent = node.start_agent(&["--backend=ebpf"])?;
        ensure_good(node)
    });
}

#[test]
fn what_another_backend_left_is_removed_by_the_command() {
    good_node(&["--backend=none"], |node, agent| {
        let _proxy = Proxy::start(node)?;
        ensure_good(node)?;
        agent.signal(libc::SIGSTOP)?;
        let rule = "-d 10.96.0.2/32 -p tcp -m comment --comment 'proxy-agent: left' -j NOTRACK";
        let pins = node.agent_bpffs();
        for fault in [
            "nft add table ip6 proxy-agent".to_owned(),
            format!("iptables-nft -t raw -A OUTPUT {rule}"),
            format!("mkdir -p {}/links", pins.display()),
        ] {
            plant(node, "leftovers", "warning", &fault)?;
        }
        agent.signal(libc::SIGCONT)
    });
}

#[test]
fn a_missing_bpf_file_system_is_mounted_by_the_command() {
    good_node(&ebpf(), |node, _| {
        let _proxy = Proxy::start(node)?;
        let elsewhere = node.dir().join("plain");
        std::fs::create_dir_all(&elsewhere)?;
        let flag = format!("--bpffs={}", elsewhere.join("v1").display());
        let findings = run(node, command(node, &[&flag])?)?;
        let faults = findings.faults("bpffs");
        ensure!(findings.code == BROKEN && faults.len() == 1, "{faults:#?}");
        let line = text(faults[0], "command");
        cmd::run(Command::new("sh").args(["-c", line]), "")?;
        let findings = run(node, command(node, &[&flag])?)?;
        let umount = Command::new("umount").arg(&elsewhere).output()?;
        ensure!(umount.status.success(), "{umount:?}");
        ensure!(findings.faults("bpffs").is_empty());
        Ok(())
    });
}

#[test]
fn missing_rights_are_named() {
    Node::test(Topology::Veth, |node| {
        let ask = |without: &str| {
            let mut setpriv = node.netns.command("setpriv");
            setpriv
                .arg(format!("--bounding-set={without}"))
                .arg(agent::binary()?)
                .args(["doctor", "--ip-address=10.96.0.2"])
                .arg(format!("--run-dir={}", node.run_dir().display()));
            run(node, setpriv)
        };
        let findings = ask("-net_admin")?;
        let faults = findings.faults("capabilities");
        ensure!(findings.code == BROKEN && faults.len() == 1, "{faults:#?}");
        ensure!(
            text(faults[0], "remedy").contains("NET_ADMIN"),
            "{faults:#?}"
        );
        ensure!(ask("-net_raw")?.faults("capabilities").is_empty());
        Ok(())
    });
}

#[test]
fn a_refused_system_call_is_explained() {
    good_node(&ebpf(), |node, _| {
        let _proxy = Proxy::start(node)?;
        let mut command = command(node, &[])?;
        Missing::BpfPermission.apply(&mut command);
        let findings = run(node, command)?;
        let faults = findings.faults("bpf-syscall");
        ensure!(findings.code == BROKEN && faults.len() == 1, "{faults:#?}");
        ensure!(
            text(faults[0], "finding").contains("seccomp"),
            "{faults:#?}"
        );
        ensure_good(node)
    });
}

/// No option of `doctor` changes anything on the node.
#[test]
fn the_doctor_changes_nothing() {
    good_node(&ebpf(), |node, agent| {
        agent.signal(libc::SIGSTOP)?;
        let before = tests::snapshot::take(&node.netns)?;
        doctor(node)?;
        let after = tests::snapshot::take(&node.netns)?;
        let difference = tests::snapshot::difference(&before, &after);
        ensure!(difference.is_none(), "{}", difference.unwrap_or_default());
        agent.signal(libc::SIGCONT)
    });
}

#[test]
fn without_an_agent_the_vips_are_given() {
    Node::test(Topology::Veth, |node| {
        node.add_vips("lo")?;
        let _proxy = Proxy::start(node)?;
        let findings = run(node, command(node, &["--ip-address=10.96.0.2"])?)?;
        let faults: Vec<_> = findings.all_faults();
        let ids: Vec<_> = faults.iter().map(|fault| text(fault, "id")).collect();
        ensure!(
            ids.iter()
                .all(|id| ["agent", "bpffs", "vip-source"].contains(id)),
            "{faults:#?}"
        );
        // The address was added by hand, with scope global: the kernel would use it as the source of probes to pods.
        ensure!(ids.contains(&"vip-source"), "{faults:#?}");
        let findings = doctor(node)?;
        ensure!(findings.faults("vip").is_empty() && findings.code == WARNINGS);
        Ok(())
    });
}

#[test]
fn nothing_is_found_on_a_good_node_of_backend_nftables() {
    good_node(&["--backend=nftables"], |node, _| {
        let _proxy = Proxy::start(node)?;
        ensure_good(node)
    });
}
