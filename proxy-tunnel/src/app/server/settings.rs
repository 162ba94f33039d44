// SPDX-License-Identifier: Apache-2.0

//! The settings of the server, parsed from its flags and validated. Contradictions are rejected before any socket is
//! opened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use proxy_serve::listen::Bind;
use proxy_serve::listen::unix::Existing;
use proxy_serve::tls::server::Server as Tls;
use proxy_serve::tls::{HTTP1, HTTP2, Pair, Policy};
use proxy_serve::value::List;

use super::super::args::{duration, path, positive};
use super::super::{both, name, port};
use super::args::Args;
use crate::client::Mode;
use crate::cluster::lease;
use crate::cluster::tokens::Account;
use crate::flow::Limits;
use crate::server::strategies::Strategy;

/// The address for clients.
#[derive(Debug)]
pub enum Frontend {
    /// A Unix socket, and the policy for an existing socket file.
    Unix(PathBuf, Existing),
    /// A TCP address with TLS.
    Tls(Bind, Tls),
}

/// The settings for the server's lease.
#[derive(Debug)]
pub struct Leases {
    /// The namespace of the leases.
    pub namespace: String,
    /// The labels of the leases.
    pub labels: BTreeMap<String, String>,
}

/// All settings from the flags.
#[derive(Debug)]
pub struct Settings {
    /// The server's ID.
    pub id: String,
    /// The number of servers, as announced to agents.
    pub count: u32,
    /// The protocol of clients.
    pub mode: Mode,
    /// True if HTTP clients may also send requests in absolute form.
    pub absolute_form: bool,
    /// The address for clients.
    pub frontend: Frontend,
    /// The address for agents.
    pub agents: (Bind, Tls),
    /// The address for health and metrics.
    pub health: Bind,
    /// The address for administration.
    pub admin: Bind,
    /// True if profiling was enabled.
    pub profiling: bool,
    /// The keepalive times for agents and for clients.
    pub keepalive: (Duration, Duration),
    /// The service account whose tokens agents must present.
    pub account: Option<Account>,
    /// The file with the rules of tenants, if there are several.
    pub tenants: Option<PathBuf>,
    /// The policy for existing files of the Unix sockets that rules specify.
    pub existing: Existing,
    /// The kubeconfig file for the API server.
    pub kubeconfig: Option<PathBuf>,
    /// The strategies for the choice of an agent.
    pub strategies: Vec<Strategy>,
    /// The settings for leases, if the server maintains them.
    pub leases: Option<Leases>,
    /// The time for which connections may continue during shutdown.
    pub graceful: Duration,
    /// The time that an agent has to respond to a dial; `None` for no limit.
    pub dial_timeout: Option<Duration>,
    /// The limits of one tunnel.
    pub limits: Limits,
    /// The number of bytes that all tunnels together may buffer.
    pub budget: usize,
}

impl Settings {
    /// Parses and validates the flags.
    ///
    /// # Errors
    /// Returns an error if flags contradict each other or a value is out of range.
    pub fn new(args: &Args) -> Result<Self> {
        let suites = List::join(&args.cipher_suites);
        let policy = Policy::parse(&suites, &args.tls_min_version)
            .context("--cipher-suites and --tls-min-version")?;
        args.common.check()?;
        ensure!(
            args.xfr_channel_size > 0,
            "--xfr-channel-size must be larger than 0"
        );
        ensure!(
            args.frontend_write_channel_size >= 0,
            "--frontend-write-channel-size must not be negative"
        );
        let mode = args
            .mode
            .parse()
            .map_err(anyhow::Error::msg)
            .context("--mode")?;
        ensure!(
            !args.allow_absolute_form || mode == Mode::HttpConnect,
            "--allow-absolute-form needs --mode=http-connect: it is about requests with HTTP/1.1"
        );
        let dial_timeout = duration("backend-dial-timeout", args.backend_dial_timeout)?;
        let bind =
            |flag, host: &str, port| Bind::parse(flag, host, port).map_err(anyhow::Error::from);
        Ok(Self {
            id: name(("--server-id", &args.server_id), "PROXY_SERVER_ID")?,
            count: args.server_count,
            mode,
            absolute_form: args.allow_absolute_form,
            frontend: frontend(args, mode, &policy)?,
            agents: (
                bind(
                    "--agent-bind-address",
                    &args.agent_bind_address,
                    port("agent-port", args.agent_port)?,
                )?,
                agents(args, policy)?,
            ),
            health: bind(
                "--health-bind-address",
                &args.health_bind_address,
                port("health-port", args.health_port)?,
            )?,
            admin: bind(
                "--admin-bind-address",
                &args.admin_bind_address,
                port("admin-port", args.admin_port)?,
            )?,
            profiling: args.common.enable_profiling,
            keepalive: (
                positive("keepalive-time", args.keepalive_time)?,
                positive("frontend-keepalive-time", args.frontend_keepalive_time)?,
            ),
            account: account(args)?,
            tenants: path(&args.tenants_config),
            existing: existing(args),
            kubeconfig: args.common.kubeconfig(),
            strategies: strategies(args)?,
            leases: args
                .enable_lease_controller
                .then(|| leases(args))
                .transpose()?,
            graceful: duration("graceful-shutdown-timeout", args.graceful_shutdown_timeout)?,
            dial_timeout: Some(dial_timeout).filter(|limit| !limit.is_zero()),
            limits: args.common.limits()?,
            budget: args.common.budget(),
        })
    }
}

