// SPDX-License-Identifier: Apache-2.0

//! The flags of `konnectivity-sidecar`.

use clap::ArgAction;
use proxy_serve::value::List;

use super::super::reach::ReachArgs;

/// An HTTP proxy for the programs of a pod, which reaches targets behind a konnectivity server
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where this proxy listens: a loopback address with a port, or the path of a Unix socket; empty: 127.0.0.1:8097
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub listen: String,
    /// File with several tenants, each with an address to listen on; empty: there is one, by these flags
    #[arg(long, value_name = "FILE", default_value = "")]
    pub tenants_config: String,
    /// Targets that may be reached, as ADDRESS, CIDR or NAME, with :PORT or :FIRST-LAST if not for all ports; a list, or given
    /// several times; empty: all
    #[arg(long, value_name = "LIST", default_value = "", action = ArgAction::Append)]
    pub allow_destination: Vec<List>,
    /// Connections of clients at once, for each tenant
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_connections: u32,
    /// Port for health and metrics
    #[arg(long, value_name = "PORT", default_value_t = 8096)]
    pub health_port: i64,
    /// Address for health and metrics; empty: every one
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub health_bind_address: String,

    /// Where the server is
    #[command(flatten)]
    pub reach: ReachArgs,
}
