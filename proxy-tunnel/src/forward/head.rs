// SPDX-License-Identifier: Apache-2.0

//! Parses the head of the first request on a proxy connection: its target, and the length of the head within the bytes
//! that were read.

use http::Uri;
use thiserror::Error;

use super::request::{self, is_target};

/// The maximum length of a head, in bytes. kube-apiserver's has about 100.
pub const LONGEST: usize = 64 * 1024;

/// The maximum number of header fields in a head.
const FIELDS: usize = 100;

/// The response to a dial that succeeded.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// The form of a client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `CONNECT host:port`, a request for a connection.
    Connect,
    /// `GET http://host:port/path`, or another method: one request, which others may follow on the same connection.
    Absolute,
}

/// A request to a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The form of the request.
    pub form: Form,
    /// The target as `host:port`. With [`Form::Connect`] the port may be missing.
    pub target: String,
    /// The client's user agent, for the log.
    pub user_agent: String,
    /// The length of the head, in bytes.
    pub length: usize,
}

/// The reason why a head is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeadError {
    /// The request uses another method, or it is not a request to a proxy.
    #[error("this proxy only supports CONNECT passthrough")]
    Method,
    /// The request is not valid HTTP/1, or its target is invalid.
    #[error("400 Bad Request")]
    Malformed,
    /// The head exceeds the maximum length.
    #[error("431 Request Header Fields Too Large")]
    TooLong,
}

impl HeadError {
    /// Returns the complete response.
    #[must_use]
    pub fn answer(self) -> Vec<u8> {
        let (status, body) = match self {
            Self::Method => (
                "405 Method Not Allowed",
                "this proxy only supports CONNECT passthrough\n",
            ),
            Self::Malformed => ("400 Bad Request", "400 Bad Request"),
            Self::TooLong => (
                "431 Request Header Fields Too Large",
                "431 Request Header Fields Too Large",
            ),
        };
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Parses a head. Returns `None` if the head is incomplete.
///
/// # Errors
/// Returns an error if the bytes cannot become a head that can be served.
pub fn parse(bytes: &[u8]) -> Result<Option<Head>, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= LONGEST => return Err(HeadError::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLong),
        Err(_) => return Err(HeadError::Malformed),
    };
    let path = request.path.unwrap_or_default();
    let (form, target) = if request.method == Some("CONNECT") {
        if !is_target(path) {
            return Err(HeadError::Malformed);
        }
        (Form::Connect, path.to_owned())
    } else {
        let target = path.parse::<Uri>().ok().and_then(|uri| {
            // Any other URI is not a request to a proxy, or requires CONNECT.
            request::target(&uri).ok()
        });
        (Form::Absolute, target.ok_or(HeadError::Method)?)
    };
    let user_agent = request
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("user-agent"))
        .map(|field| String::from_utf8_lossy(field.value).into_owned());
    Ok(Some(Head {
        form,
        target,
        user_agent: user_agent.unwrap_or_default(),
        length,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kube_apiserver_sends() {
        let bytes = b"CONNECT 10.0.0.1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: apiserver\r\n\r\nmore";
        let head = parse(bytes).unwrap().unwrap();
        assert_eq!(
            (head.form, head.target.as_str()),
            (Form::Connect, "10.0.0.1:10250")
        );
        assert_eq!(head.user_agent, "apiserver");
        assert_eq!(&bytes[head.length..], b"more");
        for end in 0..head.length {
            assert_eq!(parse(&bytes[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_prometheus_sends_for_http() {
        let bytes = b"GET http://10.0.0.1:9100/metrics HTTP/1.1\r\nHost: 10.0.0.1:9100\r\nUser-Agent: Prometheus/2\r\n\r\n";
        let head = parse(bytes).unwrap().unwrap();
        assert_eq!(
            (head.form, head.target.as_str()),
            (Form::Absolute, "10.0.0.1:9100")
        );
        assert_eq!(
            (head.user_agent.as_str(), head.length),
            ("Prometheus/2", bytes.len())
        );
    }

    #[test]
    fn targets() {
        let target = |target: &str| {
            parse(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes())
                .map(|head| head.unwrap().target)
        };
        for good in ["a:1", "[::1]:443", "node-1.x:80", "a", "a:"] {
            assert_eq!(target(good).unwrap(), good);
        }
        for bad in [
            "a:notaport",
            "/path",
            "a@b:1",
            "http://a:1/",
            "[::1]:x",
            "a/b:1",
        ] {
            assert_eq!(target(bad), Err(HeadError::Malformed), "{bad}");
        }
    }

    #[test]
    fn other_requests_are_refused() {
        for (bytes, want) in [
            (
                &b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n"[..],
                HeadError::Method,
            ),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Method),
            (b"GET a:1 HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::Method),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
                HeadError::Malformed,
            ),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HeadError::Malformed),
        ] {
            assert_eq!(parse(bytes), Err(want));
        }
        let endless = [b"CONNECT a:1 HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; LONGEST]].concat();
        assert_eq!(parse(&endless), Err(HeadError::TooLong));
        let fields = "X: y\r\n".repeat(FIELDS + 1);
        let many = format!("CONNECT a:1 HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(parse(many.as_bytes()), Err(HeadError::TooLong));
    }

    #[test]
    fn answers_are_upstreams_bytes() {
        let text = |error: HeadError| String::from_utf8(error.answer()).unwrap();
        assert_eq!(ESTABLISHED, b"HTTP/1.1 200 Connection Established\r\n\r\n");
        let method = text(HeadError::Method);
        assert!(method.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
        assert!(method.ends_with("\r\n\r\nthis proxy only supports CONNECT passthrough\n"));
        assert!(text(HeadError::Malformed).ends_with("\r\n\r\n400 Bad Request"));
    }
}
