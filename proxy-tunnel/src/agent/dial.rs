// SPDX-License-Identifier: Apache-2.0

//! Connects to a target in the same way as Go's `net.DialTimeout`: this module determines which addresses are tried and
//! which error is reported when none of them accepts. [`crate::tcp`] determines the order and how long each address is
//! tried.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::destinations::Destinations;
use crate::go_error::{DialError, Problem, TIMEOUT, os_text, port, split_host_port};
use crate::tcp;

/// The time limit for a whole dial. Upstream's agent has no flag for it.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The error text for a name that has no addresses.
const NO_HOST: &str = "no such host";

/// The address family to which the addresses of a name are restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

/// Connects to `address`, if `allowed` permits it, over `network`: `tcp`, `tcp4` or `tcp6`. Other networks that Go
/// supports, such as `unix` and `udp`, would reach sockets that are not meant for tunnels, so they are rejected like
/// unknown networks.
///
/// # Errors
/// Returns an error whose text is the one that Go would report.
pub async fn dial(
    allowed: &Destinations,
    network: &str,
    address: &str,
    limit: Duration,
) -> Result<TcpStream, DialError> {
    let deadline = Instant::now() + limit;
    let failed = |target, problem| DialError {
        network: network.to_owned(),
        target,
        problem,
    };
    let family = match network {
        "tcp" => Family::Any,
        "tcp4" => Family::V4,
        "tcp6" => Family::V6,
        _ => return Err(failed(None, Problem::UnknownNetwork(network.to_owned()))),
    };
    let mut addresses = timeout_at(deadline, resolve(allowed, address, family))
        .await
        .unwrap_or_else(|_| Err(lookup(address, |_| TIMEOUT.into())))
        .map_err(|problem| failed(None, problem))?;
    // The check applies to the addresses that are connected to. Checking the name would not suffice, because it may
    // resolve to other addresses by now.
    let name = name(address);
    let first = addresses.first().copied();
    addresses.retain(|address| allowed.permits(name, *address));
    if addresses.is_empty() && first.is_some() {
        return Err(failed(first, Problem::Forbidden));
    }
    tcp::connect_any(&addresses, deadline)
        .await
        .map_err(|tried| match tried {
            Some(tried) => failed(Some(tried.address), Problem::connect(&tried.reason)),
            None => failed(None, lookup(address, |_| NO_HOST.into())),
        })
}

/// Returns the host of an address if it is a name.
fn name(address: &str) -> Option<&str> {
    let (host, _) = split_host_port(address).ok()?;
    let is_name = !host.is_empty() && host.parse::<IpAddr>().is_err();
    is_name.then_some(host)
}

async fn resolve(
    allowed: &Destinations,
    address: &str,
    family: Family,
) -> Result<Vec<SocketAddr>, Problem> {
    if address.is_empty() {
        return Err(Problem::MissingAddress);
    }
    let (host, service) = split_host_port(address)?;
    let port = port(service)?;
    let is_wanted = |address: &SocketAddr| match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    };
    if host.is_empty() {
        // Go interprets an empty host as the local machine.
        let local = match family {
            Family::Any | Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        return Ok(vec![SocketAddr::new(local, port)]);
    }
    if let Ok(literal) = host.parse::<IpAddr>() {
        // An IPv4-mapped IPv6 address counts as an IPv4 address, as in Go.
        let literal = SocketAddr::new(literal.to_canonical(), port);
        return if is_wanted(&literal) {
            Ok(vec![literal])
        } else {
            Err(Problem::NoSuitableAddress(host.to_owned()))
        };
    }
    if ends_in_a_number(host) {
        // The C library would parse `127.1` and `0x7f.1` as addresses. Go treats them as names that do not exist in
        // DNS.
        return Err(lookup(address, |_| NO_HOST.into()));
    }
    if !allowed.may_resolve(host, port) {
        return Err(Problem::Forbidden);
    }
    let mut found = tcp::lookup(host, port)
        .await
        .map_err(|error| lookup(address, |server| lookup_text(&error, server)))?;
    found.retain(is_wanted);
    Ok(found)
}

/// Returns true if the last label of a name is a number, which is not the case for any name in DNS.
fn ends_in_a_number(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or(host);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|digit| digit.is_ascii_digit()),
    }
}

