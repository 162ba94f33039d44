// SPDX-License-Identifier: Apache-2.0

//! Parsers of single values. Their errors follow clap's "invalid value '…' for '--flag': " and name the reason and a valid
//! value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

use proxy_serve::value::{DurationError, GoDuration};

/// Maximum length of a link's name in bytes: the kernel's `IFNAMSIZ` without the terminating zero.
const MAX_LINK_NAME: usize = 15;
/// The port of the `kubernetes` Service.
pub const SERVICE_PORT: u16 = 443;
/// The spelling of [`ServiceAddress::Auto`].
pub const AUTO: &str = "auto";
/// Shorter intervals would keep the agent busy with resyncs alone.
const MIN_INTERVAL: GoDuration = GoDuration::from_millis(1);
/// A year; longer intervals are likely typos.
const MAX_INTERVAL: GoDuration = GoDuration::from_secs(365 * 24 * 3600);

/// An invalid VIP.
#[derive(Debug, Error)]
pub enum VipError {
    /// A host name or other text.
    #[error("not an IP address; give one like 169.254.20.2 or fd00::2")]
    Syntax,
    /// An address with a prefix length.
    #[error("a prefix length is not allowed; give the address alone")]
    Prefix,
    /// An address that cannot be a VIP.
    #[error("{0}; give a unicast address that nothing else uses, for example 169.254.20.2")]
    Unusable(&'static str),
    /// An IPv4-mapped IPv6 address, which the kernel treats as the IPv4 address.
    #[error("an IPv4-mapped IPv6 address; give the IPv4 address")]
    Mapped,
}

/// Parses a VIP: a unicast address that is neither loopback nor link-local IPv6.
pub fn vip(text: &str) -> Result<IpAddr, VipError> {
    let address: IpAddr = text.parse().map_err(|_| match text.split_once('/') {
        Some((address, _)) if address.parse::<IpAddr>().is_ok() => VipError::Prefix,
        _ => VipError::Syntax,
    })?;
    match flaw(address) {
        _ if is_mapped(address) => Err(VipError::Mapped),
        Some(flaw) => Err(VipError::Unusable(flaw)),
        None => Ok(address),
    }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The reason why an address can be neither a VIP nor a ClusterIP.
fn flaw(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if is_mapped(address) => Some("an IPv4-mapped IPv6 address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

/// An endpoint of a Service: its ClusterIP with one of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The text of the value.
    pub text: String,
    /// The parsed address.
    pub address: SocketAddr,
}

/// A value of `--service-address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceAddress {
    /// The address in Kubernetes' environment variables.
    Auto,
    /// A literal address.
    Given(Endpoint),
}

/// An invalid endpoint of a Service.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// A host name or other text.
    #[error(
        "not an IP address with or without a port; give a ClusterIP, like 10.96.0.1, \
         10.96.0.1:443 or [fd00::1]:443"
    )]
    Syntax,
    /// An invalid port.
    #[error("'{0}' is {PortError}")]
    Port(String),
    /// An address that cannot be a ClusterIP.
    #[error("{0}; give the ClusterIP of a Service, for example 10.96.0.1")]
    Unusable(&'static str),
}

/// Parses an endpoint: an address, or an address and a port, where IPv6 needs brackets. The default port is that of the
/// `kubernetes` Service.
pub fn endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    let (address, port) = match text.parse() {
        Ok(address) => (address, SERVICE_PORT),
        Err(_) => split(text)?,
    };
    if let Some(flaw) = flaw(address) {
        return Err(EndpointError::Unusable(flaw));
    }
    Ok(Endpoint {
        text: text.to_owned(),
        address: SocketAddr::new(address, port),
    })
}

/// Splits `address:port`, `[address]:port` and `[address]`.
fn split(text: &str) -> Result<(IpAddr, u16), EndpointError> {
    let (address, rest) = if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or(EndpointError::Syntax)?;
        (address.parse::<Ipv6Addr>().map(IpAddr::V6), rest)
    } else {
        let colon = text.find(':').ok_or(EndpointError::Syntax)?;
        let (address, rest) = text.split_at(colon);
        (address.parse(), rest)
    };
    let address = address.map_err(|_| EndpointError::Syntax)?;
    if rest.is_empty() {
        return Ok((address, SERVICE_PORT));
    }
    let digits = rest.strip_prefix(':').ok_or(EndpointError::Syntax)?;
    match port(digits) {
        Ok(port) => Ok((address, port)),
        Err(PortError) => Err(EndpointError::Port(digits.to_owned())),
    }
}

