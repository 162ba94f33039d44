// SPDX-License-Identifier: Apache-2.0

//! Validated settings, the input of all other modules. `cli` reads them from the command line.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proxy_serve::flags::Values;
use proxy_serve::log::LogOptions;
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// Log target of the eBPF programs' lines.
pub const EBPF_TARGET: &str = "ebpf";

/// The validated settings of an agent. Those without `skip` are in its state file, where other processes find them; fields with
/// `default` are absent in files of older versions. The default has no VIP and no directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The name of this agent among those of the node.
    #[serde(default)]
    pub instance: Instance,
    /// The VIPs: at least one, no duplicates, in the order given.
    pub vips: Vec<IpAddr>,
    /// Ports of the proxy: at least one, none 0, no duplicates, in the order given.
    pub ports: Vec<u16>,
    /// The link that carries the VIPs, 1 to 15 bytes.
    pub interface: String,
    /// Whether the kernel may select a VIP as the source address of other traffic.
    #[serde(default)]
    pub address_scope: AddressScope,
    /// Time between two full resyncs, above zero.
    pub sync_interval: Duration,
    /// False: exit after one pass.
    #[serde(skip)]
    pub daemon: bool,
    /// Remove all objects of the agent on exit.
    #[serde(skip)]
    pub cleanup: bool,
    /// Which backend keeps the VIPs' connections out of conntrack.
    #[serde(skip)]
    pub backend: BackendChoice,
    /// The Services whose connections end on the proxy, in the order given.
    pub services: Vec<Service>,
    /// Which listener counts as the proxy.
    #[serde(default)]
    pub proxy_listener: ProxyListener,
    /// Which of the proxy's own connections are untracked.
    #[serde(default)]
    pub proxy_upstream: ProxyUpstream,
    /// How long open connections to a Service may continue after the Service is no longer handled.
    #[serde(skip)]
    pub drain_timeout: Duration,
    /// Further endpoints whose stale conntrack entries are deleted, in the order given, in addition to those of `services`.
    #[serde(skip)]
    pub repair: Vec<SocketAddr>,
    /// When ACCEPT rules are added to the iptables filter table.
    pub accept_rules: AcceptRules,
    /// On which links packets for the VIPs are dropped.
    #[serde(default)]
    pub guard: Guard,
    /// By which hook.
    #[serde(default)]
    pub guard_mode: GuardMode,
    /// Source networks that are not dropped.
    #[serde(default)]
    pub allow_from: Vec<IpNet>,
    /// Print the plan and exit.
    #[serde(skip)]
    pub dry_run: bool,
    /// The HTTP endpoint for metrics and health.
    #[serde(skip)]
    pub serve: Serve,
    /// Directory on a BPF file system for pinned maps and links.
    pub bpffs: PathBuf,
    /// Directory of the agent's lock and state.
    #[serde(skip)]
    pub run_dir: PathBuf,
    /// Capacity of each table of connections.
    pub max_connections: u32,
    /// How TC programs are attached.
    pub tc_attach: TcAttach,
    /// Destination and level of the log.
    #[serde(skip)]
    pub log: LogOptions,
}

impl Config {
    /// The addresses of `services`.
    pub fn service_ips(&self) -> Vec<IpAddr> {
        let services = self.services.iter();
        services.map(|service| service.cluster_ip.ip()).collect()
    }

    /// Every VIP with every port.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        endpoints(&self.vips, &self.ports)
    }

    /// Whether the eBPF programs log lines of their own. This costs time for every packet, so it needs a level of its own.
    pub fn debugs_programs(&self) -> bool {
        self.log.is_debugging(EBPF_TARGET)
    }
}

/// The HTTP endpoint for metrics and health, and the conditions of readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serve {
    /// Candidates; the first that can be bound is used. Empty: nothing is served.
    pub addresses: Vec<SocketAddr>,
    /// Readiness requires a listener on every VIP and port.
    pub ready_requires_listener: bool,
    /// The flags with their effective values, shown on a page.
    pub flags: Values,
}

/// Every address with every port.
pub fn endpoints(vips: &[IpAddr], ports: &[u16]) -> impl Iterator<Item = SocketAddr> {
    vips.iter()
        .flat_map(move |vip| ports.iter().map(|port| SocketAddr::new(*vip, *port)))
}

/// A Service whose connections end on the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The destination of clients: neither a VIP nor the address of another Service.
    pub cluster_ip: SocketAddr,
    /// Where their connections end: one of the VIPs with one of the ports, of the same family.
    pub vip: SocketAddr,
}

/// Which listener counts as the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyListener {
    /// A listener bound to the VIP
    #[default]
    Vip,
    /// Also a listener bound to the wildcard address
    Any,
}

/// Which of the proxy's own connections are untracked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyUpstream {
    /// None
    #[default]
    Off,
    /// Those to endpoints that observed connections of the proxy reach without NAT
    Auto,
    /// Those to these endpoints: no VIP, no ClusterIP of a Service, each a unicast address
    Named(Vec<SocketAddr>),
}

/// Whether the kernel may select a VIP as the source address of sockets that are not bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressScope {
    /// global on nodes with Cilium, link otherwise
    #[default]
    Auto,
    /// Allowed: IPv4 with scope global, IPv6 preferred
    Global,
    /// Not allowed: IPv4 with scope link, IPv6 deprecated
    Link,
}

/// The backend that keeps the VIPs' connections out of conntrack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum BackendChoice {
    /// The first backend in this list that is usable
    #[default]
    Auto,
    /// eBPF programs and nf_tables rules, stateful: one decision for each connection
    Ebpf,
    /// nf_tables rules and sets, stateful; neither eBPF nor iptables
    Nftables,
    /// iptables rules, stateful with ipset, stateless without
    Iptables,
    /// No backend: only the VIP is kept up
    None,
}

impl Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl BackendChoice {
    /// The value of `--backend`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::None => "none",
        }
    }
}

/// When ACCEPT rules are added to the iptables filter table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptRules {
    /// If an iptables filter table has rules or a policy other than ACCEPT
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How TC programs are attached to links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcAttach {
    /// tcx if the kernel supports it (6.6), else clsact
    #[default]
    Auto,
    /// BPF links of the tcx hook
    Tcx,
    /// Filters on the clsact qdisc
    Clsact,
}

/// On which links packets for the VIPs are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// On links that carry a default route
    #[default]
    Auto,
    /// Nowhere
    Off,
    /// On these links
    Links(Vec<String>),
}

impl Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Links(links) => f.write_str(&links.join(",")),
        }
    }
}

/// By which hook packets are dropped on a guarded link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// The TC program
    #[default]
    Tc,
    /// An XDP program before it, in driver mode if supported, else in generic mode
    Xdp,
}
