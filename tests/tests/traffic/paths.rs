// SPDX-License-Identifier: Apache-2.0

//! For every backend, form of kube-proxy and topology: which of the paths to the proxy work, that they carry data
//! intact, and the entries that they leave in conntrack.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::client;
use tests::conntrack;
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::{Family, skip, transfer};

/// The number of bytes that each path carries in each direction.
const BYTES: u64 = 10 * 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);
/// The time-out of the connections that are known to get no reply.
const SHORT_TIMEOUT: Duration = Duration::from_millis(1500);

/// The expected outcome of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Tracked,
    Untracked,
    TimesOut,
}

/// The mechanism that keeps conntrack out of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    NoAgent,
    Agent {
        args: &'static [&'static str],
        missing: Option<Missing>,
        via_vip: Outcome,
        via_cluster_ip: Outcome,
    },
}

const NO_AGENT: Column = Column::NoAgent;
const NONE: Column = Column::Agent {
    args: &["--backend=none"],
    missing: None,
    via_vip: Outcome::Tracked,
    via_cluster_ip: Outcome::Tracked,
};
const EBPF: Column = Column::Agent {
    args: &["--backend=ebpf"],
    missing: None,
    via_vip: Outcome::Untracked,
    via_cluster_ip: Outcome::Tracked,
};
const EBPF_CLSACT: Column = Column::Agent {
    args: &["--backend=ebpf", "--tc-attach=clsact"],
    missing: None,
    via_vip: Outcome::Untracked,
    via_cluster_ip: Outcome::Tracked,
};
/// The `iptables` backend with ipset.
const IPTABLES: Column = Column::Agent {
    args: &["--backend=iptables"],
    missing: None,
    via_vip: Outcome::Untracked,
    via_cluster_ip: Outcome::Tracked,
};
const NFTABLES: Column = Column::Agent {
    args: &["--backend=nftables"],
    missing: None,
    via_vip: Outcome::Untracked,
    via_cluster_ip: Outcome::Tracked,
};
/// The known limit of stateless rules: kube-proxy's translation is never undone for the reply.
const IPTABLES_STATELESS: Column = Column::Agent {
    args: &["--backend=iptables"],
    missing: Some(Missing::Ipset),
    via_vip: Outcome::Untracked,
    via_cluster_ip: Outcome::TimesOut,
};

impl Column {
    fn outcome(self, via: Via) -> Outcome {
        match (self, via) {
            (Self::NoAgent, _) => Outcome::Tracked,
            (Self::Agent { via_vip, .. }, Via::Vip) => via_vip,
            (Self::Agent { via_cluster_ip, .. }, Via::ClusterIp) => via_cluster_ip,
        }
    }
}

fn check(column: Column, kube_proxy: KubeProxy, topology: Topology) {
    Node::test(topology, |node| check_on(node, column, kube_proxy));
}

fn check_on(node: &Node, column: Column, kube_proxy: KubeProxy) -> Result<()> {
    kube_proxy.install(&node.netns)?;
    let _agent = match column {
        Column::NoAgent => {
            node.add_vips("lo")?;
            None
        }
        Column::Agent {
            args,
            missing: Some(missing),
            ..
        } => Some(node.start_agent_missing(missing, args)?),
        Column::Agent { args, .. } => Some(node.start_agent(args)?),
    };
    let _proxy = Proxy::start(node)?;
    let (dead, working): (Vec<_>, Vec<_>) = node
        .paths()
        .into_iter()
        .partition(|path| column.outcome(path.via) == Outcome::TimesOut);
    std::thread::scope(|scope| {
        // These connections run in parallel, because each waits for its whole time-out.
        let dead: Vec<_> = dead
            .iter()
            .map(|path| scope.spawn(move || times_out(path)))
            .collect();
        carries_data(node, &working, column)?;
        dead.into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })
}

fn times_out(path: &Path<'_>) -> Result<()> {
    let result = client::connect(path.netns, path.destination(), SHORT_TIMEOUT);
    let kind = result.map(drop).map_err(|error| error.kind());
    ensure!(
        kind == Err(std::io::ErrorKind::TimedOut),
        "{path}: the known limit of the stateless rules is gone: {kind:?}"
    );
    Ok(())
}

