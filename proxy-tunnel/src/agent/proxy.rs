// SPDX-License-Identifier: Apache-2.0

//! Selects the proxy between an agent and its servers, as Go programs do: from the environment variables `HTTPS_PROXY`
//! and `NO_PROXY`, in upper or lower case.

use std::env;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use thiserror::Error;

use crate::identifiers::unescape_percent;

/// A proxy that supports the CONNECT method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Additional header fields of the CONNECT request, each with its line ending.
    pub fields: String,
}

/// An error for a proxy in the environment that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "HTTPS_PROXY is `{0}`, which is no URL of an HTTP proxy; give http://HOST:PORT, or NO_PROXY for the server"
)]
pub struct ProxyError(String);

/// Returns the proxy for a server, or `None` if the server is reached directly.
///
/// # Errors
/// Returns an error if the value of `HTTPS_PROXY` cannot be used.
pub fn from_environment(host: &str, port: u16) -> Result<Option<Proxy>, ProxyError> {
    let read = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let value = env::var(name).or_else(|_| env::var(lower));
        value.unwrap_or_default()
    };
    choose(&read("HTTPS_PROXY"), &read("NO_PROXY"), host, port)
}

fn choose(
    proxy: &str,
    exceptions: &str,
    host: &str,
    port: u16,
) -> Result<Option<Proxy>, ProxyError> {
    if proxy.is_empty() || is_local(host) || is_excepted(exceptions, host, port) {
        return Ok(None);
    }
    let refused = || ProxyError(proxy.to_owned());
    // A value without a scheme is an HTTP URL.
    let url = if proxy.contains("://") {
        proxy.to_owned()
    } else {
        format!("http://{proxy}")
    };
    let url: Uri = url.parse().map_err(|_| refused())?;
    if url.scheme_str() != Some("http") {
        return Err(refused());
    }
    let authority = url.authority().ok_or_else(refused)?;
    let user = authority.as_str().rsplit_once('@');
    let user = user.map(|(user, _)| unescape_percent(user).map_err(|_| refused()));
    let fields = user.transpose()?.map(|user| {
        let user = STANDARD.encode(user);
        format!("Proxy-Authorization: Basic {user}\r\n")
    });
    let host = authority.host().trim_matches(['[', ']']);
    Ok(Some(Proxy {
        host: host.to_owned(),
        port: authority.port_u16().unwrap_or(80),
        fields: fields.unwrap_or_default(),
    }))
}

/// Returns true for hosts on the local machine, for which Go never uses a proxy.
fn is_local(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Returns true if `NO_PROXY` excepts the host. A name matches itself and all names below it, `.name` only the names
/// below it, an address or network the addresses in it, and `*` everything. A port restricts an entry to that port.
fn is_excepted(exceptions: &str, host: &str, port: u16) -> bool {
    let host = host.to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    exceptions
        .split(',')
        .map(|entry| entry.trim().to_ascii_lowercase())
        .filter(|entry| !entry.is_empty())
        .any(|entry| {
            if entry == "*" {
                return true;
            }
            if let Some((network, length)) = entry.split_once('/') {
                return address.is_some_and(|address| contains(network, length, address));
            }
            let (name, only) = match entry.rsplit_once(':') {
                Some((name, only)) if !name.contains(':') => (name, only.parse().ok()),
                _ => (entry.as_str(), None),
            };
            if only.is_some_and(|only: u16| only != port) {
                return false;
            }
            if let Ok(one) = name.parse::<IpAddr>() {
                return address == Some(one);
            }
            let below = name.strip_prefix('.');
            let name = below.unwrap_or(name);
            let is_below = host
                .strip_suffix(name)
                .is_some_and(|rest| rest.ends_with('.'));
            is_below || (below.is_none() && host == name)
        })
}

fn contains(network: &str, length: &str, address: IpAddr) -> bool {
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    let bits = |address| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let ((network, size), (address, other)) = (bits(network), bits(address));
    let rest = 128_u32.saturating_sub(length);
    size == other && length <= size && (network ^ address).checked_shr(rest).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let proxy = |url| choose(url, "", "server", 8091).unwrap().unwrap();
        let plain = Proxy {
            host: "proxy".into(),
            port: 3128,
            fields: String::new(),
        };
        assert_eq!(proxy("http://proxy:3128"), plain);
        assert_eq!(proxy("proxy:3128/"), plain);
        assert_eq!(proxy("http://[fd00::1]").host, "fd00::1");
        assert_eq!(proxy("http://[fd00::1]").port, 80);
        let fields = proxy("http://user:secret@proxy").fields;
        assert_eq!(fields, "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n");
        // A password may contain the characters that are delimiters in a URL.
        let fields = proxy("http://u:p%40w@proxy").fields;
        assert_eq!(fields, "Proxy-Authorization: Basic dTpwQHc=\r\n");
        assert_eq!(choose("", "", "server", 1), Ok(None));
        for bad in ["socks5://proxy:1", "http://", "http://a b"] {
            assert!(choose(bad, "", "server", 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn exceptions() {
        let direct = |exceptions, host| {
            choose("http://proxy", exceptions, host, 8091)
                .unwrap()
                .is_none()
        };
        assert!(direct("", "localhost"));
        assert!(direct("", "127.0.0.1"));
        assert!(direct("", "::1"));
        assert!(!direct("", "server"));
        for (exceptions, host, want) in [
            ("*", "server", true),
            ("other, server", "server", true),
            ("example.org", "a.example.org", true),
            ("example.org", "badexample.org", false),
            (".example.org", "example.org", false),
            (".example.org", "a.EXAMPLE.org", true),
            ("server:8091", "server", true),
            ("server:443", "server", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "10.0.0.1", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.0/99", "10.0.0.1", false),
        ] {
            assert_eq!(direct(exceptions, host), want, "{exceptions} {host}");
        }
    }
}
