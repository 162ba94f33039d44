// SPDX-License-Identifier: Apache-2.0

//! The changes that a proxy makes to requests in absolute form and to their responses (RFC 9110 §7.6, RFC 9112 §3.2):
//! the target moves from the request line to `Host`, and hop-by-hop fields are removed.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Uri, Version, request, response};
use thiserror::Error;

use crate::go_error;

/// The default port of the scheme `http` (RFC 9110 §4.2.1).
const PORT: u16 = 80;

/// The hop-by-hop fields, in addition to those that `Connection` names.
const OF_ONE_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The name of this proxy in `Via`. The proxy uses HTTP/1.1 on both sides.
const SELF: HeaderValue = HeaderValue::from_static("1.1 konnectivity");

/// The reason why a request is not valid for this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoTarget {
    /// The request's target is a path.
    #[error(
        "this is an HTTP proxy: the request needs a whole URL, http://host:port/path, or CONNECT"
    )]
    Origin,
    /// The URL has a scheme other than `http`.
    #[error("this proxy takes URLs with http; for https the client has to send CONNECT")]
    Scheme,
    /// The authority is not a valid host and port.
    #[error("the URL has no host and port that can be connected to")]
    Authority,
}

/// Returns the target of a URL, as `host:port`.
///
/// # Errors
/// Returns an error if the URL names no target.
pub fn target(uri: &Uri) -> Result<String, NoTarget> {
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(NoTarget::Origin);
    };
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(NoTarget::Scheme);
    }
    let host = authority.host();
    let port = authority.as_str().strip_prefix(host);
    let port = match port.and_then(|rest| rest.strip_prefix(':')) {
        Some("") => Some(PORT),
        Some(port) => port.parse().ok(),
        None => (authority.as_str() == host).then_some(PORT),
    };
    port.map(|port| format!("{host}:{port}"))
        .filter(|target| {
            let apart = go_error::split_host_port(target);
            is_target(target) && apart.is_ok_and(|(host, _)| !host.is_empty())
        })
        .ok_or(NoTarget::Authority)
}

/// Converts a request in absolute form to the request that is sent to the target.
pub fn to_target(parts: &mut request::Parts) {
    if parts.headers.contains_key(TRANSFER_ENCODING) {
        // If both fields are present, Transfer-Encoding takes precedence, and Content-Length must not reach the target
        // (RFC 9112 §6.3).
        parts.headers.remove(CONTENT_LENGTH);
    }
    remove_of_one_connection(&mut parts.headers);
    let authority = parts.uri.authority().map(Authority::as_str);
    let host = authority.and_then(|authority| HeaderValue::from_str(authority).ok());
    if let Some(host) = host {
        parts.headers.insert(HOST, host);
    }
    parts.headers.append(VIA, SELF);
    let path = parts.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
}

/// Converts a target's response to the response that is sent to the client.
pub fn to_client(parts: &mut response::Parts) {
    remove_of_one_connection(&mut parts.headers);
    parts.headers.append(VIA, SELF);
    parts.version = Version::HTTP_11;
}

fn remove_of_one_connection(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_ONE_CONNECTION.iter().chain(&named) {
        fields.remove(name);
    }
}

/// Returns true if Go accepts the text as an authority: a host, and if a colon follows, a number.
pub(super) fn is_target(target: &str) -> bool {
    let port = target
        .rsplit_once(']')
        .map_or(target, |(_, rest)| rest)
        .rsplit_once(':');
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]".contains(&byte);
    !target.is_empty()
        && target.bytes().all(is_host)
        && port.is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    fn of(uri: &str) -> Result<String, NoTarget> {
        target(&uri.parse().unwrap())
    }

    #[test]
    fn targets_of_urls() {
        for (uri, want) in [
            ("http://10.0.0.1:9100/metrics", "10.0.0.1:9100"),
            ("http://web/", "web:80"),
            ("http://web:/", "web:80"),
            ("HTTP://web", "web:80"),
            ("http://[fd00::1]:9100/", "[fd00::1]:9100"),
            ("http://[fd00::1]/", "[fd00::1]:80"),
        ] {
            assert_eq!(of(uri).as_deref(), Ok(want), "{uri}");
        }
        for (uri, want) in [
            ("/metrics", NoTarget::Origin),
            ("a:1", NoTarget::Origin),
            ("https://a/", NoTarget::Scheme),
            ("ftp://a/", NoTarget::Scheme),
            ("http://user:secret@a/", NoTarget::Authority),
            ("http://a:65536/", NoTarget::Authority),
            ("http://[]/", NoTarget::Authority),
            ("http://o[fd0]/", NoTarget::Authority),
            ("http://:80/", NoTarget::Authority),
        ] {
            assert_eq!(of(uri), Err(want), "{uri}");
        }
    }

    #[test]
    fn a_request_for_the_target() {
        let (mut parts, ()) = Request::get("http://10.0.0.1:9100/metrics?a=b")
            .header("Host", "forged.example")
            .header("Connection", "keep-alive, X-Hop")
            .header("X-Hop", "1")
            .header("Proxy-Connection", "keep-alive")
            .header("Proxy-Authorization", "Basic c2VjcmV0")
            .header("Upgrade", "websocket")
            .header("Accept", "text/plain")
            .body(())
            .unwrap()
            .into_parts();
        to_target(&mut parts);
        assert_eq!(parts.uri, "/metrics?a=b");
        let mut names: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "host", "via"]);
        assert_eq!(parts.headers["host"], "10.0.0.1:9100");
    }

    #[test]
    fn two_lengths_do_not_reach_the_target() {
        let (mut parts, ()) = Request::post("http://a/")
            .header("Content-Length", "5")
            .header("Transfer-Encoding", "chunked")
            .body(())
            .unwrap()
            .into_parts();
        to_target(&mut parts);
        assert!(!parts.headers.contains_key(CONTENT_LENGTH));
        assert!(!parts.headers.contains_key(TRANSFER_ENCODING));
        assert_eq!(parts.uri, "/");
    }

    #[test]
    fn an_answer_for_the_client() {
        let (mut parts, ()) = Response::builder()
            .version(Version::HTTP_10)
            .header("Connection", "close")
            .header("Keep-Alive", "timeout=5")
            .header("Content-Length", "3")
            .header("Via", "1.1 other")
            .body(())
            .unwrap()
            .into_parts();
        to_client(&mut parts);
        assert_eq!(parts.version, Version::HTTP_11);
        assert_eq!(parts.headers.len(), 3);
        assert_eq!(parts.headers.get_all("via").iter().count(), 2);
    }
}
