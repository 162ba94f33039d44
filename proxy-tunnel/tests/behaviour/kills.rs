// SPDX-License-Identifier: Apache-2.0

//! Programs are killed at any moment while connections are opened and closed: the surviving end keeps nothing of them.
//! Upstream #914 leaves a socket and a buffer for each dial. `PROXY_AGENT_TEST_LOAD=full` kills 1,000 times.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::process::{Program, Setup, echo, get, until};
use super::rig::load;

/// The flag with the server's mode.
const MODE: [&str; 1] = ["--mode=http-connect"];

/// The gauges of the server that count connections.
const GAUGES: [&str; 3] = [
    "konnectivity_network_proxy_server_established_connections",
    "konnectivity_network_proxy_server_http_connections",
    "konnectivity_network_proxy_server_pending_backend_dials",
];

/// The number of threads that connect all the time.
const CLIENTS: usize = 8;

/// The number of concurrent pending dials.
const PENDING: usize = 500;

/// Connects, sends, reads and disconnects at any point, until `stop` is set.
fn traffic(setup: &Setup, target: &str, stop: &AtomicBool) {
    let mut bytes = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = setup.connect(target) else {
            // The pause limits the rate while no agent is connected.
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        // A killed program causes an error here, which is expected: the next connection follows.
        let sent = fastrand::usize(..bytes.len());
        let mut exchange = || {
            stream.write_all(&bytes[..sent])?;
            let read = fastrand::usize(..=sent);
            stream.read_exact(&mut bytes[..read])
        };
        let _ = exchange();
    }
}

/// Stops the clients even if an assertion fails, because the scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Server,
    Agent,
}

/// The two programs.
struct Pair<'a> {
    setup: &'a Setup,
    server: Program,
    agent: Program,
}

impl<'a> Pair<'a> {
    fn new(setup: &'a Setup) -> Self {
        let server = setup.server(&MODE);
        let agent = setup.agent(&[]);
        setup.until_ready();
        Self {
            setup,
            server,
            agent,
        }
    }

    fn kill(&mut self, victim: End) {
        let program = match victim {
            End::Server => &mut self.server,
            End::Agent => &mut self.agent,
        };
        program.signal(libc::SIGKILL);
        program.end();
        *program = match victim {
            End::Server => self.setup.server(&MODE),
            End::Agent => self.setup.agent(&[]),
        };
    }

    /// Returns the program that survives.
    fn survivor(&self, victim: End) -> &Program {
        match victim {
            End::Server => &self.agent,
            End::Agent => &self.server,
        }
    }

    /// Waits until no connection is left.
    fn until_at_rest(&self) {
        self.setup.until_ready();
        until(
            "no connection at the server",
            || {
                let metrics = get(self.setup.health, "/metrics").2;
                // A server that has just started does not have all of these metrics yet.
                GAUGES.iter().all(|gauge| {
                    let value = metrics.lines().find_map(|line| line.strip_prefix(gauge));
                    value.is_none_or(|value| value == " 0")
                })
            },
            || self.server.log(),
        );
        self.setup.until_agent("open_server_connections 1");
        self.setup.until_agent("open_endpoint_connections 0");
    }

    /// Returns the number of open files of the survivor after it has served a connection.
    fn files(&self, victim: End, target: &str) -> usize {
        drop(self.setup.connect(target).unwrap());
        self.until_at_rest();
        self.survivor(victim).files()
    }

    /// Waits until no connection is left, and the survivor has at most this number of open files.
    fn nothing_is_left(&self, victim: End, files: usize) {
        self.until_at_rest();
        let survivor = self.survivor(victim);
        // Connections of metrics requests are files too, and end a moment later.
        until(
            "as few files as before",
            || survivor.files() <= files,
            || format!("{} and not {files}\n{}", survivor.files(), survivor.log()),
        );
    }
}

/// Kills a program this number of times, each time after a moment under load.
fn kill(victim: End, times: usize) {
    let setup = Setup::new();
    let mut pair = Pair::new(&setup);
    let (target, open) = echo();
    let files = pair.files(victim, &target);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..CLIENTS {
            scope.spawn(|| traffic(&setup, &target, &stop));
        }
        for number in 0..times {
            // The program is killed mostly under load, sometimes during its start.
            if number % 4 > 0 {
                setup.until_ready();
            }
            thread::sleep(Duration::from_millis(fastrand::u64(..60)));
            pair.kill(victim);
        }
    });
    pair.nothing_is_left(victim, files);
    until(
        "all targets are left",
        || open.load(Ordering::SeqCst) == 0,
        || format!("{} are not", open.load(Ordering::SeqCst)),
    );
    drop(setup.connect(&target).unwrap());
}

#[test]
fn an_agent_that_is_killed_again_and_again_leaves_nothing_at_its_server() {
    kill(End::Agent, load(8, 500));
}

#[test]
fn a_server_that_is_killed_again_and_again_leaves_nothing_at_its_agent() {
    kill(End::Server, load(8, 500));
}

/// Returns a target that accepts no connections: its queue is full.
fn silent() -> (Socket, Vec<Socket>, String) {
    let new = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = new();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    loop {
        let socket = new();
        if socket
            .connect_timeout(&address, Duration::from_millis(100))
            .is_err()
        {
            break;
        }
        queued.push(socket);
        assert!(queued.len() < 10, "the queue has no end");
    }
    let address = address.as_socket().unwrap().to_string();
    (listener, queued, address)
}

/// Kills a program while many dials are pending.
fn kill_with_pending_dials(victim: End) {
    let setup = Setup::new();
    let mut pair = Pair::new(&setup);
    let (target, _) = echo();
    let files = pair.files(victim, &target);
    let (_listener, _queued, address) = silent();
    let dialing: Vec<UnixStream> = (0..PENDING)
        .map(|_| {
            let mut stream = UnixStream::connect(setup.scratch.file("socket")).unwrap();
            write!(stream, "CONNECT {address} HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // The number includes the dial before these.
    let asked = format!(
        "stream_packets_total{{packet_type=\"DIAL_REQ\",segment=\"to_agent\"}} {}",
        PENDING + 1
    );
    setup.until_agent(&asked);
    pair.kill(victim);
    for mut stream in dialing {
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        // A killed server sends no response.
        if victim == End::Agent {
            read.unwrap();
            assert!(answer.starts_with("HTTP/1.1 50"), "{answer:?}");
        }
    }
    pair.nothing_is_left(victim, files);
    drop(setup.connect(&target).unwrap());
}

#[test]
fn an_agent_that_is_killed_with_500_pending_dials_leaves_no_socket_at_its_server() {
    kill_with_pending_dials(End::Agent);
}

#[test]
fn a_server_that_is_killed_with_500_pending_dials_leaves_no_socket_at_its_agent() {
    kill_with_pending_dials(End::Server);
}
