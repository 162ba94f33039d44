// SPDX-License-Identifier: Apache-2.0

//! TCP connections to a name with several addresses, in the way of Go's dialer: it tries the addresses of the first
//! address's family one after the other and, after a short delay, those of the other family in parallel. In a network
//! where IPv6 does not work, a dial then takes 300 ms longer instead of its whole time limit.

pub mod upkeep;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

/// The minimum time for each of several addresses of one family, as in Go.
const SHARE: Duration = Duration::from_secs(2);

/// How long only the first family is tried, as in Go (RFC 6555, section 5.5).
const FALLBACK: Duration = Duration::from_millis(300);

/// The error if no address can be connected to. As in Go, it is the error of the first address of the first family.
#[derive(Debug, Error)]
#[error("{address}: {reason}")]
pub struct Failed {
    /// The address that this error belongs to.
    pub address: SocketAddr,
    /// The kernel's error. Without an error number of the kernel, the address did not answer in time.
    pub reason: io::Error,
}

/// Connects to a host by its name or address.
///
/// # Errors
/// Returns an error if the host has no address, or none that can be connected to in time.
pub async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + limit;
    let addresses = match host.parse::<IpAddr>() {
        Ok(literal) => vec![SocketAddr::new(literal, port)],
        Err(_) => timeout_at(deadline, lookup(host, port)).await??,
    };
    match connect_any(&addresses, deadline).await {
        Ok(stream) => Ok(stream),
        Err(Some(failed)) => Err(io::Error::new(failed.reason.kind(), failed)),
        Err(None) => Err(io::Error::new(io::ErrorKind::NotFound, "no address")),
    }
}

/// Returns the addresses of a name, as the C library resolves it.
///
/// # Errors
/// Returns the error of the C library. It has an error number of the kernel if the process ran out of file descriptors
/// or memory: in this case the C library's own error depends on what it has already read, and is often "no such name"
/// (glibc 2.36, in a process that resolves its first name).
pub async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    let looking = spawn_blocking(move || {
        Errno::clear();
        let found = (host.as_str(), port).to_socket_addrs();
        found.map_err(|error| match Errno::last() {
            lacking @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => lacking.into(),
            _ => error,
        })
    });
    Ok(looking.await??.collect())
}

/// Connects to one of these addresses.
///
/// # Errors
/// Returns an error if none of the addresses can be connected to in time. It has no reason if there are no addresses.
pub async fn connect_any(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<TcpStream, Option<Failed>> {
    let connect = TcpStream::connect::<SocketAddr>;
    race(addresses, FALLBACK, deadline, connect).await
}

/// Tries both families of the addresses: the second one after `head_start`, or earlier if all addresses of the first
/// one have failed.
async fn race<T, F>(
    addresses: &[SocketAddr],
    head_start: Duration,
    deadline: Instant,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, Option<Failed>>
where
    F: Future<Output = io::Result<T>>,
{
    let is_first = |address: &SocketAddr| address.is_ipv4() == addresses[0].is_ipv4();
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| is_first(address));
    let mut primary = pin!(in_turn(&first, deadline, &connect));
    if second.is_empty() {
        return primary.await;
    }
    let mut fallback = pin!(in_turn(&second, deadline, &connect));
    match timeout(head_start, primary.as_mut()).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(failed)) => return fallback.await.map_err(|_| failed),
        Err(_) => {}
    }
    tokio::select! {
        biased;
        connected = primary.as_mut() => match connected {
            Ok(stream) => Ok(stream),
            Err(failed) => fallback.await.map_err(|_| failed),
        },
        connected = fallback.as_mut() => match connected {
            Ok(stream) => Ok(stream),
            Err(_) => primary.await,
        },
    }
}

