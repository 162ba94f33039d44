// SPDX-License-Identifier: Apache-2.0

//! Connecting to a target, as Go's `net.DialTimeout` does: which addresses are tried, and what is reported when none
//! answers. In which order and for how long they are tried is [`crate::tcp`]'s business.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::go_error::{DialError, Problem, TIMEOUT, port, split_host_port};
use crate::tcp;

/// How long a dial may take in all. Upstream's agent has no flag for it.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Which of a name's addresses are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

/// Connects to `address` over `network`: `tcp`, `tcp4` or `tcp6`. Others that Go knows, as `unix` and `udp`, would
/// reach what is not meant to be reached through a tunnel, and are refused like unknown ones.
///
/// # Errors
/// In Go's words.
pub async fn dial(network: &str, address: &str, limit: Duration) -> Result<TcpStream, DialError> {
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
    let addresses = timeout_at(deadline, resolve(address, family))
        .await
        .unwrap_or_else(|_| Err(lookup(address, TIMEOUT)))
        .map_err(|problem| failed(None, problem))?;
    tcp::connect_any(&addresses, deadline)
        .await
        .map_err(|tried| match tried {
            Some(tried) => failed(Some(tried.address), Problem::connect(&tried.reason)),
            None => failed(None, lookup(address, "no such host")),
        })
}

async fn resolve(address: &str, family: Family) -> Result<Vec<SocketAddr>, Problem> {
    let (host, service) = split_host_port(address)?;
    let port = port(service)?;
    let is_wanted = |address: &SocketAddr| match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    };
    if host.is_empty() {
        // Go takes it for this machine.
        return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]);
    }
    if let Ok(literal) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(literal, port)]
            .into_iter()
            .filter(is_wanted)
            .collect());
    }
    if ends_in_a_number(host) {
        // The C library would read `127.1` and `0x7f.1` as addresses; to Go they are names, and none of DNS.
        return Err(lookup(address, "no such host"));
    }
    let found: Vec<SocketAddr> = lookup_host((host, port))
        .await
        .map_err(|error| lookup(address, lookup_text(&error)))?
        .filter(is_wanted)
        .collect();
    Ok(found)
}

/// Whether the last label of a name is a number, as in no name of DNS.
fn ends_in_a_number(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or(host);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|digit| digit.is_ascii_digit()),
    }
}

/// A failed lookup in Go's words. The resolver's own are those of the C library.
fn lookup_text(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("Temporary failure") {
        "server misbehaving"
    } else if text.contains("timed out") {
        TIMEOUT
    } else {
        "no such host"
    }
}

fn lookup(address: &str, text: &'static str) -> Problem {
    let name = split_host_port(address).map_or(address, |(host, _)| host);
    Problem::Lookup {
        name: name.to_owned(),
        server: name_server(),
        text,
    }
}

/// The first name server, as Go names it.
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

    async fn text(network: &str, address: &str) -> String {
        let limit = Duration::from_millis(1500);
        dial(network, address, limit).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn errors_are_in_gos_words() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
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
        ] {
            assert_eq!(text(network, address).await, want);
        }
    }

    /// The name is not resolved by any network: `.invalid` has no addresses (RFC 6761).
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

    /// Lookups that hang are those of names only, and end in time (hypershift #7087).
    #[test]
    fn name_servers_that_do_not_answer_delay_no_address() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        // It ends when the sender is dropped.
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
        assert!(text("tcp6", &address).await.starts_with("dial tcp6: "));
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        dial("tcp", &address, LIMIT).await.unwrap();
        dial("tcp6", &address, LIMIT).await.unwrap();
        drop(listener);
        let refused = format!("dial tcp {address}: connect: connection refused");
        assert_eq!(text("tcp", &address).await, refused);
    }
}
