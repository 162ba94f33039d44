// SPDX-License-Identifier: Apache-2.0

//! The flags of `konnectivity-server`, with upstream's names and defaults.

use clap::ArgAction;
use proxy_serve::value::{GoDuration, List};

use super::super::args::Common;

/// Tunnels connections of an API server to agents, which carry them into a cluster's network
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Certificate for clients on TCP
    #[arg(long, value_name = "FILE", default_value = "")]
    pub server_cert: String,
    /// Key of --server-cert
    #[arg(long, value_name = "FILE", default_value = "")]
    pub server_key: String,
    /// CAs of clients on TCP; they need a certificate
    #[arg(long, value_name = "FILE", default_value = "")]
    pub server_ca_cert: String,
    /// Certificate for agents
    #[arg(long, value_name = "FILE", default_value = "")]
    pub cluster_cert: String,
    /// Key of --cluster-cert
    #[arg(long, value_name = "FILE", default_value = "")]
    pub cluster_key: String,
    /// CAs of agents; if given, agents need a certificate
    #[arg(long, value_name = "FILE", default_value = "")]
    pub cluster_ca_cert: String,
    /// Protocol of clients: grpc or http-connect
    #[arg(long, default_value = "grpc")]
    pub mode: String,
    /// With --mode=http-connect: accept requests for http URLs too, besides CONNECT
    #[arg(long)]
    pub allow_absolute_form: bool,
    /// Unix socket for clients, instead of TCP; needs --server-port=0
    #[arg(long, value_name = "FILE", default_value = "")]
    pub uds_name: String,
    /// Remove an old socket of the same name first
    #[arg(long, default_value_t = true)]
    pub delete_existing_uds_file: bool,
    /// Port for clients; 0 with --uds-name
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub server_port: i64,
    /// Address for clients; empty: every one
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub server_bind_address: String,
    /// Port for agents
    #[arg(long, value_name = "PORT", default_value_t = 8091)]
    pub agent_port: i64,
    /// Address for agents; empty: every one
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub agent_bind_address: String,
    /// Port for health and metrics
    #[arg(long, value_name = "PORT", default_value_t = 8092)]
    pub health_port: i64,
    /// Address for health and metrics; empty: every one
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub health_bind_address: String,
    /// Port for administration
    #[arg(long, value_name = "PORT", default_value_t = 8095)]
    pub admin_port: i64,
    /// Address for administration
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub admin_bind_address: String,
    /// Time without a byte after which an agent is pinged
    #[arg(long, value_name = "DURATION", default_value = "1h0m0s")]
    pub keepalive_time: GoDuration,
    /// Time without a byte after which a client is pinged
    #[arg(long, value_name = "DURATION", default_value = "1h0m0s")]
    pub frontend_keepalive_time: GoDuration,
    /// Name of this server; empty: `PROXY_SERVER_ID` of the environment, else a random one
    #[arg(long, value_name = "NAME", default_value = "")]
    pub server_id: String,
    /// Number of servers, as announced to agents
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub server_count: u32,
    /// Namespace of the agents' service account, for token reviews
    #[arg(long, value_name = "NAME", default_value = "")]
    pub agent_namespace: String,
    /// The agents' service account, for token reviews
    #[arg(long, value_name = "NAME", default_value = "")]
    pub agent_service_account: String,
    /// Audience of the agents' tokens
    #[arg(long, value_name = "NAME", default_value = "")]
    pub authentication_audience: String,
    /// File with the rules of the tenants that share this server; empty: there is a single one
    #[arg(long, value_name = "FILE", default_value = "")]
    pub tenants_config: String,
    /// Accepted; this program asks the API server a few times a minute
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub kubeconfig_qps: f64,
    /// Accepted, as --kubeconfig-qps
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub kubeconfig_burst: i64,
    /// How an agent is chosen, in this order: default, destHost, defaultRoute
    #[arg(long, value_name = "LIST", default_value = "default", action = ArgAction::Append)]
    pub proxy_strategies: Vec<List>,
    /// Cipher suites of TLS 1.2 and 1.3 by Go's names; empty: all
    #[arg(long, value_name = "LIST", default_value = "", action = ArgAction::Append)]
    pub cipher_suites: Vec<List>,
    /// Least version of TLS: `VersionTLS12` or `VersionTLS13`
    #[arg(long, value_name = "VERSION", default_value = "")]
    pub tls_min_version: String,
    /// Accepted; queues are bounded in bytes: --tunnel-stall-timeout, --buffer-budget
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub xfr_channel_size: i64,
    /// Accepted, as --xfr-channel-size
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub frontend_write_channel_size: i64,
    /// Keep a lease for this server, and delete expired ones
    #[arg(long)]
    pub enable_lease_controller: bool,
    /// Labels of the leases, as key=value,key=value
    #[arg(
        long,
        value_name = "LABELS",
        default_value = "k8s-app=konnectivity-server"
    )]
    pub lease_label: String,
    /// How long connections may go on after the first SIGTERM; 0: they are cut
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub graceful_shutdown_timeout: GoDuration,
    /// How long an agent may take to answer a dial; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub backend_dial_timeout: GoDuration,

    /// Flags that server and agent share
    #[command(flatten)]
    pub common: Common,
}