fn carries_data(node: &Node, paths: &[Path<'_>], column: Column) -> Result<()> {
    let mut clients: Vec<SocketAddr> = Vec::new();
    for (seed, path) in (1..).zip(paths) {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| format!("{path}: connecting"))?;
        ensure!(stream.peer_addr()? == path.destination(), "{path}: peer");
        clients.push(stream.local_addr()?);
        transfer::exchange(&mut stream, BYTES, seed).with_context(|| format!("{path}"))?;
    }
    for family in Family::ALL {
        let entries = conntrack::list(&node.netns, family)?;
        for (path, client) in paths.iter().zip(&clients) {
            if path.family != family {
                continue;
            }
            let found = conntrack::of_client(&entries, *client);
            let wanted = usize::from(column.outcome(path.via) == Outcome::Tracked);
            ensure!(
                found.len() == wanted,
                "{path}: {wanted} conntrack entries expected for {client}, found {found:#?}"
            );
        }
    }
    Ok(())
}

/// Defines one test for each form of kube-proxy, topology and column.
macro_rules! matrix {
    ($($column:ident: $which:expr;)*) => {$(
        mod $column {
            use super::*;

            matrix!(@topology $which, veth, Topology::Veth);
            matrix!(@topology $which, bridge, Topology::Bridge);
            matrix!(@topology $which, bridge_netfilter, Topology::BridgeNetfilter);
        }
    )*};
    (@topology $which:expr, $name:ident, $topology:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn iptables_legacy() {
                check($which, KubeProxy::IptablesLegacy, $topology);
            }

            #[test]
            fn iptables_nft() {
                check($which, KubeProxy::IptablesNft, $topology);
            }

            #[test]
            fn nftables() {
                check($which, KubeProxy::Nftables, $topology);
            }
        }
    };
}

matrix! {
    no_agent: NO_AGENT;
    ebpf: EBPF;
    nftables: NFTABLES;
    iptables: IPTABLES;
    iptables_stateless: IPTABLES_STATELESS;
}

#[test]
fn none_keeps_the_vip_and_nothing_else() {
    check(NONE, KubeProxy::IptablesNft, Topology::Veth);
}

#[test]
fn the_default_is_ebpf() {
    let column = Column::Agent {
        args: &[],
        missing: None,
        via_vip: Outcome::Untracked,
        via_cluster_ip: Outcome::Tracked,
    };
    check(column, KubeProxy::IptablesNft, Topology::Bridge);
}

/// The sidecar's spelling of `--backend=iptables`.
#[test]
fn setup_iptables_true() {
    let column = Column::Agent {
        args: &["--setup-iptables=true"],
        missing: None,
        via_vip: Outcome::Untracked,
        via_cluster_ip: Outcome::Tracked,
    };
    check(column, KubeProxy::IptablesLegacy, Topology::Veth);
}

#[test]
fn ebpf_by_clsact_through_veth() {
    check(EBPF_CLSACT, KubeProxy::IptablesNft, Topology::Veth);
}

#[test]
fn ebpf_by_clsact_through_a_bridge() {
    check(
        EBPF_CLSACT,
        KubeProxy::IptablesLegacy,
        Topology::BridgeNetfilter,
    );
}

/// Segments are larger than 64 KiB: in IPv6 a hop-by-hop header then precedes the TCP header.
#[test]
fn ebpf_with_big_tcp() -> Result<()> {
    if skip::before((5, 19), "BIG TCP", "ebpf-with-big-tcp")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        for pod in &node.pods {
            let sizes = "gso_max_size 180000 gro_max_size 180000";
            pod.netns.ip(&format!("link set eth0 {sizes}\n"))?;
            node.netns
                .ip(&format!("link set {} {sizes}\n", pod.host_link))?;
        }
        check_on(node, EBPF, KubeProxy::IptablesNft)
    });
    Ok(())
}
