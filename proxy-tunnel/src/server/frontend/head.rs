// SPDX-License-Identifier: Apache-2.0

//! The head of an HTTP CONNECT request, and the answers, byte by byte as upstream writes them: clients read
//! the status line, people the body.

use thiserror::Error;

/// Bytes of the longest head. kube-apiserver's has about 100.
pub const LONGEST: usize = 64 * 1024;

/// Header fields of a head at most.
const FIELDS: usize = 100;

/// The answer to a dial that succeeded.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// A request to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `host:port`.
    pub target: String,
    /// The client's name, for the log.
    pub user_agent: String,
    /// How many bytes it has.
    pub length: usize,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeadError {
    /// Another method.
    #[error("this proxy only supports CONNECT passthrough")]
    Method,
    /// It is no HTTP/1, or the target is none.
    #[error("400 Bad Request")]
    Malformed,
    /// It does not end.
    #[error("431 Request Header Fields Too Large")]
    TooLong,
}

impl HeadError {
    /// The whole answer.
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

/// Reads a head; none if it has not yet ended.
///
/// # Errors
/// It will never be one that can be served.
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
    if request.method != Some("CONNECT") {
        return Err(HeadError::Method);
    }
    let target = request.path.unwrap_or_default();
    if !is_target(target) {
        return Err(HeadError::Malformed);
    }
    let user_agent = request
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("user-agent"))
        .map(|field| String::from_utf8_lossy(field.value).into_owned());
    Ok(Some(Head {
        target: target.to_owned(),
        user_agent: user_agent.unwrap_or_default(),
        length,
    }))
}

/// Whether Go takes it for an authority: a host, and if there is a colon behind it, a number.
fn is_target(target: &str) -> bool {
    let port = target
        .rsplit_once(']')
        .map_or(target, |(_, rest)| rest)
        .rsplit_once(':');
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]".contains(&byte);
    !target.is_empty()
        && target.bytes().all(is_host)
        && port.is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The answer where no agent can be chosen.
#[must_use]
pub fn no_agent(why: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n\
         currently no tunnels available: {why}"
    )
    .into_bytes()
}

/// The answer to a dial that the agent could not carry out.
#[must_use]
pub fn dial_error(text: &str) -> Vec<u8> {
    let lower = text.to_ascii_lowercase();
    let status = if lower.contains("timeout") || lower.contains("deadline exceeded") {
        "504 Gateway Timeout"
    } else if lower.contains("too many open files") {
        "503 Service Unavailable"
    } else {
        "502 Bad Gateway"
    };
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}"
    )
    .into_bytes()
}

/// The answer where the agent does not answer in time.
#[must_use]
pub fn dial_timeout(text: &str) -> Vec<u8> {
    plain(
        "504 Gateway Timeout",
        &format!("Backend dial timeout: {text}"),
    )
}

/// The answer where the dial cannot be sent to the agent.
#[must_use]
pub fn not_sent(text: &str) -> Vec<u8> {
    plain(
        "502 Bad Gateway",
        &format!("Failed to tunnel dial request: {text}"),
    )
}

/// The answer where the client's tenant has as much as it may.
#[must_use]
pub fn limited(text: &str) -> Vec<u8> {
    plain("503 Service Unavailable", text)
}

/// The answer to a client that belongs to no tenant.
#[must_use]
pub fn forbidden(text: &str) -> Vec<u8> {
    plain("403 Forbidden", text)
}

/// The answer where the agent's stream ends before the agent answers.
#[must_use]
pub fn pending_lost(text: &str) -> Vec<u8> {
    plain("502 Bad Gateway", text)
}

fn plain(status: &str, text: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::super::backend::PENDING_LOST;
    use super::super::super::strategies::NO_AGENT;
    use super::super::super::tunnel::DIAL_TIMEOUT;
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_kube_apiserver_sends() {
        let bytes = b"CONNECT 10.0.0.1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: apiserver\r\n\r\nmore";
        let head = parse(bytes).unwrap().unwrap();
        assert_eq!(head.target, "10.0.0.1:10250");
        assert_eq!(head.user_agent, "apiserver");
        assert_eq!(&bytes[head.length..], b"more");
        for end in 0..head.length {
            assert_eq!(parse(&bytes[..end]), Ok(None), "{end}");
        }
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
                &b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"[..],
                HeadError::Method,
            ),
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

    /// Facts §2, row by row.
    #[test]
    fn answers_are_upstreams_bytes() {
        assert_eq!(ESTABLISHED, b"HTTP/1.1 200 Connection Established\r\n\r\n");
        assert_eq!(
            text(no_agent(NO_AGENT)),
            "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\n\
             currently no tunnels available: No agent available"
        );
        let head = "Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n";
        for (error, status) in [
            ("dial tcp a: connect: connection refused", "502 Bad Gateway"),
            ("dial tcp a: i/o Timeout", "504 Gateway Timeout"),
            ("context Deadline Exceeded", "504 Gateway Timeout"),
            ("socket: too many open files", "503 Service Unavailable"),
        ] {
            let want = format!("HTTP/1.1 {status}\r\n{head}{error}");
            assert_eq!(text(dial_error(error)), want);
        }
        let head = "Content-Type: text/plain; charset=utf-8\r\n\r\n";
        assert_eq!(
            text(dial_timeout(DIAL_TIMEOUT)),
            format!(
                "HTTP/1.1 504 Gateway Timeout\r\n{head}\
                 Backend dial timeout: timed out waiting for backend dial\r\n"
            )
        );
        assert_eq!(
            text(pending_lost(PENDING_LOST)),
            format!(
                "HTTP/1.1 502 Bad Gateway\r\n{head}Backend context error: context canceled\r\n"
            )
        );
        assert_eq!(
            text(not_sent("x")),
            format!("HTTP/1.1 502 Bad Gateway\r\n{head}Failed to tunnel dial request: x\r\n")
        );
        let method = text(HeadError::Method.answer());
        assert!(method.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
        assert!(method.ends_with("\r\n\r\nthis proxy only supports CONNECT passthrough\n"));
        assert!(text(HeadError::Malformed.answer()).ends_with("\r\n\r\n400 Bad Request"));
    }
}