/// Parses a value of `--service-address`.
pub fn service_address(text: &str) -> Result<ServiceAddress, EndpointError> {
    if text == AUTO {
        return Ok(ServiceAddress::Auto);
    }
    endpoint(text).map(ServiceAddress::Given)
}

/// A value of `--proxy-upstream`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// None.
    Off,
    /// Learned endpoints.
    Auto,
    /// A literal endpoint.
    Given(Endpoint),
}

/// An invalid endpoint of an API server.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// A host name or other text.
    #[error(
        "not an IP address with or without a port; give that of an API server, like 192.0.2.1, \
         192.0.2.1:6443 or [2001:db8::1]:443, or auto or off"
    )]
    Syntax,
    /// An invalid port.
    #[error("'{0}' is {PortError}")]
    Port(String),
    /// An address that cannot be that of an API server.
    #[error("{0}; give the address of an API server as the proxy connects to it")]
    Unusable(&'static str),
}

impl From<EndpointError> for UpstreamError {
    fn from(error: EndpointError) -> Self {
        match error {
            EndpointError::Syntax => Self::Syntax,
            EndpointError::Port(digits) => Self::Port(digits),
            EndpointError::Unusable(flaw) => Self::Unusable(flaw),
        }
    }
}

/// Parses a value of `--proxy-upstream`.
pub fn proxy_upstream(text: &str) -> Result<Upstream, UpstreamError> {
    match text {
        AUTO => Ok(Upstream::Auto),
        OFF => Ok(Upstream::Off),
        _ => Ok(Upstream::Given(endpoint(text)?)),
    }
}

/// An invalid TCP port.
#[derive(Debug, Error)]
#[error("not a TCP port; give a number from 1 to 65535")]
pub struct PortError;

/// Parses a TCP port other than 0.
pub fn port(text: &str) -> Result<u16, PortError> {
    // `parse` alone would take "+443".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortError);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(PortError)
}

/// An invalid name of a link.
#[derive(Debug, Error)]
pub enum LinkNameError {
    /// Empty.
    #[error("the name is empty; give the name of a link, for example lo")]
    Empty,
    /// Over 15 bytes.
    #[error("the name has {0} bytes; Linux allows {MAX_LINK_NAME}; give a shorter one")]
    TooLong(usize),
    /// `.` or `..`.
    #[error("no link can have this name; give another, for example lo")]
    Reserved,
    /// A character that the kernel rejects.
    #[error("the name of a link cannot contain a slash, a colon, a percent sign or a space")]
    Character,
}

/// Parses the name of a link, by the rules of the kernel's `dev_valid_name` (`net/core/dev.c`).
///
/// A percent sign is rejected too: the kernel treats such a name as a pattern (`dev_alloc_name`) and creates a link of
/// another name.
pub fn link_name(text: &str) -> Result<String, LinkNameError> {
    match text {
        "" => return Err(LinkNameError::Empty),
        "." | ".." => return Err(LinkNameError::Reserved),
        _ => {}
    }
    if text.len() > MAX_LINK_NAME {
        return Err(LinkNameError::TooLong(text.len()));
    }
    // The kernel's `isspace` works on Latin-1 bytes, where 0xa0 is a space, and includes 0x0b, unlike
    // `is_ascii_whitespace`.
    let refused =
        |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | b'%' | 0x0b | 0xa0);
    if text.bytes().any(refused) {
        return Err(LinkNameError::Character);
    }
    Ok(text.to_owned())
}

/// The value of `--guard` and `--proxy-upstream` that disables them.
pub const OFF: &str = "off";

/// An invalid link for the guard.
#[derive(Debug, Error)]
pub enum GuardedLinkError {
    /// An invalid name.
    #[error(transparent)]
    Name(#[from] LinkNameError),
    /// The loopback link, by which the node's own processes reach the VIP.
    #[error("the node's own packets come by lo; give links to the outside, auto or off")]
    Loopback,
}

/// Parses a value of `--guard`.
pub fn guarded_link(text: &str) -> Result<String, GuardedLinkError> {
    match link_name(text)? {
        name if name == "lo" => Err(GuardedLinkError::Loopback),
        name => Ok(name),
    }
}

/// An invalid network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A host name or other text.
    #[error("not a network; give one like 192.0.2.0/24 or 2001:db8::/32, or a single address")]
    Syntax,
    /// Host bits are set.
    #[error("bits are set behind the prefix; the network is {0}")]
    HostBits(IpNet),
    /// IPv4-mapped IPv6.
    #[error("an IPv4-mapped IPv6 network; give the IPv4 one")]
    Mapped,
}