/// Translates a failed lookup into Go's error text. The resolver's own error texts are those of the C library.
fn lookup_text(error: &io::Error, server: Option<&str>) -> Cow<'static, str> {
    match error.raw_os_error() {
        // Go's resolver opens a socket for each query, and that step fails.
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
            let asking = server.map_or_else(String::new, |server| format!("dial udp {server}: "));
            return format!("{asking}socket: {}", os_text(error)).into();
        }
        Some(_) => return os_text(error).into(),
        None => {}
    }
    let text = error.to_string();
    if text.contains("Temporary failure") {
        "server misbehaving".into()
    } else if text.contains("timed out") {
        TIMEOUT.into()
    } else {
        NO_HOST.into()
    }
}

/// Returns the error for a failed lookup of an address's host. `text` receives the name server.
fn lookup(address: &str, text: impl FnOnce(Option<&str>) -> Cow<'static, str>) -> Problem {
    let name = split_host_port(address).map_or(address, |(host, _)| host);
    let server = name_server();
    Problem::Lookup {
        name: name.to_owned(),
        text: text(server.as_deref()),
        server,
    }
}

/// Returns the first name server, in Go's notation.
fn name_server() -> Option<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    let server = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("nameserver"))?;
    let address: IpAddr = server.trim().parse().ok()?;
    Some(SocketAddr::new(address, 53).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dials with all destinations allowed.
    async fn dial(network: &str, address: &str, limit: Duration) -> Result<TcpStream, DialError> {
        super::dial(&Destinations::default(), network, address, limit).await
    }

    async fn text(network: &str, address: &str) -> String {
        let limit = Duration::from_millis(1500);
        dial(network, address, limit).await.unwrap_err().to_string()
    }

    /// Returns a socket that occupies its port without listening: connections are refused, and no other test can use
    /// the port.
    fn bound(address: &str) -> tokio::net::TcpSocket {
        let address: SocketAddr = address.parse().unwrap();
        let socket = if address.is_ipv4() {
            tokio::net::TcpSocket::new_v4()
        } else {
            tokio::net::TcpSocket::new_v6()
        };
        let socket = socket.unwrap();
        socket.bind(address).unwrap();
        socket
    }

    #[tokio::test]
    async fn errors_are_in_gos_words() {
        let closed = bound("127.0.0.1:0");
        let address = closed.local_addr().unwrap().to_string();
        let refused = format!("dial tcp {address}: connect: connection refused");
        assert_eq!(text("tcp", &address).await, refused);
        for (network, address, want) in [
            (
                "tcp",
                "127.0.0.1",
                "dial tcp: address 127.0.0.1: missing port in address",
            ),
            (
                "tcp",
                "127.0.0.1:99999",
                "dial tcp: address 99999: invalid port",
            ),
            ("bogus", "127.0.0.1:1", "dial bogus: unknown network bogus"),
            ("unix", "/run/x.sock", "dial unix: unknown network unix"),
            ("udp", "127.0.0.1:1", "dial udp: unknown network udp"),
            ("tcp", "", "dial tcp: missing address"),
            (
                "tcp4",
                "[::1]:1",
                "dial tcp4: address ::1: no suitable address found",
            ),
            (
                "tcp6",
                "127.0.0.1:1",
                "dial tcp6: address 127.0.0.1: no suitable address found",
            ),
            (
                "tcp6",
                "[::ffff:127.0.0.1]:1",
                "dial tcp6: address ::ffff:127.0.0.1: no suitable address found",
            ),
        ] {
            assert_eq!(text(network, address).await, want);
        }
    }

    /// No resolver finds this name: `.invalid` has no addresses (RFC 6761).
    #[tokio::test]
    async fn names_without_addresses() {
        let text = text("tcp", "name.invalid:1").await;
        assert!(text.starts_with("dial tcp: lookup name.invalid"), "{text}");
        for other in ["127.1", "0x7f.1", "2130706433", "127.0.0.0x1"] {
            let text = self::text("tcp", &format!("{other}:1")).await;
            assert!(text.ends_with(": no such host"), "{text}");
        }
        for name in ["localhost", "node-1", "a.0b", "1.example"] {
            assert!(!ends_in_a_number(name), "{name}");
        }
    }

    /// A target whose accept queue is full ignores further connections.
    #[tokio::test]
    async fn targets_that_do_not_answer() {
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let limit = Duration::from_millis(200);
        let mut queued = Vec::new();
        let error = loop {
            match dial("tcp", &address, limit).await {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 10, "the queue has no end");
        };
        assert_eq!(
            error.to_string(),
            format!("dial tcp {address}: i/o timeout")
        );
        assert!(error.problem.is_timeout());
    }

    /// The behaviour tests cover the response of a process that has no file descriptors left.
    #[test]
    fn lookups_that_lack_something_say_what() {
        let text = |code, server| lookup_text(&io::Error::from_raw_os_error(code), server);
        let server = Some("10.0.0.10:53");
        assert_eq!(
            text(libc::EMFILE, server),
            "dial udp 10.0.0.10:53: socket: too many open files"
        );
        assert_eq!(
            text(libc::ENFILE, None),
            "socket: too many open files in system"
        );
        assert_eq!(text(libc::ENOMEM, None), "socket: cannot allocate memory");
        assert_eq!(text(libc::EACCES, server), "permission denied");
    }

    /// A lookup that hangs delays only dials by name, and these end at their time limit (hypershift #7087).
    #[test]
    fn name_servers_that_do_not_answer_delay_no_address() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        // This task ends when the sender is dropped.
        runtime.spawn_blocking(move || held.recv());
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            dial("tcp", &address, LIMIT).await.unwrap();
            let limit = Duration::from_millis(50);
            let error = dial("tcp", "localhost:1", limit).await.unwrap_err();
            assert!(error.problem.is_timeout(), "{error}");
            let text = error.to_string();
            assert!(text.starts_with("dial tcp: lookup localhost"), "{text}");
            assert!(text.ends_with(": i/o timeout"), "{text}");
        });
        drop(release);
    }

    #[tokio::test]
    async fn families() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        dial("tcp", &address, LIMIT).await.unwrap();
        dial("tcp4", &address, LIMIT).await.unwrap();
        let mapped = address.replace("127.0.0.1", "[::ffff:127.0.0.1]");
        dial("tcp4", &mapped, LIMIT).await.unwrap();
        let local = address.replace("127.0.0.1", "");
        dial("tcp", &local, LIMIT).await.unwrap();
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        dial("tcp", &address, LIMIT).await.unwrap();
        dial("tcp6", &address, LIMIT).await.unwrap();
        let local = address.replace("[::1]", "");
        dial("tcp6", &local, LIMIT).await.unwrap();
        let closed = bound("[::1]:0");
        let address = closed.local_addr().unwrap().to_string();
        let refused = format!("dial tcp {address}: connect: connection refused");
        assert_eq!(text("tcp", &address).await, refused);
    }

    #[tokio::test]
    async fn what_is_not_allowed_is_not_connected_to() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let list = |entries: &[String]| {
            let entries = entries.iter().map(|entry| entry.parse().unwrap());
            Destinations::new(entries.collect())
        };
        let denied = "connect: permission denied: not among the agent's --allow-destination";
        // The name is allowed, but resolves to an address that is not allowed for names.
        let by_name = list(&["localhost".to_owned(), "10.0.0.0/8".to_owned()]);
        let by_address = list(&[format!("127.0.0.1:{port}")]);
        for host in ["localhost", "127.0.0.1"] {
            let address = format!("{host}:{port}");
            let error = super::dial(&by_name, "tcp4", &address, LIMIT)
                .await
                .unwrap_err();
            let want = format!("dial tcp4 127.0.0.1:{port}: {denied}");
            assert_eq!(error.to_string(), want);
            super::dial(&by_address, "tcp4", &address, LIMIT)
                .await
                .unwrap();
        }
        listener.set_nonblocking(true).unwrap();
        let accepted = std::iter::repeat_with(|| listener.accept()).take_while(Result::is_ok);
        assert_eq!(accepted.count(), 2);
        // A name that no entry could permit is not looked up.
        let other = list(&["other".to_owned()]);
        let error = super::dial(&other, "tcp", "name.invalid:1", LIMIT).await;
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("dial tcp: {denied}")
        );
    }
}
