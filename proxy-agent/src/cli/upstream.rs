// SPDX-License-Identifier: Apache-2.0

//! The API servers of `--proxy-upstream`.

use std::net::IpAddr;

use thiserror::Error;

use super::args::Args;
use super::services::Resolved;
use super::values::{Endpoint, Upstream};
use crate::config::ProxyUpstream;

/// A value that cannot stand.
#[derive(Debug, Error)]
#[error("invalid value '{value}' for '--proxy-upstream': {reason}")]
pub struct Refused {
    value: String,
    reason: Flaw,
}

/// What is wrong with it.
#[derive(Debug, Error)]
enum Flaw {
    #[error("it stands alone; give it or API servers")]
    Alone,
    #[error("given more than once; give it once")]
    Repeated,
    #[error("{0} is one of --ip-address, where the proxy listens; give the API servers behind it")]
    Vip(IpAddr),
    #[error(
        "{0} is one of {1}: a ClusterIP is translated by conntrack; give the API servers behind it"
    )]
    ClusterIp(IpAddr, &'static str),
}

/// Checks the values beside those of other flags.
///
/// # Errors
///
/// The first value that cannot stand.
pub fn resolve(args: &Args, services: &Resolved) -> Result<ProxyUpstream, Refused> {
    let mut endpoints = Vec::new();
    for given in &args.proxy_upstream {
        let Upstream::Given(Endpoint { text, address }) = given else {
            if args.proxy_upstream.len() == 1 {
                return Ok(ProxyUpstream::Off);
            }
            return Err(Refused {
                value: "off".to_owned(),
                reason: Flaw::Alone,
            });
        };
        let ip = address.ip();
        let is_service = services
            .services
            .iter()
            .any(|one| one.cluster_ip.ip() == ip);
        let is_repaired = services.repair.iter().any(|one| one.ip() == ip);
        let reason = if endpoints.contains(address) {
            Flaw::Repeated
        } else if args.ip_address.contains(&ip) {
            Flaw::Vip(ip)
        } else if is_service {
            Flaw::ClusterIp(ip, "--service-address")
        } else if is_repaired {
            Flaw::ClusterIp(ip, "--repair-conntrack")
        } else {
            endpoints.push(*address);
            continue;
        };
        return Err(Refused {
            value: text.clone(),
            reason,
        });
    }
    Ok(ProxyUpstream::Named(endpoints))
}
