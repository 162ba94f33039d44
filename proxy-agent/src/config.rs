// SPDX-License-Identifier: Apache-2.0

//! The validated settings that every other module works from. How they are spelled on the command
//! line is `cli.rs`'s business.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proxy_serve::log::LogOptions;
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// The target under which the lines of the eBPF programs are logged.
pub const EBPF_TARGET: &str = "ebpf";

/// Everything the agent was told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which of the agents of this node it is.
    pub instance: Instance,
    /// The VIPs: at least one, no duplicates, in the order given.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports: at least one, none 0, no duplicates, in the order given.
    pub ports: Vec<u16>,
    /// The link that carries the VIPs, 1 to 15 bytes.
    pub interface: String,
    /// Whether the kernel may take a VIP as the source of other traffic.
    pub address_scope: AddressScope,
    /// Time between two full resyncs, above zero.
    pub sync_interval: Duration,
    /// False: one pass, then exit.
    pub daemon: bool,
    /// Remove everything that is ours on exit.
    pub cleanup: bool,
    /// How conntrack is kept out of the path.
    pub backend: BackendChoice,
    /// The Services whose connections end on the proxy, in the order given.
    pub services: Vec<Service>,
    /// Which listener counts as the proxy.
    pub proxy_listener: ProxyListener,
    /// Where the proxy's own connections are untracked.
    pub proxy_upstream: ProxyUpstream,
    /// How long live connections to a Service that is given up may go on.
    pub drain_timeout: Duration,
    /// Further endpoints whose stale conntrack entries are deleted, in the order given; those of
    /// `services` always are, and are not among them.
    pub repair: Vec<SocketAddr>,
    /// When ACCEPT rules are set in the iptables filter table.
    pub accept_rules: AcceptRules,
    /// Where packets for the VIPs are dropped.
    pub guard: Guard,
    /// How.
    pub guard_mode: GuardMode,
    /// Networks whose packets may come from outside all the same.
    pub allow_from: Vec<IpNet>,
    /// Print the plan, change nothing.
    pub dry_run: bool,
    /// Where metrics and health are served.
    pub serve: Serve,
    /// Directory on a BPF file system for pinned maps and links.
    pub bpffs: PathBuf,
    /// Directory for the agent's own state.
    pub run_dir: PathBuf,
    /// How many connections each table of connections has room for.
    pub max_connections: u32,
    /// How TC programs are attached.
    pub tc_attach: TcAttach,
    /// Where and how to log.
    pub log: LogOptions,
}

impl Config {
    /// The addresses of the Services that end on the proxy.
    pub fn service_ips(&self) -> Vec<IpAddr> {
        let services = self.services.iter();
        services.map(|service| service.cluster_ip.ip()).collect()
    }

    /// The VIPs with each of the ports.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        endpoints(&self.vips, &self.ports)
    }

    /// Whether the eBPF programs log their own lines. These cost time on every packet, so the agent's debug level
    /// alone does not bring them.
    pub fn debugs_programs(&self) -> bool {
        self.log.is_debugging(EBPF_TARGET)
    }
}

/// Where metrics and health are served, and what it takes to be ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serve {
    /// The first of these addresses that can be bound; none: nothing is served.
    pub addresses: Vec<SocketAddr>,
    /// Not ready while nobody listens on a VIP with its port.
    pub ready_requires_listener: bool,
}

/// Addresses, each with each of the ports.
pub fn endpoints(vips: &[IpAddr], ports: &[u16]) -> impl Iterator<Item = SocketAddr> {
    vips.iter()
        .flat_map(move |vip| ports.iter().map(|port| SocketAddr::new(*vip, *port)))
}

/// A Service whose connections end on the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What clients connect to: no VIP, and no other Service's.
    pub cluster_ip: SocketAddr,
    /// What they reach: one of the VIPs with one of the ports, of the same family.
    pub vip: SocketAddr,
}

/// Which listener counts as the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyListener {
    /// One that is bound to the VIP
    #[default]
    Vip,
    /// One on the wildcard address too
    Any,
}

/// Where the proxy's own connections are untracked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyUpstream {
    /// Nowhere
    #[default]
    Off,
    /// To endpoints that connections of the proxy show to be free of NAT
    Auto,
    /// To these endpoints: no VIP, no ClusterIP of a Service, each a unicast address
    Named(Vec<SocketAddr>),
}

/// Whether the kernel may take a VIP as the source of traffic that nobody has bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressScope {
    /// global where Cilium runs, link otherwise
    #[default]
    Auto,
    /// It may: IPv4 with scope global, IPv6 preferred
    Global,
    /// It must not: IPv4 with scope link, IPv6 deprecated
    Link,
}

/// How conntrack is kept out of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendChoice {
    /// The first that works, in the order that follows
    Auto,
    /// eBPF programs and rules of nf_tables, decided per connection
    Ebpf,
    /// Rules and sets of nf_tables, decided per connection; no eBPF, no iptables
    Nftables,
    /// iptables rules, decided per connection with ipset, stateless without
    Iptables,
    /// The VIP only
    None,
}

impl Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl BackendChoice {
    /// As it is written on the command line.
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

/// When the two ACCEPT rules are set in the iptables filter table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptRules {
    /// Where an iptables filter table has rules or a policy other than ACCEPT
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How TC programs are attached to links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcAttach {
    /// tcx where the kernel has it (6.6), clsact otherwise
    Auto,
    /// BPF links of the tcx hook
    Tcx,
    /// Filters on the clsact qdisc
    Clsact,
}

/// Where packets for the VIPs are dropped.
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

/// Where on a guarded link packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// In the TC program
    #[default]
    Tc,
    /// Before that in an XDP program too, in the driver if it can, otherwise in the stack
    Xdp,
}
