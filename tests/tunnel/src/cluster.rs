// SPDX-License-Identifier: Apache-2.0

//! A cluster beside a tunnel's server: a network namespace with a link to the server's. All clusters use the same
//! addresses inside, as clusters of different owners may.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use anyhow::{Context as _, Result};
use tests::leftovers;
use tests::netns::Netns;

use crate::program::{Make, Part};
use crate::tunnel::Tunnel;

/// An address that exists in every cluster.
pub const INSIDE: &str = "10.0.0.1";

/// A cluster with its namespace.
#[derive(Debug)]
pub struct Cluster {
    netns: Netns,
    number: u8,
}

impl Cluster {
    /// Creates the cluster with this number, from 0.
    ///
    /// # Errors
    /// Returns an error if the caller is not root, or if the namespace or its link cannot be created.
    pub fn new(tunnel: &Tunnel, number: u8) -> Result<Self> {
        let netns = Netns::new(&format!("pa-{}-cluster{number}", leftovers::unique_id()?))?;
        let (name, link) = (netns.name(), format!("cluster{number}"));
        tunnel.netns().ip(&format!(
            "link add {link} type veth peer name eth0 netns {name}\n\
             address add 192.168.{number}.1/24 dev {link}\n\
             link set {link} up\n"
        ))?;
        netns.ip(&format!(
            "address add 192.168.{number}.2/24 dev eth0\n\
             address add {INSIDE}/32 dev lo\n\
             link set eth0 up\n"
        ))?;
        Ok(Self { netns, number })
    }

    /// Returns the cluster's namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Returns the server's address in this cluster.
    #[must_use]
    pub fn server(&self) -> String {
        format!("192.168.{}.1", self.number)
    }

    /// Serves a target on a port of the inner address that replies to each HTTP request with this text.
    ///
    /// # Errors
    /// Returns an error if it cannot listen.
    pub fn serve(&self, port: u16, text: &'static str) -> Result<()> {
        let listener = self.netns.run(|| TcpListener::bind((INSIDE, port)));
        let listener = listener.with_context(|| format!("listening on {INSIDE}:{port}"))?;
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let length = text.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                // Requests are short; a client may disconnect at once.
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all((head + text).as_bytes());
            }
        });
        Ok(())
    }

    /// Starts an agent in this cluster with a tenant's certificate. The agent connects to the server at this host,
    /// requests this server name, and advertises every kind of identifier.
    ///
    /// # Errors
    /// Returns an error if the agent cannot be started.
    pub fn agent(
        &self,
        tunnel: &mut Tunnel,
        process: &'static str,
        certificate: &str,
        server_name: &str,
    ) -> Result<()> {
        let args = [
            "--ca-cert=certs/agent/issued/ca.crt".to_owned(),
            format!("--agent-cert=certs/agent/issued/{certificate}.crt"),
            format!("--agent-key=certs/agent/private/{certificate}.key"),
            format!("--proxy-server-host={}", self.server()),
            format!("--proxy-server-name={server_name}"),
            "--agent-id=the-same".to_owned(),
            format!("--agent-identifiers=ipv4={INSIDE}&host=anything&default-route=true"),
            "--sync-interval=100ms".to_owned(),
            "--sync-interval-cap=500ms".to_owned(),
            "--health-server-port=8193".to_owned(),
            "--admin-server-port=8194".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        tunnel.spawn_in(&self.netns, process, &Part::Agent.of(Make::Ours)?, &args)
    }
}
