// SPDX-License-Identifier: Apache-2.0

//! The flags as declared for clap. Their combination is validated in `cli`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, value_parser};
use clap_complete::Shell;
use ipnet::IpNet;
use proxy_common::limits::DEFAULT_MAX_CONNECTIONS;
use proxy_serve::klog::KlogArgs;
use proxy_serve::log::LogFormat;
use proxy_serve::value::parse_bool;

use super::values::{self, Endpoint, Listen, ServiceAddress, Upstream};
use crate::config::{AcceptRules, AddressScope, BackendChoice, GuardMode, ProxyListener, TcAttach};
use crate::instance::{Instance, paths};
use crate::klog::Underscores;
use crate::status::Output;

/// The default of `--listen`.
pub const LISTEN: &str = "127.0.0.1:9465";

/// Keeps the VIP of the API server's local proxy up on this node, and conntrack out of its path.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
#[expect(clippy::doc_markdown, reason = "the text of --help")]
#[command(
    name = "proxy-agent",
    version,
    max_term_width = 100,
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    after_help = super::AFTER_HELP
)]
pub struct Args {
    /// The VIPs, IPv4 or IPv6, separated by commas; repeatable
    #[arg(
        long, env = "PROXY_AGENT_IP_ADDRESS", value_name = "IP[,IP...]", help_heading = "VIP",
        required = true, value_delimiter = ',', value_parser = values::vip
    )]
    pub ip_address: Vec<IpAddr>,

    /// The TCP ports the proxy listens on, separated by commas; repeatable
    #[arg(
        long, env = "PROXY_AGENT_PORT", value_name = "PORT[,PORT...]", help_heading = "VIP",
        default_value = "443", value_delimiter = ',', value_parser = values::port,
        allow_hyphen_values = true
    )]
    pub port: Vec<u16>,

    /// The link that carries the VIPs; created as a dummy link if it does not exist
    #[arg(
        long, env = "PROXY_AGENT_INTERFACE", value_name = "LINK", help_heading = "VIP",
        default_value = "lo", value_parser = values::link_name
    )]
    pub interface: String,

    /// Scope of the VIPs. auto: global if a link cilium_host exists, else link; global: IPv4 with scope global,
    /// IPv6 preferred; link: IPv4 with scope link, IPv6 deprecated, so that the kernel does not select a VIP as
    /// the source address of other traffic
    #[arg(
        long,
        env = "PROXY_AGENT_ADDRESS_SCOPE",
        value_name = "SCOPE",
        help_heading = "VIP",
        value_enum,
        default_value = "auto"
    )]
    pub address_scope: AddressScope,

    /// The data plane that keeps the VIPs' connections out of conntrack
    #[arg(
        long,
        env = "PROXY_AGENT_BACKEND",
        value_name = "BACKEND",
        help_heading = "Data plane",
        value_enum,
        default_value = "auto"
    )]
    pub backend: BackendChoice,

    /// ClusterIPs whose connections end on the proxy at the VIP of their family, separated by commas; repeatable.
    /// Default port: 443; IPv6 with a port in brackets. auto: address and port from KUBERNETES_SERVICE_HOST and
    /// KUBERNETES_SERVICE_PORT; none if the host is a name
    #[arg(
        long, env = "PROXY_AGENT_SERVICE_ADDRESS", value_name = "IP[:PORT][,...]|auto",
        help_heading = "Data plane", value_delimiter = ',', value_parser = values::service_address
    )]
    pub service_address: Vec<ServiceAddress>,

    /// Which listener counts as the proxy for --service-address: only one bound to the VIP, or also one bound
    /// to the wildcard address
    #[arg(
        long,
        env = "PROXY_AGENT_PROXY_LISTENER",
        value_name = "WHICH",
        help_heading = "Data plane",
        value_enum,
        default_value = "vip"
    )]
    pub proxy_listener: ProxyListener,

    /// API servers to which the proxy's own connections are untracked, separated by commas; repeatable. Default
    /// port: 443; IPv6 with a port in brackets. Applies to connections from the cgroup in which the proxy listens
    /// on the VIP, with backend ebpf or nftables. auto: learn endpoints that the proxy's connections reach without
    /// NAT. off: none
    #[arg(
        long, env = "PROXY_AGENT_PROXY_UPSTREAM", value_name = "auto|off|IP[:PORT][,...]",
        help_heading = "Data plane", default_value = "auto", value_delimiter = ',',
        value_parser = values::proxy_upstream
    )]
    pub proxy_upstream: Vec<Upstream>,

    /// How long connections to a ClusterIP may continue.
    #[command(flatten)]
    pub drain: Drain,

    /// Further ClusterIPs whose stale conntrack entries are deleted, in addition to those of --service-address;
    /// same syntax; repeatable
    #[arg(
        long, env = "PROXY_AGENT_REPAIR_CONNTRACK", value_name = "IP[:PORT][,...]",
        help_heading = "Data plane", value_delimiter = ',', value_parser = values::endpoint
    )]
    pub repair_conntrack: Vec<Endpoint>,

    /// Compatible with the sidecar: true means --backend=iptables, false --backend=none; --backend takes
    /// precedence
    #[arg(
        long, env = "PROXY_AGENT_SETUP_IPTABLES", value_name = "BOOL", help_heading = "Data plane",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = parse_bool
    )]
    pub setup_iptables: Option<bool>,

    /// Links on which packets for the VIPs from outside of the node are dropped. auto: links with a default route
    /// in any routing table; for a bridge, its ports except those of pods
    #[arg(
        long, env = "PROXY_AGENT_GUARD", value_name = "auto|off|LINK[,LINK...]",
        help_heading = "Guard", default_value = "auto", value_delimiter = ',',
        value_parser = values::guarded_link
    )]
    pub guard: Vec<String>,

    /// tc: drop in the TC program; xdp: drop in an XDP program before it, with backend ebpf
    #[arg(
        long,
        env = "PROXY_AGENT_GUARD_MODE",
        value_name = "MODE",
        help_heading = "Guard",
        value_enum,
        default_value = "tc"
    )]
    pub guard_mode: GuardMode,

    /// Networks or addresses outside of the node that may reach the VIPs, separated by commas; repeatable
    #[arg(
        long, env = "PROXY_AGENT_ALLOW_FROM", value_name = "CIDR[,CIDR...]", help_heading = "Guard",
        value_delimiter = ',', value_parser = values::network
    )]
    pub allow_from: Vec<IpNet>,

    /// When to accept untracked packets of the VIPs, of Services that end on the proxy, and of the proxy's own
    /// connections in the iptables filter table
    #[arg(
        long,
        env = "PROXY_AGENT_ACCEPT_RULES",
        value_name = "WHEN",
        help_heading = "Data plane",
        value_enum,
        default_value = "auto"
    )]
    pub accept_rules: AcceptRules,

    /// How TC programs are attached to links
    #[arg(
        long,
        env = "PROXY_AGENT_TC_ATTACH",
        value_name = "HOW",
        help_heading = "Data plane",
        value_enum,
        default_value = "auto"
    )]
    pub tc_attach: TcAttach,

    /// Capacity of each table of connections, from 1024 to 16777216; connections beyond it are tracked
    #[arg(
        long, env = "PROXY_AGENT_MAX_CONNECTIONS", value_name = "N", help_heading = "Data plane",
        default_value_t = DEFAULT_MAX_CONNECTIONS, allow_hyphen_values = true,
        value_parser = value_parser!(u32).range(1024..=16_777_216)
    )]
    pub max_connections: u32,

    /// Keep running and repair changes; false: exit after one pass, with 0 if the node is as desired
    #[arg(
        long, env = "PROXY_AGENT_DAEMON", value_name = "BOOL", help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true", value_parser = parse_bool
    )]
    pub daemon: bool,

    /// Time between two full resyncs, in addition to passes on events, for example 30s or 1m30s
    #[arg(
        long, env = "PROXY_AGENT_SYNC_INTERVAL", value_name = "DURATION",
        help_heading = "Operation", default_value = "1m0s", value_parser = values::interval,
        allow_hyphen_values = true
    )]
    pub sync_interval: Duration,

    /// Remove all objects of the agent on SIGTERM and SIGINT
    #[arg(
        long, env = "PROXY_AGENT_CLEANUP", value_name = "BOOL", help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub cleanup: bool,

    /// Print the changes that a pass would make, and exit
    #[arg(
        long, env = "PROXY_AGENT_DRY_RUN", value_name = "BOOL", help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub dry_run: bool,

    /// Address of /metrics, /healthz, /readyz, /status and pages for browsers; :PORT listens on all addresses, an
    /// empty value disables it
    #[arg(
        long, env = "PROXY_AGENT_LISTEN", value_name = "IP:PORT", help_heading = "Operation",
        default_value = LISTEN, value_parser = values::listen
    )]
    pub listen: Listen,

    /// /readyz fails unless the proxy (see --proxy-listener) listens on every VIP and port
    #[arg(
        long, env = "PROXY_AGENT_READY_REQUIRES_LISTENER", value_name = "BOOL",
        help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub ready_requires_listener: bool,

    /// Directories and name of the agent.
    #[command(flatten)]
    pub location: Location,

    /// Format of log records
    #[arg(
        long,
        env = "PROXY_AGENT_LOG_FORMAT",
        value_name = "FORMAT",
        help_heading = "Logging",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// klog's flags.
    #[command(flatten)]
    pub klog: KlogArgs<Underscores>,

    /// The subcommand, instead of running the agent.
    #[command(subcommand)]
    pub command: Option<Subcommand>,
}

