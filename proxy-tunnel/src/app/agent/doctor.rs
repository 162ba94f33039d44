// SPDX-License-Identifier: Apache-2.0

//! The checks of `konnectivity-agent doctor`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use proxy_serve::doctor::Check;
use proxy_serve::reload::Reloader;
use proxy_serve::tls::HTTP2;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::args::Args;
use super::settings::{Counting, Settings};
use super::{CERTIFICATES, connector};
use crate::agent::connector::{ConnectError, Connector, Session};
use crate::app::doctor::api_server::{self, Right};
use crate::app::doctor::words::chain;
use crate::app::doctor::{Examined, certificates, running};
use crate::flow::Budget;
use crate::metrics::agent::AgentMetrics;

/// The time limit for each step of a connection to a server.
const LIMIT: Duration = Duration::from_secs(10);

/// The start of HTTP/2 on the client's side: the preface with an empty SETTINGS frame (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The offset of the type in a frame's header, and the type of a SETTINGS frame (RFC 9113, sections 4.1 and 6.5).
const SETTINGS: (usize, u8) = (3, 4);

impl Examined for Args {
    async fn examine(self) -> Vec<Check> {
        let settings = match Settings::new(&self) {
            Ok(settings) => settings,
            Err(error) => {
                let remedy = "correct the command line; the agent does not start with it";
                return vec![Check::broken("flags", format!("{error:#}"), remedy)];
            }
        };
        let mut checks = certificates::of_client(&settings.tls, CERTIFICATES, Timestamp::now());
        checks.extend(settings.token.as_deref().map(token));
        let (running, open) = running_agent(&settings).await;
        checks.extend(running);
        checks.extend(servers(&settings, open > 0).await);
        match &settings.counting {
            Some(counting) => checks.extend(leases(counting).await),
            None => checks.push(Check::not_applicable(
                "leases",
                "without --count-server-leases",
            )),
        }
        checks
    }
}

/// Checks the token, as far as that is possible without the key of its issuer.
fn token(path: &Path) -> Check {
    let id = "token";
    let remedy = "mount a projected token of the agents' service account, with the server's --authentication-audience";
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let finding = format!("{} cannot be read: {error}", path.display());
            return Check::broken(id, finding, remedy);
        }
    };
    let Some(claims) = claims(text.trim()) else {
        let finding = format!("{} holds no JSON web token", path.display());
        return Check::warning(id, finding, remedy);
    };
    let now = Timestamp::now().as_second();
    let subject = claims["sub"].as_str().unwrap_or("no subject");
    let audience = match &claims["aud"] {
        serde_json::Value::String(one) => one.clone(),
        several => several.to_string(),
    };
    let what = format!("it is of {subject}, for {audience}");
    match claims["exp"].as_i64() {
        Some(end) if end <= now => {
            let finding = format!("{what}, and has expired {} s ago", now - end);
            Check::broken(
                id,
                finding,
                "kubelet exchanges projected tokens in time: is this file one?",
            )
        }
        Some(end) => Check::ok(id, format!("{what}, for another {} s", end - now)),
        None => Check::ok(id, format!("{what}, without an end")),
    }
}

