// SPDX-License-Identifier: Apache-2.0

//! Dial errors in the wording of Go. The server maps them to HTTP statuses, and upstream's tests and users' scripts
//! search for them, so an agent has to use the same texts as Go's `net` package.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// The text for a name server that did not respond in time.
pub const TIMEOUT: &str = "i/o timeout";

/// The text for a connection attempt that the kernel timed out.
const TIMED_OUT: &str = "connection timed out";

/// The reason why a target could not be reached, in Go's format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("dial {network}{}: {problem}", Target(.target))]
pub struct DialError {
    /// The name of the network, as requested.
    pub network: String,
    /// The address that was tried, or `None` if there was none.
    pub target: Option<SocketAddr>,
    /// The cause.
    pub problem: Problem,
}

struct Target<'a>(&'a Option<SocketAddr>);

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(target) => write!(f, " {target}"),
            None => Ok(()),
        }
    }
}

/// The cause of a dial error.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// The time limit expired.
    #[error("i/o timeout")]
    Timeout,
    /// A system call failed.
    #[error("{call}: {text}")]
    System {
        /// The name of the system call.
        call: &'static str,
        /// The kernel's error in the wording of Go.
        text: String,
    },
    /// The lookup of the name failed or found no address.
    #[error("lookup {name}{}: {text}", On(.server))]
    Lookup {
        /// The name.
        name: String,
        /// The address of the name server.
        server: Option<String>,
        /// The name server's response, or the error that prevented the query.
        text: Cow<'static, str>,
    },
    /// The request contains no address.
    #[error("missing address")]
    MissingAddress,
    /// The address is not of the network's family.
    #[error("address {0}: no suitable address found")]
    NoSuitableAddress(String),
    /// The address has no port.
    #[error("address {0}: missing port in address")]
    MissingPort(String),
    /// The address has too many colons.
    #[error("address {0}: too many colons in address")]
    TooManyColons(String),
    /// The address has a bracket in the wrong place.
    #[error("address {0}: missing ']' in address")]
    MissingBracket(String),
    /// The address has an unexpected bracket.
    #[error("address {address}: unexpected '{bracket}' in address")]
    UnexpectedBracket {
        /// The address.
        address: String,
        /// The bracket.
        bracket: char,
    },
    /// The port is not a 16-bit number.
    #[error("address {0}: invalid port")]
    InvalidPort(String),
    /// The port is a name that does not belong to a known service.
    #[error("lookup tcp/{0}: unknown port")]
    UnknownPort(String),
    /// The agent's flags do not allow the target.
    #[error("connect: permission denied: not among the agent's --allow-destination")]
    Forbidden,
    /// The network is not TCP.
    #[error("unknown network {0}")]
    UnknownNetwork(String),
}

struct On<'a>(&'a Option<String>);

impl fmt::Display for On<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(server) => write!(f, " on {server}"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// Converts an error of `connect`. A timeout without an error number of the kernel means that nothing responded
    /// within the dial's time limit.
    #[must_use]
    pub fn connect(error: &io::Error) -> Self {
        if error.raw_os_error().is_none() && error.kind() == io::ErrorKind::TimedOut {
            return Self::Timeout;
        }
        if error.raw_os_error() == Some(libc::ETIMEDOUT) {
            return Self::System {
                call: "connect",
                text: TIMED_OUT.to_owned(),
            };
        }
        // In Go the call that allocates the descriptor is `socket`.
        let call = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::EAFNOSUPPORT) => "socket",
            _ => "connect",
        };
        Self::System {
            call,
            text: os_text(error),
        }
    }

    /// Returns true if Go reports the error as a timeout, whether the dial, the name server or the kernel timed out.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Lookup { text, .. } => text == TIMEOUT,
            Self::System { text, .. } => text == TIMED_OUT,
            _ => false,
        }
    }
}

/// Returns an error of the kernel in the wording of Go: in lower case, without the number.
#[must_use]
pub fn os_text(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else {
        return error.to_string();
    };
    match code {
        libc::ENETUNREACH => "network is unreachable".into(),
        libc::EHOSTUNREACH => "no route to host".into(),
        libc::EADDRNOTAVAIL => "cannot assign requested address".into(),
        libc::EAFNOSUPPORT => "address family not supported by protocol".into(),
        _ => {
            let text = error.to_string();
            let text = text
                .rsplit_once(" (os error")
                .map_or(text.as_str(), |(text, _)| text);
            let mut letters = text.chars();
            let first = letters.next().map(|letter| letter.to_ascii_lowercase());
            first.into_iter().chain(letters).collect()
        }
    }
}

