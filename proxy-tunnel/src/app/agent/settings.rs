// SPDX-License-Identifier: Apache-2.0

//! The settings of the agent, parsed from its flags and validated.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proxy_serve::listen::Bind;
use proxy_serve::tls::client::{Client as Tls, ServerName};
use proxy_serve::tls::{HTTP2, Pair, Policy};
use proxy_serve::value::List;
use tracing::warn;

use super::super::args::{destinations, path, positive, server_name};
use super::super::{both, name, port};
use super::args::Args;
use crate::agent::sync::CountSource;
use crate::channel::LEAST_KEEPALIVE;
use crate::destinations::Destinations;
use crate::flow::Limits;
use crate::identifiers::Identifiers;

/// The settings for counting leases.
#[derive(Debug)]
pub struct Counting {
    /// The kubeconfig file for the API server.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the leases.
    pub namespace: String,
    /// The label selector for leases of servers.
    pub selector: String,
}

/// All settings from the flags.
#[derive(Debug)]
pub struct Settings {
    /// The agent's ID.
    pub agent_id: String,
    /// The agent's identifiers.
    pub identifiers: String,
    /// The hosts of the servers.
    pub hosts: Vec<String>,
    /// The port of the servers.
    pub server_port: u16,
    /// The CAs of the servers and the agent's certificate.
    pub tls: Tls,
    /// The name that is sent as SNI and that the servers' certificates must match, if it is not their host.
    pub server_name: Option<ServerName<'static>>,
    /// The time without received bytes after which the agent pings a server.
    pub keepalive: Duration,
    /// The file that contains the token.
    pub token: Option<PathBuf>,
    /// The address for health and metrics.
    pub health: Bind,
    /// The port for health and metrics. The admin port redirects requests for metrics to it.
    pub health_port: u16,
    /// The address for administration.
    pub admin: Bind,
    /// True if profiling was enabled.
    pub profiling: bool,
    /// The pause between connections to servers.
    pub interval: Duration,
    /// The longest pause after failures.
    pub cap: Duration,
    /// True if the agent continues to connect when it has enough streams.
    pub forever: bool,
    /// The source of the number of servers.
    pub source: CountSource,
    /// The settings for leases, if they are counted.
    pub counting: Option<Counting>,
    /// The limits of one tunnel.
    pub limits: Limits,
    /// The number of bytes that all tunnels together may buffer.
    pub budget: usize,
    /// The targets that may be connected to.
    pub allowed: Destinations,
}

