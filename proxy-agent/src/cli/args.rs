// SPDX-License-Identifier: Apache-2.0

//! The flags as clap sees them. What they mean together is decided in `cli`.

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
#[expect(
    clippy::struct_excessive_bools,
    reason = "every flag stands for itself"
)]
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

    /// The link that carries the VIPs; created as a dummy where it is missing
    #[arg(
        long, env = "PROXY_AGENT_INTERFACE", value_name = "LINK", help_heading = "VIP",
        default_value = "lo", value_parser = values::link_name
    )]
    pub interface: String,

    /// How the VIPs are on their link. auto: global where a link cilium_host is, link otherwise; global: an
    /// IPv4 VIP with scope global, an IPv6 one preferred; link: with scope link, and deprecated, so that the
    /// kernel takes no VIP as the source of other traffic
    #[arg(
        long,
        env = "PROXY_AGENT_ADDRESS_SCOPE",
        value_name = "SCOPE",
        help_heading = "VIP",
        value_enum,
        default_value = "auto"
    )]
    pub address_scope: AddressScope,

    /// How conntrack is kept out of the path
    #[arg(
        long,
        env = "PROXY_AGENT_BACKEND",
        value_name = "BACKEND",
        help_heading = "Data plane",
        value_enum,
        default_value = "auto"
    )]
    pub backend: BackendChoice,

    /// The ClusterIPs whose connections end on the proxy at the VIP of their family, separated by
    /// commas; repeatable. Without a port: 443; with one, IPv6 in brackets. auto: the address in
    /// KUBERNETES_SERVICE_HOST and its port; nothing if a host name stands there
    #[arg(
        long, env = "PROXY_AGENT_SERVICE_ADDRESS", value_name = "IP[:PORT][,...]|auto",
        help_heading = "Data plane", value_delimiter = ',', value_parser = values::service_address
    )]
    pub service_address: Vec<ServiceAddress>,

    /// Which listener counts as the proxy for --service-address: one that is bound to the VIP, or any
    /// that takes its connections, be it on the wildcard address
    #[arg(
        long,
        env = "PROXY_AGENT_PROXY_LISTENER",
        value_name = "WHICH",
        help_heading = "Data plane",
        value_enum,
        default_value = "vip"
    )]
    pub proxy_listener: ProxyListener,

    /// The API servers to which the proxy's own connections are untracked, separated by commas; repeatable.
    /// Without a port: 443; with one, IPv6 in brackets. Only connections from the cgroup in which the proxy
    /// listens on the VIP; with backend ebpf or nftables. auto: endpoints to which the proxy has had
    /// connections without NAT. off: all of them are tracked
    #[arg(
        long, env = "PROXY_AGENT_PROXY_UPSTREAM", value_name = "auto|off|IP[:PORT][,...]",
        help_heading = "Data plane", default_value = "auto", value_delimiter = ',',
        value_parser = values::proxy_upstream
    )]
    pub proxy_upstream: Vec<Upstream>,

    /// How long connections to a ClusterIP may go on that is given up.
    #[command(flatten)]
    pub drain: Drain,

    /// Further ClusterIPs whose stale conntrack entries are deleted, written as above; repeatable.
    /// Those of --service-address always are
    #[arg(
        long, env = "PROXY_AGENT_REPAIR_CONNTRACK", value_name = "IP[:PORT][,...]",
        help_heading = "Data plane", value_delimiter = ',', value_parser = values::endpoint
    )]
    pub repair_conntrack: Vec<Endpoint>,

    /// The sidecar's spelling: true is --backend=iptables, false is --backend=none; an explicit
    /// --backend wins
    #[arg(
        long, env = "PROXY_AGENT_SETUP_IPTABLES", value_name = "BOOL", help_heading = "Data plane",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = parse_bool
    )]
    pub setup_iptables: Option<bool>,

    /// Where packets from outside for the VIPs are dropped. auto: on links that carry a default route in
    /// any routing table, or on the ports of a bridge that does, without those of pods
    #[arg(
        long, env = "PROXY_AGENT_GUARD", value_name = "auto|off|LINK[,LINK...]",
        help_heading = "Guard", default_value = "auto", value_delimiter = ',',
        value_parser = values::guarded_link
    )]
    pub guard: Vec<String>,

    /// tc: in the TC program; xdp: before that in an XDP program too, with backend ebpf
    #[arg(
        long,
        env = "PROXY_AGENT_GUARD_MODE",
        value_name = "MODE",
        help_heading = "Guard",
        value_enum,
        default_value = "tc"
    )]
    pub guard_mode: GuardMode,

    /// Networks or addresses that may reach the VIPs from outside, separated by commas; repeatable
    #[arg(
        long, env = "PROXY_AGENT_ALLOW_FROM", value_name = "CIDR[,CIDR...]", help_heading = "Guard",
        value_delimiter = ',', value_parser = values::network
    )]
    pub allow_from: Vec<IpNet>,

    /// When to let untracked packets of the VIPs, of Services that end on the proxy, and of the proxy's own
    /// connections pass in the iptables filter table
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

    /// How many connections each table of connections has room for, from 1024 to 16777216; without
    /// room a new connection is tracked
    #[arg(
        long, env = "PROXY_AGENT_MAX_CONNECTIONS", value_name = "N", help_heading = "Data plane",
        default_value_t = DEFAULT_MAX_CONNECTIONS, allow_hyphen_values = true,
        value_parser = value_parser!(u32).range(1024..=16_777_216)
    )]
    pub max_connections: u32,

    /// Keep running and repair; false: one pass, exit 0 only if the node is then as desired
    #[arg(
        long, env = "PROXY_AGENT_DAEMON", value_name = "BOOL", help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true", value_parser = parse_bool
    )]
    pub daemon: bool,

    /// Time between two full resyncs, besides the repairs by event; like 30s or 1m30s
    #[arg(
        long, env = "PROXY_AGENT_SYNC_INTERVAL", value_name = "DURATION",
        help_heading = "Operation", default_value = "1m0s", value_parser = values::interval,
        allow_hyphen_values = true
    )]
    pub sync_interval: Duration,

    /// On SIGTERM and SIGINT, remove everything that is the agent's, and nothing else
    #[arg(
        long, env = "PROXY_AGENT_CLEANUP", value_name = "BOOL", help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub cleanup: bool,

    /// Print what would be done, change nothing
    #[arg(
        long, env = "PROXY_AGENT_DRY_RUN", value_name = "BOOL", help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub dry_run: bool,

    /// Where /metrics, /healthz, /readyz and /status are served; :PORT is every address, empty: nowhere
    #[arg(
        long, env = "PROXY_AGENT_LISTEN", value_name = "IP:PORT", help_heading = "Operation",
        default_value = LISTEN, value_parser = values::listen
    )]
    pub listen: Listen,

    /// /readyz fails while nothing that counts as the proxy (--proxy-listener) listens on a VIP with its port
    #[arg(
        long, env = "PROXY_AGENT_READY_REQUIRES_LISTENER", value_name = "BOOL",
        help_heading = "Operation",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = parse_bool
    )]
    pub ready_requires_listener: bool,

    /// Where the agent keeps what outlives it.
    #[command(flatten)]
    pub location: Location,

    /// How records are written
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

    /// What to do instead of running as the agent.
    #[command(subcommand)]
    pub command: Option<Subcommand>,
}

