// SPDX-License-Identifier: Apache-2.0

//! Readers of single values. Their errors follow clap's "invalid value '…' for '--flag': " and say
//! what is wrong and what to give instead.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::goflag::{DurationError, GoDuration};

/// The longest name of a link in bytes: the kernel's `IFNAMSIZ` less the closing zero.
const MAX_LINK_NAME: usize = 15;
/// Resyncs more often than that would keep the agent busy with nothing else.
const MIN_INTERVAL: GoDuration = GoDuration::from_millis(1);
/// A year. Beyond it is a slip of the pen.
const MAX_INTERVAL: GoDuration = GoDuration::from_secs(365 * 24 * 3600);

/// Why a text is no VIP.
#[derive(Debug, Error)]
pub enum VipError {
    /// A host name, or nothing at all.
    #[error("not an IP address; give one like 10.96.0.2 or fd00::2")]
    Syntax,
    /// An address with a prefix length.
    #[error("a prefix length is not wanted; give the address alone")]
    Prefix,
    /// An address that no VIP can have.
    #[error("{0}; give a unicast address that nothing else uses, for example 10.96.0.2")]
    Unusable(&'static str),
    /// IPv4 in IPv6's clothes: the kernel takes both for the same address.
    #[error("an IPv4-mapped IPv6 address; give the IPv4 address")]
    Mapped,
}

/// Reads a VIP: a unicast address that is neither loopback nor link-local IPv6.
pub fn vip(text: &str) -> Result<IpAddr, VipError> {
    let address: IpAddr = text.parse().map_err(|_| match text.split_once('/') {
        Some((address, _)) if address.parse::<IpAddr>().is_ok() => VipError::Prefix,
        _ => VipError::Syntax,
    })?;
    let unusable = |what| Err(VipError::Unusable(what));
    match address {
        _ if address.is_unspecified() => unusable("the unspecified address"),
        _ if address.is_loopback() => unusable("a loopback address"),
        _ if address.is_multicast() => unusable("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => unusable("the broadcast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(VipError::Mapped),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => unusable("a link-local address"),
        _ => Ok(address),
    }
}

/// Not a TCP port.
#[derive(Debug, Error)]
#[error("not a TCP port; give a number from 1 to 65535")]
pub struct PortError;

/// Reads a TCP port other than 0.
pub fn port(text: &str) -> Result<u16, PortError> {
    // `parse` alone would take "+443".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortError);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(PortError)
}

/// Why no link can have a name.
#[derive(Debug, Error)]
pub enum LinkNameError {
    /// No name.
    #[error("the name is empty; give the name of a link, for example lo")]
    Empty,
    /// Over 15 bytes.
    #[error("the name has {0} bytes; Linux allows {MAX_LINK_NAME}, give a shorter one")]
    TooLong(usize),
    /// Names of directories.
    #[error("no link can have this name; give another, for example lo")]
    Reserved,
    /// A character that the kernel refuses.
    #[error("the name of a link cannot contain a slash, a colon, a percent sign or a space")]
    Character,
}

/// Reads the name of a link, by the rules of the kernel's `dev_valid_name` (`net/core/dev.c`).
///
/// A percent sign is refused as well: the kernel takes such a name for a pattern
/// (`dev_alloc_name`) and creates a link of another name.
pub fn link_name(text: &str) -> Result<String, LinkNameError> {
    match text {
        "" => return Err(LinkNameError::Empty),
        "." | ".." => return Err(LinkNameError::Reserved),
        _ => {}
    }
    if text.len() > MAX_LINK_NAME {
        return Err(LinkNameError::TooLong(text.len()));
    }
    // 0xa0 is a space to the kernel, which looks at bytes and thinks Latin-1; 0x0b is one to the
    // kernel and not to `is_ascii_whitespace`.
    let refused =
        |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | b'%' | 0x0b | 0xa0);
    if text.bytes().any(refused) {
        return Err(LinkNameError::Character);
    }
    Ok(text.to_owned())
}

/// Why a text is no interval.
#[derive(Debug, Error)]
pub enum IntervalError {
    /// Not a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// Out of bounds.
    #[error("out of bounds; give a duration from {MIN_INTERVAL} to {MAX_INTERVAL}, like 1m0s")]
    Range,
}

/// Reads the time between two resyncs, as Go spells durations.
pub fn interval(text: &str) -> Result<Duration, IntervalError> {
    let duration: GoDuration = text.parse()?;
    (MIN_INTERVAL..=MAX_INTERVAL)
        .contains(&duration)
        .then(|| duration.to_std())
        .flatten()
        .ok_or(IntervalError::Range)
}

/// Not the absolute path of a directory.
#[derive(Debug, Error)]
#[error("not an absolute path; give one that starts with / and names a directory below it")]
pub struct DirectoryError;

/// Reads the absolute path of a directory other than the root.
pub fn directory(text: &str) -> Result<PathBuf, DirectoryError> {
    let path = Path::new(text);
    if path.is_absolute() && path.file_name().is_some() {
        Ok(path.to_owned())
    } else {
        Err(DirectoryError)
    }
}