impl Settings {
    /// Parses and validates the flags.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other or a value is out of range.
    pub fn new(args: &Args) -> Result<Self> {
        args.common.check()?;
        ensure!(
            args.xfr_channel_size > 0,
            "--xfr-channel-size must be larger than 0"
        );
        check_identifiers(&args.agent_identifiers)?;
        let interval = positive("sync-interval", args.sync_interval)?;
        let cap = positive("sync-interval-cap", args.sync_interval_cap)?;
        ensure!(
            interval <= cap,
            "--sync-interval is {}, more than --sync-interval-cap, {}",
            args.sync_interval,
            args.sync_interval_cap
        );
        let keepalive = positive("keepalive-time", args.keepalive_time)?;
        if keepalive < LEAST_KEEPALIVE {
            warn!(
                "--keepalive-time is {}; servers cut agents that ping more often than every 30 s, so this one does \
                 not",
                args.keepalive_time
            );
        }
        let mut hosts = List::join(&args.proxy_server_host);
        // A host that is listed twice is one server, so it counts only once as wanted.
        let mut named = HashSet::new();
        hosts.retain(|host| named.insert(host.clone()));
        ensure!(!hosts.is_empty(), "--proxy-server-host needs a host");
        for host in &hosts {
            let is_address = host.parse::<std::net::IpAddr>().is_ok();
            ensure!(
                is_address || !host.contains(['/', ':', '[', ']', ' ']),
                "--proxy-server-host has {host:?}; give names or addresses without scheme, brackets and port \
                 (the port is --proxy-server-port)"
            );
        }
        let health_port = port("health-server-port", args.health_server_port)?;
        let admin_port = port("admin-server-port", args.admin_server_port)?;
        Ok(Self {
            agent_id: name(("--agent-id", &args.agent_id), "PROXY_AGENT_ID")?,
            identifiers: args.agent_identifiers.clone(),
            hosts,
            server_port: server_port(args.proxy_server_port)?,
            tls: tls(args)?,
            server_name: server_name(&args.proxy_server_name)?,
            keepalive,
            token: path(&args.service_account_token_path),
            health: Bind::parse(
                "--health-server-host",
                &args.health_server_host,
                health_port,
            )?,
            health_port,
            admin: Bind::parse("--admin-bind-address", &args.admin_bind_address, admin_port)?,
            profiling: args.common.enable_profiling,
            interval,
            cap,
            forever: args.sync_forever,
            source: args
                .server_count_source
                .parse()
                .map_err(anyhow::Error::msg)
                .context("--server-count-source")?,
            counting: args.count_server_leases.then(|| Counting {
                kubeconfig: args.common.kubeconfig(),
                namespace: args.common.lease_namespace.clone(),
                selector: if args.lease_label.is_empty() {
                    args.lease_label_selector.clone()
                } else {
                    args.lease_label.clone()
                },
            }),
            limits: args.common.limits()?,
            budget: args.common.budget(),
            allowed: destinations("allow-destination", &args.allow_destination)?,
        })
    }
}

/// Converts the port of the servers. A load balancer before them may use any port.
fn server_port(value: i64) -> Result<u16> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port > 0)
        .with_context(|| format!("--proxy-server-port is {value}; give a port from 1 to 65535"))
}

fn tls(args: &Args) -> Result<Tls> {
    let has_pair = both(
        ("agent-cert", &args.agent_cert),
        ("agent-key", &args.agent_key),
    )?;
    ensure!(
        !args.ca_cert.is_empty(),
        "--ca-cert is needed: it says which servers are trusted"
    );
    let mut alpn: Vec<Vec<u8>> = List::join(&args.alpn_proto)
        .into_iter()
        .map(String::into_bytes)
        .collect();
    if !alpn.iter().any(|protocol| protocol == HTTP2) {
        alpn.push(HTTP2.to_vec());
    }
    Ok(Tls {
        server_ca: (&args.ca_cert).into(),
        pair: has_pair.then(|| Pair {
            certificate: (&args.agent_cert).into(),
            key: (&args.agent_key).into(),
        }),
        location: "--ca-cert, --agent-cert and --agent-key say where they are",
        alpn,
        policy: Policy::default(),
    })
}