/// How long a clean-up waits for connections.
#[derive(Debug, Clone, clap::Args)]
pub struct Drain {
    /// How long live connections to a ClusterIP may go on after a clean-up has begun, or the ClusterIP
    /// or the backend is given up; what is left is reset. 0s: at once
    #[arg(
        long, env = "PROXY_AGENT_DRAIN_TIMEOUT", value_name = "DURATION",
        help_heading = "Data plane", default_value = "30s", allow_hyphen_values = true,
        value_parser = values::drain
    )]
    drain_timeout: Duration,
}

impl Drain {
    /// The time.
    pub fn timeout(&self) -> Duration {
        self.drain_timeout
    }
}

/// Where an agent keeps what outlives it.
#[derive(Debug, Clone, clap::Args)]
pub struct Location {
    /// Which of several agents of this node, each with VIPs of its own; up to 10 of a to z, 0 to 9 and
    /// hyphens, part of the name of everything that is this agent's
    #[arg(
        long,
        env = "PROXY_AGENT_INSTANCE",
        value_name = "NAME",
        help_heading = "Paths",
        default_value = "",
        hide_default_value = true
    )]
    pub instance: Instance,

    /// Directory on a BPF file system for what outlives the agent: maps and links [default:
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
    /// The directory of pins, as given or as the instance has it.
    pub fn bpffs(&self) -> PathBuf {
        let given = self.bpffs.clone();
        given.unwrap_or_else(|| paths::bpffs(self.instance))
    }

    /// The run directory, as given or as the instance has it.
    pub fn run_dir(&self) -> PathBuf {
        let given = self.run_dir.clone();
        given.unwrap_or_else(|| paths::run_dir(self.instance))
    }
}

