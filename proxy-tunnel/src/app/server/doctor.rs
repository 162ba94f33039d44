// SPDX-License-Identifier: Apache-2.0

//! The checks of `konnectivity-server doctor`.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::{fs, io};

use jiff::Timestamp;
use proxy_serve::doctor::Check;
use proxy_serve::listen::Bind;
use tokio::net::{TcpStream, UnixStream};

use super::args::Args;
use super::rules_file;
use super::settings::{Frontend, Settings};
use super::{AGENTS_TLS, CLIENTS_TLS};
use crate::app::doctor::api_server::{self, Right};
use crate::app::doctor::words::chain;
use crate::app::doctor::{Examined, certificates, running};
use crate::cluster::lease;

/// The verbs that the server uses on leases.
const LEASES: [&str; 5] = ["get", "list", "create", "update", "delete"];

impl Examined for Args {
    async fn examine(self) -> Vec<Check> {
        let settings = match Settings::new(&self) {
            Ok(settings) => settings,
            Err(error) => {
                let remedy = "correct the command line; the server does not start with it";
                return vec![Check::broken("flags", format!("{error:#}"), remedy)];
            }
        };
        let now = Timestamp::now();
        let mut checks = certificates::of_server(&settings.agents.1, AGENTS_TLS, now);
        if let Frontend::Tls(_, tls) = &settings.frontend {
            checks.extend(certificates::of_server(tls, CLIENTS_TLS, now));
        }
        checks.extend(
            settings
                .tenants
                .as_deref()
                .map(|path| rules(path, &settings)),
        );
        checks.extend(running_server(&settings).await);
        checks.extend(asked(&settings).await);
        checks
    }
}

fn rules(path: &Path, settings: &Settings) -> Check {
    let id = "tenants";
    match rules_file::examine(path, settings) {
        Ok(rules) => Check::ok(id, format!("rules of {} tenants", rules.tenants().count())),
        Err(error) => Check::broken(
            id,
            chain(&error),
            "correct the file: docs/tenants.md has all keys; a server that runs keeps the rules of before",
        ),
    }
}

/// Checks the server on this host, through its health port and its listeners.
async fn running_server(settings: &Settings) -> Vec<Check> {
    let answer = match running::ask(settings.health, "/metrics").await {
        Ok(answer) => answer,
        Err(error) => {
            let finding = format!(
                "no server answers at {}: {error}",
                running::address(settings.health)
            );
            let remedy = "start it; its log says why it ended";
            return vec![Check::warning("server", finding, remedy)];
        }
    };
    let mut checks = Vec::new();
    let name = "konnectivity_network_proxy_server_ready_backend_connections";
    checks.push(match running::metric(&answer.body, name) {
        Some(0) => Check::broken(
            "agents",
            "no agent is connected: nothing reaches nodes, pods and services",
            "run konnectivity-agent doctor in the cluster; the log has agents that were refused, and why",
        ),
        Some(count) => Check::ok("agents", format!("{count} streams of agents")),
        None => Check::unknown(
            "agents",
            "what answers at its health port has no metrics of this server",
            "find out what listens there",
        ),
    });
    checks.push(listens("agents' port", settings.agents.0).await);
    checks.push(match &settings.frontend {
        Frontend::Tls(bind, _) => listens("clients' port", *bind).await,
        Frontend::Unix(path, _) => socket(path).await,
    });
    checks
}

async fn listens(what: &str, bind: Bind) -> Check {
    let address = running::address(bind);
    match TcpStream::connect(address).await {
        Ok(_) => Check::ok("listener", format!("the {what} is open at {address}")),
        Err(error) => Check::broken(
            "listener",
            format!("the {what} does not take connections at {address}: {error}"),
            "the log says why; another process may have the port",
        ),
    }
}

async fn socket(path: &Path) -> Check {
    let id = "listener";
    let remedy = "kube-apiserver has to mount the same directory, and to run as root or with the socket's group; a server that was \
                  started later removes the socket of the one before";
    let looked = || -> io::Result<u32> {
        let found = fs::metadata(path)?;
        if found.file_type().is_socket() {
            Ok(found.permissions().mode() & 0o777)
        } else {
            Err(io::Error::other("it is no socket"))
        }
    };
    let outcome = match looked() {
        Ok(mode) => UnixStream::connect(path).await.map(|_| mode),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(mode) => Check::ok(
            id,
            format!("{} takes connections, mode {mode:o}", path.display()),
        ),
        Err(error) => Check::broken(id, format!("{}: {error}", path.display()), remedy),
    }
}

/// Checks the API server for the requests that this server sends to it.
async fn asked(settings: &Settings) -> Vec<Check> {
    let mut wanted = Vec::new();
    let asks_for_tokens =
        settings.account.is_some() || (settings.tenants.is_some() && settings.kubeconfig.is_some());
    if asks_for_tokens {
        wanted.push(Right {
            verb: "create",
            group: "authentication.k8s.io",
            resource: "tokenreviews",
            namespace: None,
        });
    }
    if let Some(leases) = &settings.leases {
        wanted.extend(LEASES.map(|verb| Right {
            verb,
            group: "coordination.k8s.io",
            resource: "leases",
            namespace: Some(&leases.namespace),
        }));
    }
    if wanted.is_empty() {
        let why = "without tokens and leases no API server is asked";
        return vec![Check::not_applicable("api-server", why)];
    }
    let (client, mut checks) = match api_server::reach(settings.kubeconfig.as_deref()).await {
        Ok(reached) => reached,
        Err(check) => return vec![check],
    };
    checks.extend(api_server::rights(&client, &wanted).await);
    if let Some(leases) = &settings.leases {
        let selector = lease::selector(&leases.labels);
        let found = api_server::leases(&client, &leases.namespace, &selector).await;
        checks.push(match found {
            Ok(count) => counts(count, settings.count),
            Err(check) => check,
        });
    }
    checks
}

/// Compares the two numbers of servers: agents that count leases and agents that do not must want the same number.
fn counts(leases: usize, announced: u32) -> Check {
    let id = "servers";
    if leases == 0 {
        return Check::warning(
            id,
            "no server has a valid lease",
            "a server that runs renews its lease every 15 s: the log says why it does not, and do the clocks agree?",
        );
    }
    let finding = format!(
        "{leases} servers have a valid lease; servers announce {announced} to agents that count none (--server-count)"
    );
    if leases == announced as usize {
        return Check::ok(id, finding);
    }
    Check::warning(
        id,
        finding,
        "have all agents count leases (--count-server-leases), or give all servers the same --server-count",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn leases_and_the_flag_agree() {
        assert_eq!(counts(3, 3).verdict, Verdict::Ok);
        for (leases, announced) in [(0, 1), (3, 1), (1, 3)] {
            assert_eq!(counts(leases, announced).verdict, Verdict::Warning);
        }
    }
}