fn check_identifiers(text: &str) -> Result<()> {
    let read = Identifiers::parse(text)
        .context("--agent-identifiers is written like host=NAME&ipv4=ADDRESS")?;
    ensure!(
        read.unknown.is_empty(),
        "--agent-identifiers has the unknown key {}; known are ipv4, ipv6, host, cidr and default-route",
        read.unknown.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::read_flags;
    use super::*;

    fn read(words: &[&str]) -> Result<Settings> {
        let line = ["--ca-cert=ca"].iter().chain(words);
        Settings::new(&read_flags(line)?)
    }

    #[test]
    fn defaults() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.hosts, ["127.0.0.1"]);
        assert_eq!(settings.server_port, 8091);
        assert_eq!(settings.health, Bind::Every(8093));
        assert_eq!(settings.admin, Bind::One("127.0.0.1:8094".parse().unwrap()));
        assert_eq!(settings.interval, Duration::from_secs(1));
        assert_eq!(settings.cap, Duration::from_secs(10));
        assert_eq!(settings.keepalive, Duration::from_hours(1));
        assert_eq!(settings.tls.alpn, [b"h2".to_vec()]);
        assert!(settings.tls.pair.is_none());
        assert!(settings.counting.is_none());
        assert_eq!(settings.agent_id.len(), 36);
    }

    /// All flags that upstream's test suite passes, in the same form.
    #[test]
    fn the_suites_command_line() {
        let settings = read(&[
            "--admin-bind-address=127.0.0.1",
            "--admin-server-port=40001",
            "--agent-cert=c",
            "--agent-id=some",
            "--agent-identifiers=",
            "--agent-key=k",
            "--alpn-proto=[]",
            "--count-server-leases=false",
            "--enable-contention-profiling=false",
            "--enable-profiling=false",
            "--health-server-host=127.0.0.1",
            "--health-server-port=40002",
            "--keepalive-time=1h0m0s",
            "--kube-api-content-type=application/vnd.kubernetes.protobuf",
            "--kubeconfig=",
            "--lease-label=",
            "--lease-label-selector=k8s-app=konnectivity-server",
            "--lease-namespace=kube-system",
            "--probe-interval=100ms",
            "--proxy-server-host=127.0.0.1",
            "--proxy-server-port=40003",
            "--server-count-source=default",
            "--service-account-token-path=",
            "--sync-forever=false",
            "--sync-interval=100ms",
            "--sync-interval-cap=1s",
            "--warn-on-channel-limit=false",
            "--xfr-channel-size=150",
        ])
        .unwrap();
        assert_eq!(settings.tls.alpn, [b"[]".to_vec(), b"h2".to_vec()]);
        assert_eq!(settings.agent_id, "some");
        assert_eq!(settings.interval, Duration::from_millis(100));
    }

    #[test]
    fn several_hosts() {
        let one = read(&["--proxy-server-host=a,b"]).unwrap();
        assert_eq!(one.hosts, ["a", "b"]);
        let two = read(&["--proxy-server-host=a", "--proxy-server-host", "fd00::1"]).unwrap();
        assert_eq!(two.hosts, ["a", "fd00::1"]);
        assert_eq!(
            read(&["--proxy-server-host=a,b,a"]).unwrap().hosts,
            ["a", "b"]
        );
        for bad in ["http://a:8091", "[fd00::1]", "a:8091", "a b"] {
            let flag = format!("--proxy-server-host={bad}");
            assert!(read(&[&flag]).is_err(), "{bad}");
        }
        assert!(read(&["--agent-id=a\nb"]).is_err());
    }

    #[test]
    fn leases() {
        let counting = read(&["--count-server-leases", "--lease-label=a=b"]).unwrap();
        assert_eq!(counting.counting.unwrap().selector, "a=b");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (words, want) in [
            (&["--ca-cert="][..], "--ca-cert"),
            (&["--agent-cert=c"], "--agent-cert needs --agent-key"),
            (&["--sync-interval=11s"], "--sync-interval-cap"),
            (&["--sync-interval=0s"], "--sync-interval"),
            (&["--agent-identifiers=zone=a"], "zone"),
            (
                &["--agent-identifiers=host=%"],
                "fail to parse url encoded string",
            ),
            (&["--server-count-source=some"], "--server-count-source"),
            (&["--proxy-server-host="], "--proxy-server-host"),
            (&["--proxy-server-name=a b"], "--proxy-server-name"),
            (&["--proxy-server-port=0"], "--proxy-server-port"),
            (&["--health-server-port=80"], "--health-server-port"),
            (
                &["--allow-destination=10.0.0.0/8,a b"],
                "--allow-destination",
            ),
            (&["--tunnel-stall-timeout=0s"], "--tunnel-stall-timeout"),
            (&["--buffer-budget=0"], "--buffer-budget"),
            (&["--unknown"], "--unknown"),
        ] {
            let error = format!("{:#}", read(words).unwrap_err());
            assert!(error.contains(want), "{words:?}: {error}");
        }
    }
}
