// SPDX-License-Identifier: Apache-2.0

//! The ways in which a node can treat connections to the API server.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use anyhow::Result;

use tests::agent::TRANSLATE;
use tests::netns::Netns;
use tests::{Family, PORT};

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// A namespace in which no packet meets netfilter.
    NoHooks,
    /// conntrack on, because kube-proxy's rules are there; clients use the VIP.
    Tracked,
    /// The same, clients use the ClusterIP.
    KubeProxy,
    /// The stateless rules of apiserver-proxy-sidecar, in iptables-legacy.
    LegacyNotrack,
    /// The same in iptables-nft.
    NftNotrack,
    /// Native rules of nf_tables: the least that rules can cost.
    Native,
    /// Our backend `iptables`.
    Iptables,
    /// Our backend `nftables`.
    Nftables,
    /// Our backend `ebpf`.
    Ebpf,
    /// The same with `--service-address`; clients use the ClusterIP.
    Service,
}

impl Variant {
    /// All.
    pub const ALL: [Self; 10] = [
        Self::NoHooks,
        Self::Tracked,
        Self::KubeProxy,
        Self::LegacyNotrack,
        Self::NftNotrack,
        Self::Native,
        Self::Iptables,
        Self::Nftables,
        Self::Ebpf,
        Self::Service,
    ];

    /// Those without which nothing can be said of the bars.
    pub const FEWEST: [Self; 6] = [
        Self::NoHooks,
        Self::Tracked,
        Self::KubeProxy,
        Self::Native,
        Self::Ebpf,
        Self::Service,
    ];

    /// In results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoHooks => "no hooks",
            Self::Tracked => "tracked",
            Self::KubeProxy => "kube-proxy DNAT, tracked",
            Self::LegacyNotrack => "iptables-legacy NOTRACK",
            Self::NftNotrack => "iptables-nft NOTRACK",
            Self::Native => "native nft notrack",
            Self::Iptables => "proxy-agent iptables",
            Self::Nftables => "proxy-agent nftables",
            Self::Ebpf => "proxy-agent ebpf",
            Self::Service => "proxy-agent ebpf, --service-address",
        }
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn target(self, family: Family) -> SocketAddr {
        match self {
            Self::KubeProxy | Self::Service => family.cluster_ip_socket(),
            _ => family.vip_socket(),
        }
    }

    /// The agent's flags; none for variants without an agent.
    #[must_use]
    pub fn agent(self) -> Option<Vec<&'static str>> {
        Some(match self {
            Self::Iptables => vec!["--backend=iptables"],
            Self::Nftables => vec!["--backend=nftables"],
            Self::Ebpf => vec!["--backend=ebpf"],
            Self::Service => vec!["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]],
            _ => return None,
        })
    }

    /// Sets up the rules of variants without an agent.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn install_rules(self, node: &Netns) -> Result<()> {
        match self {
            Self::LegacyNotrack => stateless(node, "legacy"),
            Self::NftNotrack => stateless(node, "nft"),
            Self::Native => node
                .feed("nft -f -", &Family::ALL.map(native).concat())
                .map(drop),
            _ => Ok(()),
        }
    }
}

impl Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn stateless(node: &Netns, flavour: &str) -> Result<()> {
    for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let vip = family.vip();
        let rules = format!(
            "*raw\n\
             -A PREROUTING -d {vip} -p tcp -m tcp --dport {PORT} -j NOTRACK\n\
             -A OUTPUT -d {vip} -p tcp -m tcp --dport {PORT} -j NOTRACK\n\
             -A OUTPUT -s {vip} -p tcp -m tcp --sport {PORT} -j NOTRACK\n\
             COMMIT\n\
             *filter\n\
             -A INPUT -d {vip} -p tcp -m tcp --dport {PORT} -j ACCEPT\n\
             -A OUTPUT -s {vip} -p tcp -m tcp --sport {PORT} -j ACCEPT\n\
             COMMIT\n"
        );
        let line = format!("{program}-{flavour}-restore --noflush --wait=10");
        node.feed(&line, &rules)?;
    }
    Ok(())
}

fn native(family: Family) -> String {
    let vip = family.vip();
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    format!(
        "table {ip} untracked {{\n\
         chain prerouting {{\n\
         type filter hook prerouting priority raw;\n\
         {ip} daddr {vip} tcp dport {PORT} notrack\n\
         }}\n\
         chain output {{\n\
         type filter hook output priority raw;\n\
         {ip} daddr {vip} tcp dport {PORT} notrack\n\
         {ip} saddr {vip} tcp sport {PORT} notrack\n\
         }}\n\
         }}\n"
    )
}
