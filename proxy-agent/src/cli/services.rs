// SPDX-License-Identifier: Apache-2.0

//! `--service-address` and `--repair-conntrack`: resolves `auto`, and assigns each Service to a VIP endpoint.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use proxy_common::service::MAX_SERVICE_PORTS;
use thiserror::Error;

use super::args::Args;
use super::values::{self, AUTO, Endpoint, SERVICE_PORT, ServiceAddress};
use crate::config::Service;
use proxy_serve::log::Remark;

const SERVICE_ADDRESS: &str = "--service-address";
const REPAIR_CONNTRACK: &str = "--repair-conntrack";

/// The address of the `kubernetes` Service, which Kubernetes sets in every container.
const HOST: &str = "KUBERNETES_SERVICE_HOST";
/// Its port, the named one first: the other one is the Service's first port, whichever that is.
const PORTS: [&str; 2] = ["KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_SERVICE_PORT"];

/// The resolved flags.
#[derive(Debug)]
pub struct Resolved {
    /// The Services that end on the proxy, in the order given.
    pub services: Vec<Service>,
    /// Further endpoints to repair.
    pub repair: Vec<SocketAddr>,
    /// Why `auto` resolved to no Service.
    pub remark: Option<Remark>,
}

/// An invalid value.
#[derive(Debug, Error)]
#[error("invalid value '{value}' for '{flag}': {reason}")]
pub struct Refused {
    flag: &'static str,
    value: String,
    reason: Flaw,
}

/// The reason why a value is invalid.
#[derive(Debug, Error)]
enum Flaw {
    #[error("given more than once; give it once")]
    Repeated,
    #[error("{0} is one of --ip-address; give the ClusterIP of a Service")]
    Vip(IpAddr),
    #[error(
        "there is no VIP of its family; add an {0} address to --ip-address, or remove this \
         value"
    )]
    Family(&'static str),
    #[error(
        "{0} is not among the values of --port, so the proxy's port is ambiguous; give the \
         ClusterIP with one of those ports, or add {0} to --port"
    )]
    Port(u16),
    #[error("more than {MAX_SERVICE_PORTS} ports of one address; give at most {MAX_SERVICE_PORTS}")]
    Ports,
    #[error("{HOST} is not set; run in a container of the cluster, or give the ClusterIP")]
    Unset,
    #[error("its variable {variable} has the value '{value}': {reason}")]
    Variable {
        variable: &'static str,
        value: String,
        reason: String,
    },
}

/// Resolves the flags; `variable` returns environment variables that are set and not empty.
///
/// # Errors
///
/// The first invalid value.
pub fn resolve(
    args: &Args,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Resolved, Refused> {
    let mut resolved = Resolved {
        services: Vec::new(),
        repair: Vec::new(),
        remark: None,
    };
    for (index, given) in args.service_address.iter().enumerate() {
        let (text, address) = match given {
            ServiceAddress::Given(endpoint) => (endpoint.text.as_str(), endpoint.address),
            ServiceAddress::Auto => {
                let is_repeated = args.service_address[..index].contains(given);
                let read = if is_repeated {
                    Err(Flaw::Repeated)
                } else {
                    auto(&variable)
                };
                match read.map_err(|flaw| refused(SERVICE_ADDRESS, AUTO, flaw))? {
                    Auto::Address(address) => (AUTO, address),
                    Auto::Name(host) => {
                        resolved.remark = Some(nothing(&host));
                        continue;
                    }
                }
            }
        };
        let service = service(address, args, &resolved.services)
            .map_err(|flaw| refused(SERVICE_ADDRESS, text, flaw))?;
        resolved.services.push(service);
    }
    for (index, given) in args.repair_conntrack.iter().enumerate() {
        check_repair(given, &args.repair_conntrack[..index], &args.ip_address)
            .map_err(|flaw| refused(REPAIR_CONNTRACK, &given.text, flaw))?;
        let ends_here = |service: &Service| service.cluster_ip == given.address;
        if !resolved.services.iter().any(ends_here) {
            resolved.repair.push(given.address);
        }
    }
    Ok(resolved)
}

fn refused(flag: &'static str, value: &str, reason: Flaw) -> Refused {
    Refused {
        flag,
        value: value.to_owned(),
        reason,
    }
}

/// Determines where a Service ends: the first VIP of its family, with the same port if the proxy listens on it, else with
/// the proxy's only port.
fn service(cluster_ip: SocketAddr, args: &Args, before: &[Service]) -> Result<Service, Flaw> {
    if before.iter().any(|other| other.cluster_ip == cluster_ip) {
        return Err(Flaw::Repeated);
    }
    if args.ip_address.contains(&cluster_ip.ip()) {
        return Err(Flaw::Vip(cluster_ip.ip()));
    }
    let is_of_family = |vip: &&IpAddr| vip.is_ipv4() == cluster_ip.is_ipv4();
    let vip = args.ip_address.iter().find(is_of_family);
    let family = if cluster_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let vip = vip.ok_or(Flaw::Family(family))?;
    let port = match args.port[..] {
        _ if args.port.contains(&cluster_ip.port()) => cluster_ip.port(),
        [only] => only,
        _ => return Err(Flaw::Port(cluster_ip.port())),
    };
    let same = before
        .iter()
        .filter(|other| other.cluster_ip.ip() == cluster_ip.ip());
    if same.count() >= MAX_SERVICE_PORTS {
        return Err(Flaw::Ports);
    }
    Ok(Service {
        cluster_ip,
        vip: SocketAddr::new(*vip, port),
    })
}

fn check_repair(given: &Endpoint, before: &[Endpoint], vips: &[IpAddr]) -> Result<(), Flaw> {
    if before.iter().any(|other| other.address == given.address) {
        return Err(Flaw::Repeated);
    }
    if vips.contains(&given.address.ip()) {
        return Err(Flaw::Vip(given.address.ip()));
    }
    Ok(())
}

/// The value of Kubernetes' variables.
enum Auto {
    Address(SocketAddr),
    Name(String),
}

fn auto(variable: impl Fn(&str) -> Option<String>) -> Result<Auto, Flaw> {
    let host = variable(HOST).ok_or(Flaw::Unset)?;
    if host.parse::<IpAddr>().is_err() {
        return Ok(Auto::Name(host));
    }
    let mut address = match values::endpoint(&host) {
        Ok(endpoint) => endpoint.address,
        Err(error) => return Err(in_variable(HOST, host, &error)),
    };
    let mut port = SERVICE_PORT;
    let set = PORTS
        .into_iter()
        .find_map(|name| Some((name, variable(name)?)));
    if let Some((name, value)) = set {
        port = match values::port(&value) {
            Ok(port) => port,
            Err(error) => return Err(in_variable(name, value, &error)),
        };
    }
    address.set_port(port);
    Ok(Auto::Address(address))
}

fn in_variable(variable: &'static str, value: String, error: &impl Display) -> Flaw {
    Flaw::Variable {
        variable,
        value,
        reason: error.to_string(),
    }
}

/// The log line for pods that reach the API server by a host name, as with Gardener's webhook.
fn nothing(host: &str) -> Remark {
    Remark::Info(format!(
        "{SERVICE_ADDRESS}=auto: {HOST} is '{host}', not an IP address: no Service ends on the proxy; \
         to change that, give the ClusterIP"
    ))
}
