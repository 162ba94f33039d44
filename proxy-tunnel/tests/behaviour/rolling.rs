// SPDX-License-Identifier: Apache-2.0

//! Three servers are restarted one after the other, with the agents' default intervals: each agent is connected to all
//! of them again within 10 s, and meanwhile reports which servers are missing (hypershift #9260). A load balancer that
//! pins an agent to one server selects another one when that server stops (k0s #5503).

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::process::{Program, Setup, get, port, until};

/// The maximum time until an agent is connected to a restarted server.
const BACK: Duration = Duration::from_secs(10);

const SERVERS: usize = 3;

/// Returns the host of a server, or of the load balancer in front of them.
fn host(number: usize) -> String {
    format!("127.0.0.{}", number + 1)
}

/// The values that differ for each server: addresses, health ports.
struct Servers<'a> {
    setup: &'a Setup,
    health: [u16; SERVERS],
}

impl Servers<'_> {
    fn start(&self, number: usize) -> Program {
        let name = format!("server-{number}");
        let args = [
            format!("--uds-name={}", self.setup.file(&name)),
            format!("--agent-bind-address={}", host(number)),
            format!("--health-port={}", self.health[number]),
            format!("--admin-port={}", port()),
            format!("--server-id={name}"),
            format!("--server-count={SERVERS}"),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.setup.server_as(&name, &args)
    }

    /// Waits until a server has this number of agents.
    fn until_agents(&self, number: usize, agents: usize) {
        let line = format!(
            "konnectivity_network_proxy_server_ready_backends{{proxy_strategy=\"default\"}} {agents}\n"
        );
        until(
            &format!("{agents} agents of server {number}"),
            || get(self.health[number], "/metrics").2.contains(&line),
            String::new,
        );
    }
}

/// An agent, and the port of its readiness endpoint.
struct Agent {
    health: u16,
    program: Program,
}

impl Agent {
    fn start(setup: &Setup, name: &str, hosts: &[String]) -> Self {
        let health = port();
        let args = [
            format!("--proxy-server-host={}", hosts.join(",")),
            "--proxy-server-name=localhost".to_owned(),
            format!("--health-server-port={health}"),
            format!("--admin-server-port={}", port()),
            format!("--agent-id={name}"),
            // These are the agent's defaults, which differ from the values of the other tests.
            "--sync-interval=1s".to_owned(),
            "--sync-interval-cap=10s".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let program = setup.agent_as(name, &args);
        Self { health, program }
    }

    fn until_readiness(&self, text: &str) {
        let want = format!("[+]ping ok\n[+]server-connected ok{text}\ncheck passed\n");
        let verbose = || get(self.health, "/readyz?verbose").2;
        until(
            &want,
            || verbose() == want,
            || format!("{}\n{}", verbose(), self.program.log()),
        );
    }
}

/// Starts a load balancer that forwards every connection to one server as long as that server accepts connections.
fn balancer(port: u16, hosts: Vec<String>) {
    let listener = TcpListener::bind((host(SERVERS).as_str(), port)).unwrap();
    thread::spawn(move || {
        let pinned = AtomicUsize::new(0);
        for near in listener.incoming() {
            let near = near.unwrap();
            let reached = (0..hosts.len()).find_map(|_| {
                let number = pinned.load(Ordering::Relaxed);
                let far = TcpStream::connect((hosts[number].as_str(), port));
                if far.is_err() {
                    pinned.store((number + 1) % hosts.len(), Ordering::Relaxed);
                }
                far.ok()
            });
            let Some(far) = reached else { continue };
            for (from, to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ] {
                thread::spawn(move || {
                    // Either end may disconnect; the end is then forwarded to the other one.
                    let _ = io::copy(&mut &from, &mut &to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                    let _ = from.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

#[test]
fn all_connections_are_back_within_ten_seconds_of_each_restart() {
    let setup = Setup::new();
    let servers = Servers {
        setup: &setup,
        health: [port(), port(), port()],
    };
    let mut running: Vec<_> = (0..SERVERS).map(|number| servers.start(number)).collect();
    let hosts: Vec<String> = (0..SERVERS).map(host).collect();
    let every = Agent::start(&setup, "every", &hosts);
    every.until_readiness("");
    for (number, server) in running.iter_mut().enumerate() {
        server.signal(libc::SIGTERM);
        assert_eq!(server.end().0, Some(0), "{}", server.log());
        every.until_readiness(": 2 of 3 servers");
        let metrics = get(every.health, "/metrics").2;
        assert!(metrics.contains("_agent_open_server_connections 2\n"));
        assert!(metrics.contains("_agent_wanted_server_connections 3\n"));
        *server = servers.start(number);
        until(
            "the server",
            || get(servers.health[number], "/healthz").2 == "ok",
            || server.log(),
        );
        let begun = Instant::now();
        servers.until_agents(number, 1);
        every.until_readiness("");
        let took = begun.elapsed();
        assert!(took < BACK, "server {number}: {took:?}");
    }
}

#[test]
fn an_agent_that_is_pinned_follows_its_load_balancer_and_says_what_it_lacks() {
    let setup = Setup::new();
    let servers = Servers {
        setup: &setup,
        health: [port(), port(), port()],
    };
    let mut running: Vec<_> = (0..SERVERS).map(|number| servers.start(number)).collect();
    for health in servers.health {
        until(
            "the server",
            || get(health, "/healthz").2 == "ok",
            String::new,
        );
    }
    balancer(setup.agents, (0..SERVERS).map(host).collect());
    let pinned = Agent::start(&setup, "pinned", &[host(SERVERS)]);
    pinned.until_readiness(": 1 of 3 servers");
    for (number, server) in running.iter_mut().enumerate().take(2) {
        servers.until_agents(number, 1);
        server.signal(libc::SIGTERM);
        server.end();
        let begun = Instant::now();
        servers.until_agents(number + 1, 1);
        pinned.until_readiness(": 1 of 3 servers");
        let took = begun.elapsed();
        assert!(took < BACK, "server {number}: {took:?}");
        *server = servers.start(number);
    }
}