/// How long a clean-up waits for connections to end.
#[derive(Debug, Clone, clap::Args)]
pub struct Drain {
    /// How long open connections to a ClusterIP may continue after a clean-up, or after the ClusterIP or the
    /// backend was removed from the settings; remaining ones are reset. 0s: at once
    #[arg(
        long, env = "PROXY_AGENT_DRAIN_TIMEOUT", value_name = "DURATION",
        help_heading = "Data plane", default_value = "30s", allow_hyphen_values = true,
        value_parser = values::drain
    )]
    drain_timeout: Duration,
}

impl Drain {
    /// The duration.
    pub fn timeout(&self) -> Duration {
        self.drain_timeout
    }
}

/// Directories and name of an agent.
#[derive(Debug, Clone, clap::Args)]
pub struct Location {
    /// Name of this agent if several run on the node, each with VIPs of its own; up to 10 characters of a to z, 0
    /// to 9 and hyphen; part of the names of all its objects
    #[arg(
        long,
        env = "PROXY_AGENT_INSTANCE",
        value_name = "NAME",
        help_heading = "Paths",
        default_value = "",
        hide_default_value = true
    )]
    pub instance: Instance,

    /// Directory on a BPF file system for pinned maps and links [default:
    /// /sys/fs/bpf/proxy-agent/v2; with --instance, /sys/fs/bpf/proxy-agent-NAME/v2]
    #[arg(
        long, env = "PROXY_AGENT_BPFFS", value_name = "DIR", help_heading = "Paths",
        value_parser = values::directory
    )]
    pub bpffs: Option<PathBuf>,

    /// Directory for the agent's lock and state [default: /run/proxy-agent; with --instance,
    /// /run/proxy-agent-NAME]
    #[arg(
        long, env = "PROXY_AGENT_RUN_DIR", value_name = "DIR", help_heading = "Paths",
        value_parser = values::directory
    )]
    pub run_dir: Option<PathBuf>,
}

