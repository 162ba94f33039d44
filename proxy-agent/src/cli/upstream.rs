// SPDX-License-Identifier: Apache-2.0

//! The API servers of `--proxy-upstream`.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::args::Args;
use super::services::Resolved;
use super::values::{AUTO, Endpoint, OFF, Upstream};
use crate::config::ProxyUpstream;

/// An invalid value.
#[derive(Debug, Error)]
#[error("invalid value '{value}' for '--proxy-upstream': {reason}")]
pub struct Refused {
    value: String,
    reason: Flaw,
}

/// The reason why a value is invalid.
#[derive(Debug, Error)]
enum Flaw {
    #[error("cannot be combined with other values")]
    Alone,
    #[error("given more than once; give it once")]
    Repeated,
    #[error("{0} is one of --ip-address, the proxy's own; give the API servers behind it")]
    Vip(IpAddr),
    #[error(
        "{0} is one of {1}: a ClusterIP is translated by conntrack; give the API servers behind it"
    )]
    ClusterIp(IpAddr, &'static str),
}

/// Validates the values against each other and other flags.
///
/// # Errors
///
/// The first invalid value.
pub fn resolve(args: &Args, services: &Resolved) -> Result<ProxyUpstream, Refused> {
    let mut endpoints = Vec::new();
    for given in &args.proxy_upstream {
        let (word, meaning) = match given {
            Upstream::Auto => (AUTO, ProxyUpstream::Auto),
            Upstream::Off => (OFF, ProxyUpstream::Off),
            Upstream::Given(Endpoint { text, address }) => {
                if let Some(reason) = flaw(*address, &endpoints, args, services) {
                    let value = text.clone();
                    return Err(Refused { value, reason });
                }
                endpoints.push(*address);
                continue;
            }
        };
        if args.proxy_upstream.len() == 1 {
            return Ok(meaning);
        }
        return Err(Refused {
            value: word.to_owned(),
            reason: Flaw::Alone,
        });
    }
    Ok(ProxyUpstream::Named(endpoints))
}

/// The reason why an endpoint is invalid after those in `endpoints`.
fn flaw(
    address: SocketAddr,
    endpoints: &[SocketAddr],
    args: &Args,
    services: &Resolved,
) -> Option<Flaw> {
    let ip = address.ip();
    let is_service = services
        .services
        .iter()
        .any(|one| one.cluster_ip.ip() == ip);
    let is_repaired = services.repair.iter().any(|one| one.ip() == ip);
    if endpoints.contains(&address) {
        Some(Flaw::Repeated)
    } else if args.ip_address.contains(&ip) {
        Some(Flaw::Vip(ip))
    } else if is_service {
        Some(Flaw::ClusterIp(ip, "--service-address"))
    } else if is_repaired {
        Some(Flaw::ClusterIp(ip, "--repair-conntrack"))
    } else {
        None
    }
}