/// Parses a network; a single address is a network of full prefix length.
pub fn network(text: &str) -> Result<IpNet, NetworkError> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| NetworkError::Syntax)?,
    };
    match network.trunc() {
        _ if is_mapped(network.addr()) => Err(NetworkError::Mapped),
        clean if clean == network => Ok(network),
        clean => Err(NetworkError::HostBits(clean)),
    }
}

/// An invalid interval.
#[derive(Debug, Error)]
pub enum IntervalError {
    /// Not a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// Out of bounds.
    #[error("out of bounds; give a duration from {MIN_INTERVAL} to {MAX_INTERVAL}, like 1m0s")]
    Range,
}

/// Parses the sync interval, a duration in Go's syntax.
pub fn interval(text: &str) -> Result<Duration, IntervalError> {
    let duration: GoDuration = text.parse()?;
    (MIN_INTERVAL..=MAX_INTERVAL)
        .contains(&duration)
        .then(|| duration.to_std())
        .flatten()
        .ok_or(IntervalError::Range)
}

/// Parses the drain timeout, a duration in Go's syntax.
pub fn drain(text: &str) -> Result<Duration, DrainError> {
    let duration: GoDuration = text.parse()?;
    (GoDuration::from_secs(0)..=MAX_DRAIN)
        .contains(&duration)
        .then(|| duration.to_std())
        .flatten()
        .ok_or(DrainError::Range)
}

/// An invalid drain timeout.
#[derive(Debug, Error)]
pub enum DrainError {
    /// Not a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// Out of bounds.
    #[error("out of bounds; give a duration from 0s to {MAX_DRAIN}, like 30s")]
    Range,
}

/// Maximum drain timeout.
const MAX_DRAIN: GoDuration = GoDuration::from_secs(3600);

/// The addresses of `--listen`; the first that can be bound is used. Empty: disabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen(pub Vec<SocketAddr>);

/// An invalid address to listen on.
#[derive(Debug, Error)]
#[error(
    "not an IP address with a port; give one like 127.0.0.1:9465, [::1]:9465 or :9465, or an empty \
     value to disable the endpoint"
)]
pub struct ListenError;

/// Parses an address to listen on in Go's syntax: without an IP address, all addresses.
pub fn listen(text: &str) -> Result<Listen, ListenError> {
    if text.is_empty() {
        return Ok(Listen(Vec::new()));
    }
    let addresses: Vec<SocketAddr> = match text.strip_prefix(':') {
        Some(number) => {
            let port = port(number).map_err(|_| ListenError)?;
            // The first one accepts IPv4 too; the second one is for kernels without IPv6.
            vec![
                (Ipv6Addr::UNSPECIFIED, port).into(),
                (Ipv4Addr::UNSPECIFIED, port).into(),
            ]
        }
        None => vec![
            bracketed(text)
                .or_else(|| text.parse().ok())
                .ok_or(ListenError)?,
        ],
    };
    if addresses.iter().any(|address| address.port() == 0) {
        return Err(ListenError);
    }
    Ok(Listen(addresses))
}

/// An IPv4 address in brackets, as it results from `[$(NODE_IP)]:9465` in a manifest.
fn bracketed(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.strip_prefix('[')?.split_once("]:")?;
    let address: Ipv4Addr = address.parse().ok()?;
    Some((address, port.parse().ok()?).into())
}

/// An invalid path of a directory.
#[derive(Debug, Error)]
#[error("not an absolute path; give one that starts with / and names a directory below it")]
pub struct DirectoryError;

/// Parses the absolute path of a directory other than the root.
pub fn directory(text: &str) -> Result<PathBuf, DirectoryError> {
    let path = Path::new(text);
    if path.is_absolute() && path.file_name().is_some() {
        Ok(path.to_owned())
    } else {
        Err(DirectoryError)
    }
}