/// Returns the claims of a JSON Web Token (RFC 7519, section 3) without verifying them.
fn claims(token: &str) -> Option<serde_json::Value> {
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// Queries the health port of the agent on this host. Returns the checks and the number of servers to which the agent
/// is connected.
async fn running_agent(settings: &Settings) -> (Vec<Check>, i64) {
    let answer = match running::ask(settings.health, "/metrics").await {
        Ok(answer) => answer,
        Err(error) => {
            let finding = format!(
                "no agent answers at {}: {error}",
                running::address(settings.health)
            );
            let remedy = "start it; its log says why it ended";
            return (vec![Check::warning("agent", finding, remedy)], 0);
        }
    };
    let gauge = |name: &str| {
        let name = format!("konnectivity_network_proxy_agent_{name}");
        running::metric(&answer.body, &name)
    };
    let Some((open, wanted)) =
        gauge("open_server_connections").zip(gauge("wanted_server_connections"))
    else {
        let finding = "what answers at its health port has no metrics of this agent";
        let remedy = "find out what listens there, or examine upstream's agent by its own means";
        return (vec![Check::unknown("agent", finding, remedy)], 0);
    };
    let counts = format!("it is connected to {open} of {wanted} servers");
    let check = if open == 0 {
        Check::broken("agent", counts, "the checks of the servers say why")
    } else if open < wanted {
        Check::warning(
            "agent",
            counts,
            "is a server down, or does a load balancer lead to the same one each time? --proxy-server-host takes the servers \
             themselves, as a list; a --server-count larger than there are servers gives this too",
        )
    } else {
        Check::ok("agent", counts)
    };
    (vec![check], open)
}

async fn servers(settings: &Settings, is_connected: bool) -> Vec<Check> {
    // An earlier check reports errors in the files.
    let Ok(reloader) = Reloader::new(settings.tls.clone(), |_| ()) else {
        return Vec::new();
    };
    let budget = Arc::new(Budget::new(settings.budget));
    let connector = connector(settings, reloader.current(), &AgentMetrics::new(), &budget);
    let mut checks = Vec::new();
    for host in &settings.hosts {
        let found = match timeout(LIMIT, connector.session(host)).await {
            Ok(Ok(session)) => greet(host, session).await,
            Ok(Err(error)) => Err(failed(host, &error)),
            Err(_) => Err(Check::broken(
                "server",
                format!("{host}: no TLS session within {} s", LIMIT.as_secs()),
                REACH,
            )),
        };
        match found {
            Ok(check) => {
                checks.push(check);
                // If an agent is connected, the server has accepted it. A second stream with its name would receive
                // dials, so none is opened.
                if !is_connected {
                    checks.push(accepted(&connector, host).await);
                }
            }
            Err(check) => checks.push(check),
        }
    }
    checks
}

const REACH: &str = "check name, address and port (--proxy-server-host, --proxy-server-port), firewalls, NetworkPolicies, and \
                     HTTPS_PROXY in the environment";
const ALPN: &str = "is another program listening there, or does something on the way end TLS? A load balancer must pass TCP on, or \
                    take what --alpn-proto offers";

/// Checks an established TLS session: the server must use HTTP/2. Only at this point does it report that it requires
/// another certificate.
async fn greet(host: &str, mut session: Session) -> Result<Check, Check> {
    let protocol = session.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    if protocol.as_deref() != Some(HTTP2) {
        let chosen = protocol.map_or_else(
            || "no protocol".to_owned(),
            |protocol| String::from_utf8_lossy(&protocol).into_owned(),
        );
        let finding = format!("{host}: by ALPN it chooses {chosen} and not h2");
        return Err(Check::broken("server", finding, ALPN));
    }
    let mut exchange = async || -> io::Result<[u8; 9]> {
        session.write_all(PREFACE).await?;
        session.flush().await?;
        let mut head = [0; 9];
        session.read_exact(&mut head).await?;
        Ok(head)
    };
    match timeout(LIMIT, exchange()).await {
        Ok(Ok(head)) if head[SETTINGS.0] == SETTINGS.1 => {
            let finding =
                format!("{host}: reached, with a certificate of this name, h2 by ALPN, and HTTP/2");
            Ok(Check::ok("server", finding))
        }
        Ok(Ok(_)) => {
            let finding = format!("{host}: it chooses h2 by ALPN and speaks something else");
            Err(Check::broken("server", finding, ALPN))
        }
        Ok(Err(error)) => {
            let finding = format!("{host}: it ends the connection after the handshake: {error}");
            Err(Check::broken(
                "server",
                finding,
                tls_remedy(&error.to_string()),
            ))
        }
        Err(_) => {
            let finding = format!(
                "{host}: silent after the handshake for {} s",
                LIMIT.as_secs()
            );
            Err(Check::broken("server", finding, ALPN))
        }
    }
}

fn failed(host: &str, error: &ConnectError) -> Check {
    let text = chain(error);
    let remedy = match error {
        ConnectError::Tls { .. } => tls_remedy(&text),
        ConnectError::Proxy(_) | ConnectError::Refused { .. } => {
            "HTTPS_PROXY and NO_PROXY in the environment decide about it"
        }
        _ => REACH,
    };
    Check::broken("server", format!("{host}: {text}"), remedy)
}

/// Selects the remedy by rustls' name of the error.
fn tls_remedy(text: &str) -> &'static str {
    for (words, remedy) in [
        (
            &["UnknownIssuer"][..],
            "--ca-cert needs the CA that has signed the server's --cluster-cert, and --proxy-server-port the server's --agent-port \
             and not the port for clients",
        ),
        (
            &["NotValidForName", "not valid for name"],
            "have the server's --cluster-cert issued for this name, or give one of its names by --proxy-server-name; an address \
             needs an IP entry in subjectAltName: as a DNS name it does not count",
        ),
        (
            &["invalid peer certificate: Expired", "certificate expired"],
            "renew the server's --cluster-cert, or set this machine's clock",
        ),
        (
            &["NotValidYet", "not valid yet"],
            "set this machine's clock, or have the server's --cluster-cert issued for an earlier time",
        ),
        (
            &["CertificateRequired"],
            "the server has --cluster-ca-cert: give a certificate with --agent-cert and --agent-key",
        ),
        (
            &[
                "UnknownCA",
                "BadCertificate",
                "DecryptError",
                "CertificateUnknown",
            ],
            "give --agent-cert a certificate that the CA of the server's --cluster-ca-cert has signed, or put the CA of \
             --agent-cert into the server's --cluster-ca-cert",
        ),
        (
            &["CertificateExpired"],
            "renew --agent-cert, or set the server's clock",
        ),
    ] {
        if words.iter().any(|word| text.contains(word)) {
            return remedy;
        }
    }
    "does a konnectivity server listen there, for agents (its --agent-port)?"
}