/// Splits an address into host and port, as Go's `SplitHostPort` does.
///
/// # Errors
/// Returns an error if there is no port, or if there are too many colons or brackets.
pub fn split_host_port(address: &str) -> Result<(&str, &str), Problem> {
    let Some(last) = address.rfind(':') else {
        return Err(Problem::MissingPort(address.to_owned()));
    };
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let Some((host, port)) = rest.split_once(']') else {
            return Err(Problem::MissingBracket(address.to_owned()));
        };
        match port.strip_prefix(':') {
            Some(port) if !port.contains(':') => (host, port),
            Some(_) => return Err(Problem::TooManyColons(address.to_owned())),
            None => return Err(Problem::MissingPort(address.to_owned())),
        }
    } else {
        let (host, port) = (&address[..last], &address[last + 1..]);
        if host.contains(':') {
            return Err(Problem::TooManyColons(address.to_owned()));
        }
        (host, port)
    };
    for bracket in ['[', ']'] {
        if host.contains(bracket) || port.contains(bracket) {
            let address = address.to_owned();
            return Err(Problem::UnexpectedBracket { address, bracket });
        }
    }
    Ok((host, port))
}

/// Returns the number of a port. Of the service names only the most common ones are known.
///
/// # Errors
/// Returns an error if the number is too large or the name is unknown.
pub fn port(text: &str) -> Result<u16, Problem> {
    if text.is_empty() {
        return Ok(0);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text
            .parse()
            .map_err(|_| Problem::InvalidPort(text.to_owned()));
    }
    match text {
        "http" => Ok(80),
        "https" => Ok(443),
        "domain" => Ok(53),
        "ssh" => Ok(22),
        _ => Err(Problem::UnknownPort(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(target: Option<&str>, problem: Problem) -> String {
        DialError {
            network: "tcp".into(),
            target: target.map(|target| target.parse().unwrap()),
            problem,
        }
        .to_string()
    }

    fn os(code: i32) -> Problem {
        Problem::connect(&io::Error::from_raw_os_error(code))
    }

    #[test]
    fn texts_are_gos() {
        let target = Some("10.0.0.1:80");
        for (code, want) in [
            (libc::ECONNREFUSED, "connect: connection refused"),
            (libc::EHOSTUNREACH, "connect: no route to host"),
            (libc::ENETUNREACH, "connect: network is unreachable"),
            (libc::ETIMEDOUT, "connect: connection timed out"),
            (libc::EMFILE, "socket: too many open files"),
        ] {
            let want = format!("dial tcp 10.0.0.1:80: {want}");
            assert_eq!(text(target, os(code)), want);
            assert_eq!(os(code).is_timeout(), code == libc::ETIMEDOUT);
        }
        assert_eq!(
            text(target, Problem::Timeout),
            "dial tcp 10.0.0.1:80: i/o timeout"
        );
        assert_eq!(
            text(Some("[::1]:1"), os(libc::ECONNREFUSED)),
            "dial tcp [::1]:1: connect: connection refused"
        );
        let lookup = Problem::Lookup {
            name: "x.invalid".into(),
            server: Some("10.0.0.10:53".into()),
            text: "no such host".into(),
        };
        assert_eq!(
            text(None, lookup),
            "dial tcp: lookup x.invalid on 10.0.0.10:53: no such host"
        );
        let bogus = DialError {
            network: "bogus".into(),
            target: None,
            problem: Problem::UnknownNetwork("bogus".into()),
        };
        assert_eq!(bogus.to_string(), "dial bogus: unknown network bogus");
    }

    #[test]
    fn addresses_are_taken_apart_as_in_go() {
        let problem = |address| text(None, split_host_port(address).unwrap_err());
        assert_eq!(split_host_port("a:1"), Ok(("a", "1")));
        assert_eq!(split_host_port("[::1]:1"), Ok(("::1", "1")));
        assert_eq!(split_host_port(":1"), Ok(("", "1")));
        assert_eq!(problem("x"), "dial tcp: address x: missing port in address");
        assert_eq!(
            problem("::1"),
            "dial tcp: address ::1: too many colons in address"
        );
        assert_eq!(
            problem("[::1"),
            "dial tcp: address [::1: missing ']' in address"
        );
        assert_eq!(
            problem("[::1]"),
            "dial tcp: address [::1]: missing port in address"
        );
        for (address, bracket) in [
            ("a[b:1", '['),
            ("a]b:1", ']'),
            ("[[::1]:1", '['),
            ("[::1]:1]", ']'),
        ] {
            let want = format!("dial tcp: address {address}: unexpected '{bracket}' in address");
            assert_eq!(problem(address), want);
        }
        assert_eq!(
            problem("[::1]x:1"),
            "dial tcp: address [::1]x:1: missing port in address"
        );
        let invalid = text(None, port("99999").unwrap_err());
        assert_eq!(invalid, "dial tcp: address 99999: invalid port");
        assert_eq!(port("https"), Ok(443));
        let unknown = text(None, port("nope").unwrap_err());
        assert_eq!(unknown, "dial tcp: lookup tcp/nope: unknown port");
    }
}