impl Location {
    /// The directory of the pins: as given, or the instance's default.
    pub fn bpffs(&self) -> PathBuf {
        let given = self.bpffs.clone();
        given.unwrap_or_else(|| paths::bpffs(self.instance))
    }

    /// The run directory: as given, or the instance's default.
    pub fn run_dir(&self) -> PathBuf {
        let given = self.run_dir.clone();
        given.unwrap_or_else(|| paths::run_dir(self.instance))
    }
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Print the state of this node's agent: VIPs, backend, counters, repairs, drift
    ///
    /// Changes nothing. Exit code 0 if the agent runs and is ready, else 1.
    Status {
        /// Output format; docs/status.md describes the fields of json
        #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
        output: Output,

        /// Also show links without traffic
        #[arg(long)]
        all: bool,

        /// Directories and name of the agent.
        #[command(flatten)]
        location: Location,
    },

    /// Remove all objects of the agent from this node; no agent may run. Exit code 0 if nothing is left
    ///
    /// Removes rules, tables, sets, programs, maps, VIPs, a link created by the agent, and its run directory, of
    /// any backend and version. Open connections continue. Prints one line for each object.
    Cleanup {
        /// Print the objects that would be removed, and exit
        #[arg(long)]
        dry_run: bool,

        /// The VIPs, if they are not in the agent's state file, or to override it; separated by commas
        #[arg(
            long, env = "PROXY_AGENT_IP_ADDRESS", value_name = "IP[,IP...]", value_delimiter = ',',
            value_parser = values::vip
        )]
        ip_address: Vec<IpAddr>,

        /// The link that carries the VIPs, if it is not in the agent's state file
        #[arg(
            long, env = "PROXY_AGENT_INTERFACE", value_name = "LINK",
            value_parser = values::link_name
        )]
        interface: Option<String>,

        /// How long connections to a ClusterIP may continue.
        #[command(flatten)]
        drain: Drain,

        /// Directories and name of the agent.
        #[command(flatten)]
        location: Location,
    },

    /// Print the kernel features that the eBPF loader detects; used by the agent itself
    #[command(name = crate::features::SUBCOMMAND, hide = true)]
    KernelFeatures,

    /// Print a completion script for a shell
    Completions {
        /// The shell to complete for
        #[arg(value_enum)]
        shell: Shell,
    },

    /// Diagnose problems of this node and suggest remedies; changes nothing
    #[command(after_help = super::DOCTOR_AFTER_HELP)]
    Doctor {
        /// Directories and name of the agent.
        #[command(flatten)]
        location: Location,

        /// Output format
        #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
        output: Output,

        /// The VIPs, if they are not in the agent's state file, or to override it; separated by commas
        #[arg(
            long, value_name = "IP[,IP...]", value_delimiter = ',', value_parser = values::vip
        )]
        ip_address: Vec<IpAddr>,

        /// The proxy's ports, if they are not in the agent's state file, or to override it; separated by commas
        #[arg(
            long, value_name = "PORT[,PORT...]", value_delimiter = ',', value_parser = values::port
        )]
        port: Vec<u16>,
    },
}