/// Checks that the server accepts this agent, with its token, its name and its tenant.
async fn accepted(connector: &Connector, host: &str) -> Check {
    let id = "accepted";
    match connector.connect(host).await {
        // The stream is closed immediately.
        Ok(connected) => Check::ok(
            id,
            format!(
                "{host}: server {} takes this agent, and says that there are {} servers",
                connected.link.server_id, connected.count
            ),
        ),
        Err(error) => {
            let remedy = match &error {
                ConnectError::Denied { .. } => {
                    "token: the service account, namespace and audience of the server's flags, and its right to review tokens; \
                     tenants: a rule that holds for this certificate. The server's log has its reason"
                }
                _ => "the server's log has its reason",
            };
            Check::broken(id, format!("{host}: {}", chain(&error)), remedy)
        }
    }
}

async fn leases(counting: &Counting) -> Vec<Check> {
    let (client, mut checks) = match api_server::reach(counting.kubeconfig.as_deref()).await {
        Ok(reached) => reached,
        Err(check) => return vec![check],
    };
    let namespace = counting.namespace.as_str();
    let wanted = ["list", "watch"].map(|verb| Right {
        verb,
        group: "coordination.k8s.io",
        resource: "leases",
        namespace: Some(namespace),
    });
    checks.extend(api_server::rights(&client, &wanted).await);
    let found = api_server::leases(&client, namespace, &counting.selector).await;
    checks.push(match found {
        Ok(0) => Check::warning(
            "leases",
            format!("no server has a valid lease in namespace {namespace} with {}", counting.selector),
            "servers need --enable-lease-controller, and the same --lease-namespace and labels; do the clocks agree?",
        ),
        Ok(count) => Check::ok("leases", format!("{count} servers have a valid lease")),
        Err(check) => check,
    });
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_name_all_possible_causes() {
        for (error, remedies) in [
            (
                "received fatal alert: DecryptError",
                &["give --agent-cert", "into the server's --cluster-ca-cert"][..],
            ),
            (
                "invalid peer certificate: UnknownIssuer",
                &["--ca-cert", "--proxy-server-port"],
            ),
            (
                "invalid peer certificate: certificate not valid for name \"127.0.0.1\"; certificate is only valid for \
                 DnsName(\"127.0.0.1\")",
                &["--proxy-server-name", "IP entry in subjectAltName"],
            ),
        ] {
            let found = tls_remedy(error);
            for remedy in remedies {
                assert!(found.contains(remedy), "{error}: {found}");
            }
        }
    }

    #[test]
    fn claims_are_read_and_nothing_else_is_taken_for_them() {
        let body = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:a:b","exp":1}"#);
        let found = claims(&format!("e30.{body}.c2ln")).unwrap();
        assert_eq!(found["exp"], 1);
        for bad in ["", "a", "a.b.c", "a.!!.c"] {
            assert!(claims(bad).is_none(), "{bad}");
        }
    }
}