/// What else the program does.
#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Tell what the agent of this node is doing: VIPs, backend, counters, repairs, drift
    ///
    /// Changes nothing. Exit code 0 if the agent runs and is ready, 1 if not or if none has run here.
    Status {
        /// How it is written; the fields of json are described in docs/status.md
        #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
        output: Output,

        /// Links without traffic too
        #[arg(long)]
        all: bool,

        /// Where the agent keeps what outlives it.
        #[command(flatten)]
        location: Location,
    },

    /// Remove everything of the agent from this node; no agent may run. Exit code 0 if nothing is left
    ///
    /// Rules, tables, sets, programs, maps, VIPs, a link that the agent created, and its run directory,
    /// whatever backend and version left them. Connections go on. A line tells what became of each.
    Cleanup {
        /// Print what would be removed, change nothing
        #[arg(long)]
        dry_run: bool,

        /// The VIPs, where no agent has told them or others are meant, separated by commas
        #[arg(
            long, env = "PROXY_AGENT_IP_ADDRESS", value_name = "IP[,IP...]", value_delimiter = ',',
            value_parser = values::vip
        )]
        ip_address: Vec<IpAddr>,

        /// The link that carries the VIPs, where no agent has told it
        #[arg(
            long, env = "PROXY_AGENT_INTERFACE", value_name = "LINK",
            value_parser = values::link_name
        )]
        interface: Option<String>,

        /// How long connections to a ClusterIP may go on.
        #[command(flatten)]
        drain: Drain,

        /// Where the agent keeps what outlives it.
        #[command(flatten)]
        location: Location,
    },

    /// Print what the eBPF loader takes this kernel for: the agent asks itself
    #[command(name = crate::kernel::features::SUBCOMMAND, hide = true)]
    KernelFeatures,

    /// Print a script that completes the command line in a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },

    /// Look for what may be wrong on this node, and say what to do about it; changes nothing
    #[command(after_help = super::DOCTOR_AFTER_HELP)]
    Doctor {
        /// Where to look.
        #[command(flatten)]
        location: Location,

        /// How the findings are printed
        #[arg(long, value_name = "FORMAT", value_enum, default_value = "table")]
        output: Output,

        /// The VIPs, where no agent has told them or others are meant, separated by commas
        #[arg(
            long, value_name = "IP[,IP...]", value_delimiter = ',', value_parser = values::vip
        )]
        ip_address: Vec<IpAddr>,

        /// The proxy's ports, where no agent has told them or others are meant, separated by commas
        #[arg(
            long, value_name = "PORT[,PORT...]", value_delimiter = ',', value_parser = values::port
        )]
        port: Vec<u16>,
    },
}