const fn existing(args: &Args) -> Existing {
    if args.delete_existing_uds_file {
        Existing::Remove
    } else {
        Existing::Keep
    }
}

fn frontend(args: &Args, mode: Mode, policy: &Policy) -> Result<Frontend> {
    let has_pair = both(
        ("server-cert", &args.server_cert),
        ("server-key", &args.server_key),
    )?;
    if !args.uds_name.is_empty() {
        ensure!(
            args.server_port == 0,
            "--uds-name needs --server-port=0: clients connect by one of them"
        );
        ensure!(
            !has_pair && args.server_ca_cert.is_empty(),
            "--uds-name excludes --server-cert, --server-key and --server-ca-cert: there is no TLS on a Unix socket"
        );
        let path = PathBuf::from(&args.uds_name);
        return Ok(Frontend::Unix(path, existing(args)));
    }
    let port = port("server-port", args.server_port)?;
    ensure!(
        has_pair,
        "clients on TCP need --server-cert and --server-key; or give a Unix socket with --uds-name and --server-port=0"
    );
    ensure!(
        !args.server_ca_cert.is_empty(),
        "clients on TCP need --server-ca-cert: whoever connects reaches the whole cluster"
    );
    let alpn = match mode {
        Mode::Grpc => HTTP2,
        Mode::HttpConnect => HTTP1,
    };
    let tls = Tls {
        pair: Pair {
            certificate: (&args.server_cert).into(),
            key: (&args.server_key).into(),
        },
        client_ca: Some((&args.server_ca_cert).into()),
        location: "--server-cert, --server-key and --server-ca-cert say where they are",
        alpn: vec![alpn.to_vec()],
        policy: policy.clone(),
    };
    let bind = Bind::parse("--server-bind-address", &args.server_bind_address, port)?;
    Ok(Frontend::Tls(bind, tls))
}

fn agents(args: &Args, policy: Policy) -> Result<Tls> {
    let has_pair = both(
        ("cluster-cert", &args.cluster_cert),
        ("cluster-key", &args.cluster_key),
    )?;
    ensure!(has_pair, "agents need --cluster-cert and --cluster-key");
    Ok(Tls {
        pair: Pair {
            certificate: (&args.cluster_cert).into(),
            key: (&args.cluster_key).into(),
        },
        client_ca: path(&args.cluster_ca_cert),
        location: "--cluster-cert, --cluster-key and --cluster-ca-cert say where they are",
        alpn: vec![HTTP2.to_vec()],
        policy,
    })
}

fn account(args: &Args) -> Result<Option<Account>> {
    let parts = [
        &args.agent_namespace,
        &args.agent_service_account,
        &args.authentication_audience,
    ];
    match parts.iter().filter(|part| !part.is_empty()).count() {
        0 => Ok(None),
        3 => {
            ensure!(
                args.tenants_config.is_empty(),
                "--tenants-config excludes --agent-namespace, --agent-service-account and --authentication-audience: \
                 its rules name them"
            );
            ensure!(
                args.cluster_ca_cert.is_empty(),
                "--cluster-ca-cert excludes --agent-namespace: agents show a certificate or a token"
            );
            Ok(Some(Account {
                namespace: args.agent_namespace.clone(),
                name: args.agent_service_account.clone(),
                audience: args.authentication_audience.clone(),
            }))
        }
        _ => bail!(
            "--agent-namespace, --agent-service-account and --authentication-audience belong together: give all or none"
        ),
    }
}

fn strategies(args: &Args) -> Result<Vec<Strategy>> {
    let names = List::join(&args.proxy_strategies);
    ensure!(
        !names.is_empty(),
        "--proxy-strategies needs at least one strategy"
    );
    let strategies: Result<Vec<Strategy>, _> = names.iter().map(|name| name.parse()).collect();
    strategies.context("--proxy-strategies")
}

fn leases(args: &Args) -> Result<Leases> {
    let labels = lease::parse_labels(&args.lease_label).context("--lease-label")?;
    ensure!(!labels.is_empty(), "--lease-label needs at least one label");
    Ok(Leases {
        namespace: args.common.lease_namespace.clone(),
        labels,
    })
}

#[cfg(test)]
mod tests;
