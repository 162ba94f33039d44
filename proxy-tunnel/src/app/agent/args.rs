// SPDX-License-Identifier: Apache-2.0

//! The flags of `konnectivity-agent`, with upstream's names and defaults.

use clap::ArgAction;
use proxy_serve::value::{GoDuration, List};

use super::super::args::Common;

/// Connects to konnectivity servers and carries what they tunnel to targets in this network
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Client certificate for connections to servers
    #[arg(long, value_name = "FILE", default_value = "")]
    pub agent_cert: String,
    /// Key of --agent-cert
    #[arg(long, value_name = "FILE", default_value = "")]
    pub agent_key: String,
    /// CAs of servers
    #[arg(long, value_name = "FILE", default_value = "")]
    pub ca_cert: String,
    /// Hosts of servers, or of a load balancer before them; a list, or given several times
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", action = ArgAction::Append)]
    pub proxy_server_host: Vec<List>,
    /// Port of servers
    #[arg(long, value_name = "PORT", default_value_t = 8091)]
    pub proxy_server_port: i64,
    /// Name that is sent to servers (SNI) and must be in their certificate; empty: their host
    #[arg(long, value_name = "NAME", default_value = "")]
    pub proxy_server_name: String,
    /// Protocols of ALPN that are offered before h2
    #[arg(long, value_name = "LIST", default_value = "", action = ArgAction::Append)]
    pub alpn_proto: Vec<List>,
    /// Address for health and metrics; empty: every one
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub health_server_host: String,
    /// Port for health and metrics
    #[arg(long, value_name = "PORT", default_value_t = 8093)]
    pub health_server_port: i64,
    /// Address for administration
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub admin_bind_address: String,
    /// Port for administration
    #[arg(long, value_name = "PORT", default_value_t = 8094)]
    pub admin_server_port: i64,
    /// Name of this agent; empty: `PROXY_AGENT_ID` of the environment, else a random one
    #[arg(long, value_name = "NAME", default_value = "")]
    pub agent_id: String,
    /// Destinations that this agent can reach, as ipv4=ADDRESS&host=NAME; also ipv6, cidr, default-route
    #[arg(long, value_name = "QUERY", default_value = "")]
    pub agent_identifiers: String,
    /// Targets that may be connected to, as ADDRESS, CIDR or NAME, with :PORT or :FIRST-LAST if not for all ports; a list,
    /// or given several times; empty: all
    #[arg(long, value_name = "LIST", default_value = "", action = ArgAction::Append)]
    pub allow_destination: Vec<List>,
    /// Pause between two connections to servers
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub sync_interval: GoDuration,
    /// Longest pause after failures
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub sync_interval_cap: GoDuration,
    /// Accepted without effect: the end of a connection is noticed at once
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub probe_interval: GoDuration,
    /// Time without a byte after which a server is pinged; servers allow 30 s and more
    #[arg(long, value_name = "DURATION", default_value = "1h0m0s")]
    pub keepalive_time: GoDuration,
    /// File with the token of a service account, read for each connection
    #[arg(long, value_name = "FILE", default_value = "")]
    pub service_account_token_path: String,
    /// Go on connecting when there are as many connections as servers
    #[arg(long)]
    pub sync_forever: bool,
    /// Accepted; queues are bounded in bytes: --tunnel-stall-timeout, --buffer-budget
    #[arg(long, value_name = "N", default_value_t = 150)]
    pub xfr_channel_size: i64,
    /// Count servers by their leases
    #[arg(long)]
    pub count_server_leases: bool,
    /// Which leases are servers', as a label selector
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "k8s-app=konnectivity-server"
    )]
    pub lease_label_selector: String,
    /// Deprecated name of --lease-label-selector
    #[arg(long, value_name = "SELECTOR", hide = true, default_value = "")]
    pub lease_label: String,
    /// With leases: default, or max for the larger of leases and the number that servers announce
    #[arg(long, value_name = "SOURCE", default_value = "default")]
    pub server_count_source: String,

    /// Flags that server and agent share
    #[command(flatten)]
    pub common: Common,
}