/// Tries one address after the other, each with its share of the time.
async fn in_turn<T, F>(
    addresses: &[SocketAddr],
    deadline: Instant,
    connect: &impl Fn(SocketAddr) -> F,
) -> Result<T, Option<Failed>>
where
    F: Future<Output = io::Result<T>>,
{
    let mut first = None;
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let others = u32::try_from(addresses.len() - index).unwrap_or(1);
        let share = (left / others).max(SHARE.min(left));
        let reason = match timeout(share, connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        first.get_or_insert(Failed {
            address: *address,
            reason,
        });
    }
    Err(first)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const V6: &str = "[::1]";
    const V4: &str = "127.0.0.1";

    /// Longer than a test may take, so that waiting for it fails the test.
    const LONG: Duration = Duration::from_mins(1);

    /// How an address reacts.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        After(Duration),
        Refused,
        Never,
    }

    use Answer::{After, Never, Refused};

    const AT_ONCE: Answer = After(Duration::ZERO);
    const SOON: Answer = After(Duration::from_millis(30));

    /// Returns the port that was connected to, and all ports that were tried. The first element of `answers` is for
    /// port 1.
    async fn race_of(
        answers: &[(&str, Answer)],
        head_start: Duration,
        limit: Duration,
    ) -> (Result<u16, Option<Failed>>, Vec<u16>) {
        let addresses: Vec<SocketAddr> = (1..)
            .zip(answers)
            .map(|(port, (host, _)): (u16, _)| format!("{host}:{port}").parse().unwrap())
            .collect();
        let tried = Mutex::new(Vec::new());
        let connect = |address: SocketAddr| {
            let port = address.port();
            tried.lock().unwrap().push(port);
            let answer = answers[usize::from(port) - 1].1;
            async move {
                match answer {
                    After(pause) => {
                        tokio::time::sleep(pause).await;
                        Ok(port)
                    }
                    Refused => Err(io::ErrorKind::ConnectionRefused.into()),
                    Never => std::future::pending().await,
                }
            }
        };
        let deadline = Instant::now() + limit;
        let raced = race(&addresses, head_start, deadline, connect).await;
        (raced, tried.into_inner().unwrap())
    }

    #[tokio::test]
    async fn the_other_family_is_tried_beside_the_first() {
        for (answers, head_start, want, tried) in [
            // One family does not work.
            (&[(V6, Never), (V4, AT_ONCE)][..], 10, 2, &[1, 2][..]),
            (&[(V4, Never), (V6, SOON)], 10, 2, &[1, 2]),
            // During its head start, only the first family is tried.
            (&[(V6, SOON), (V4, AT_ONCE)], 60_000, 1, &[1]),
            // Afterwards both are tried, and the first one may still win.
            (&[(V6, SOON), (V4, Never)], 1, 1, &[1, 2]),
            (&[(V6, SOON), (V4, Refused)], 1, 1, &[1, 2]),
            // A refusal ends the head start.
            (&[(V6, Refused), (V4, AT_ONCE)], 60_000, 2, &[1, 2]),
            // All addresses of a family are tried together, in their order.
            (
                &[(V6, Refused), (V4, AT_ONCE), (V6, SOON)],
                60_000,
                3,
                &[1, 3],
            ),
            (
                &[(V4, Refused), (V4, AT_ONCE), (V4, AT_ONCE)],
                60_000,
                2,
                &[1, 2],
            ),
        ] {
            let head_start = Duration::from_millis(head_start);
            let racing = race_of(answers, head_start, LONG * 10);
            let (raced, order) = timeout(LONG, racing).await.expect("it waits");
            assert_eq!(
                (raced.unwrap(), order.as_slice()),
                (want, tried),
                "{answers:?}"
            );
        }
    }

    #[tokio::test]
    async fn the_first_failure_is_reported_and_the_limit_kept() {
        let limit = Duration::from_millis(50);
        for (answers, want) in [
            (&[(V6, Never), (V4, Refused)][..], io::ErrorKind::TimedOut),
            (
                &[(V6, Refused), (V4, Never)],
                io::ErrorKind::ConnectionRefused,
            ),
            (&[(V6, Never), (V4, Never)], io::ErrorKind::TimedOut),
        ] {
            let head_start = Duration::from_millis(10);
            let racing = race_of(answers, head_start, limit);
            let (raced, tried) = timeout(LONG, racing).await.expect("it waits");
            let failed = raced.unwrap_err().unwrap();
            assert_eq!((failed.address.port(), failed.reason.kind()), (1, want));
            assert_eq!(tried, [1, 2]);
        }
        let (raced, _) = race_of(&[], limit, limit).await;
        assert!(raced.unwrap_err().is_none());
    }

    #[tokio::test]
    async fn a_name_with_two_families_is_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // If localhost also has an IPv6 address, nothing listens there.
        let stream = connect("localhost", port, LONG).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        drop(listener);
        let error = connect("127.0.0.1", port, LONG).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(
            error
                .to_string()
                .starts_with(&format!("127.0.0.1:{port}: ")),
            "{error}"
        );
    }
}
