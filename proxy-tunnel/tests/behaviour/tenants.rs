// SPDX-License-Identifier: Apache-2.0

//! Several tenants on one server: no dial leaves its tenant, whatever peers present, dial and advertise.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proxy_tunnel::client::{Dialer, Endpoint, Mode};
use proxy_tunnel::cluster::tokens::Reviewer;
use proxy_tunnel::flow::Limits;
use proxy_tunnel::server::strategies::Strategy;
use proxy_tunnel::wire::Message;
use rcgen::{DistinguishedName, DnType, SanType};
use rustls::ClientConfig;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;

use super::peers::Peer;
use super::rig::{Options, Rig, Scratch, Target, until};
use super::stub::Stub;

/// The destination in all tenants.
const TARGET: &str = "10.0.0.1:443";

const NO_TENANT: &str = "it belongs to no tenant";

/// The certificate and the SNI of a peer, which select its tenant.
type Way = (&'static str, &'static str);

/// The peers that belong to tenants.
const GOOD: [(&str, Way); 10] = [
    ("tenant-a", ("organization-a", "localhost")),
    ("tenant-a", ("unit-a", "localhost")),
    ("tenant-a", ("name-a", "localhost")),
    ("tenant-a", ("uri-a", "localhost")),
    ("tenant-a", ("shared", "a.tunnel.example")),
    ("tenant-b", ("organization-b", "localhost")),
    ("tenant-b", ("unit-b", "localhost")),
    ("tenant-b", ("name-b", "localhost")),
    ("tenant-b", ("uri-b", "localhost")),
    ("tenant-b", ("shared", "b.tunnel.example")),
];

/// The peers that belong to no tenant, and the reason.
const BAD: [(Way, &str); 6] = [
    // A certificate of the CA without a tenant's name.
    (("client", "localhost"), NO_TENANT),
    // A certificate whose name only resembles another one's.
    (("name-a-longer", "localhost"), NO_TENANT),
    // The right certificate with an SNI of no tenant, and with none of the rule's names.
    (("shared", "c.tunnel.example"), NO_TENANT),
    (("shared", "localhost"), NO_TENANT),
    // A certificate of one tenant with the SNI of the other, where the rule requires both.
    (("strict-a", "b.tunnel.example"), NO_TENANT),
    (
        ("both", "localhost"),
        "it fits the rules of tenants tenant-a and tenant-b",
    ),
];

fn certificates(scratch: &Scratch) {
    let named = |name: &str, fields: &[(DnType, &str)]| {
        scratch.issue(name, |params| {
            params.distinguished_name = DistinguishedName::new();
            for (field, value) in fields {
                params.distinguished_name.push(field.clone(), *value);
            }
        });
    };
    for tenant in ["a", "b"] {
        let text = |start: &str| format!("{start}-{tenant}");
        let organization = text("tenant");
        named(
            &text("organization"),
            &[(DnType::OrganizationName, &organization)],
        );
        named(
            &text("unit"),
            &[(DnType::OrganizationalUnitName, &text("cluster"))],
        );
        let name = format!("konnectivity-7.{tenant}");
        named(&text("name"), &[(DnType::CommonName, &name)]);
        scratch.issue(&text("uri"), |params| {
            let uri = format!("spiffe://{tenant}.example/ns/kube-system/sa/agent");
            let uri = SanType::URI(uri.as_str().try_into().unwrap());
            params.subject_alt_names.push(uri);
        });
    }
    named("shared", &[(DnType::CommonName, "shared")]);
    named("strict-a", &[(DnType::CommonName, "strict-a")]);
    named(
        "name-a-longer",
        &[
            (DnType::CommonName, "konnectivity-7.a.example"),
            (DnType::OrganizationName, "tenant-a/"),
        ],
    );
    // Another tenant's name in another field.
    named(
        "both",
        &[
            (DnType::OrganizationName, "tenant-a"),
            (DnType::OrganizationalUnitName, "cluster-b"),
        ],
    );
}

/// Returns the same rules for agents and clients.
fn rules(limits: &str) -> String {
    let tenant = |tenant: &str, limits: &str| {
        let conditions = format!(
            "
  - certificate: {{organization: tenant-{tenant}}}
  - certificate: {{organizationalUnit: cluster-{tenant}}}
  - certificate: {{commonName: 'konnectivity-*.{tenant}'}}
  - certificate: {{uri: 'spiffe://{tenant}.example/ns/*/sa/agent'}}
  - certificate: {{commonName: shared}}
    serverName: {tenant}.tunnel.example
  - certificate: {{commonName: strict-{tenant}}}
    serverName: {tenant}.tunnel.example"
        );
        format!(
            "
- name: tenant-{tenant}
  agents:{conditions}
  clients:{conditions}
  limits: {{{limits}}}"
        )
    };
    format!("tenants:{}{}\n", tenant("a", limits), tenant("b", ""))
}

async fn rig(mode: Mode, limits: &str, change: impl FnOnce(&mut Options)) -> Rig {
    let scratch = Arc::new(Scratch::new());
    certificates(&scratch);
    let mut options = Options::new(mode);
    options.scratch = Some(scratch);
    options.rules = Some(rules(limits));
    options.strategies = vec![
        Strategy::DestHost,
        Strategy::DefaultRoute,
        Strategy::Default,
    ];
    change(&mut options);
    Rig::with(options).await
}

/// Connects an agent that advertises the destination, and every other kind of identifier.
async fn agent(rig: &Rig, way: Way) -> Peer {
    let claims = "ipv4=10.0.0.1&host=10.0.0.1&host=only-a&default-route=true";
    let pairs = [("agentid", "same"), ("agentidentifiers", claims)];
    Peer::agent_with(rig, way, &pairs).await
}

#[tokio::test]
async fn every_pair() {
    let rig = rig(Mode::Grpc, "", |_| {}).await;
    for (agents, way) in GOOD {
        let mut agent = agent(&rig, way).await;
        agent.opened().await.unwrap();
        for (clients, way) in GOOD {
            for target in [TARGET, "only-a:1", "elsewhere:1"] {
                let mut client = Peer::client_with(&rig, way).await;
                client.dial(7, target);
                if agents == clients {
                    assert_eq!(agent.accept(1).await.address, target);
                }
                let answer = client.answered().await;
                if agents == clients {
                    assert_eq!(answer.error, "", "{way:?}");
                } else {
                    assert_eq!(answer.error, "No agent available", "{way:?}");
                }
            }
        }
        drop(agent);
        until("the agent's end", || rig.server.streams().is_empty()).await;
    }
    // Both tenants have an agent now, with the same name and the same identifiers.
    let mut agents = Vec::new();
    for way in [GOOD[0].1, GOOD[5].1] {
        let mut agent = agent(&rig, way).await;
        agent.opened().await.unwrap();
        agents.push(agent);
    }
    for round in 0..20 {
        for (index, agent) in agents.iter_mut().enumerate() {
            let mut client = Peer::client_with(&rig, GOOD[index * 5 + round % 5].1).await;
            client.dial(7, TARGET);
            agent.accept(i64::try_from(round).unwrap() + 1).await;
            assert_eq!(client.answered().await.error, "");
        }
    }
    for (way, why) in BAD {
        let refused = agent_refused(&rig, way).await;
        assert_eq!(refused, (Code::PermissionDenied, why.to_owned()), "{way:?}");
        let mut client = Peer::client_with(&rig, way).await;
        client.dial(7, TARGET);
        let status = client.next().await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), why);
    }
    // A socket that no rule names.
    let mut client = Peer::client(&rig).await;
    client.dial(7, TARGET);
    assert_eq!(client.next().await.unwrap_err().message(), NO_TENANT);
    for line in [
        "tenant_refusals_total{peer=\"agent\",reason=\"no_tenant\"} 5",
        "tenant_refusals_total{peer=\"agent\",reason=\"several_tenants\"} 1",
        "tenant_refusals_total{peer=\"client\",reason=\"no_tenant\"} 6",
        "tenant_refusals_total{peer=\"client\",reason=\"several_tenants\"} 1",
        "tenants 2",
    ] {
        rig.until_counted(line).await;
    }
}

async fn agent_refused(rig: &Rig, way: Way) -> (Code, String) {
    let status = agent(rig, way).await.opened().await.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// Returns a dialer for HTTP CONNECT with this certificate.
fn dialer(rig: &Rig, certificate: &str) -> Dialer {
    let tls = rig.scratch.client_tls_as(certificate).current();
    let config = Arc::clone(&tls.get().config);
    let endpoint = Endpoint::tls("localhost", rig.tls.port(), config);
    Dialer::new(endpoint, Mode::HttpConnect)
}

#[tokio::test]
async fn clients_without_a_tenant_are_forbidden_to_connect() {
    let rig = rig(Mode::HttpConnect, "", |_| {}).await;
    let mut agent = agent(&rig, GOOD[0].1).await;
    agent.opened().await.unwrap();
    let own = dialer(&rig, "organization-a");
    let (dialed, _) = tokio::join!(own.dial(TARGET), agent.accept(1));
    dialed.unwrap();
    for (certificate, want) in [
        ("organization-b", "No agent available"),
        ("client", "code 403: it belongs to no tenant"),
    ] {
        let error = dialer(&rig, certificate).dial(TARGET).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(want), "{source}");
    }
    let error = rig.dialer().dial(TARGET).await.unwrap_err();
    assert!(format!("{error:?}").contains("403"), "{error:?}");
}

/// Clients of one tenant do not use up the other's connections; refused clients hold a connection only for a short
/// time.
#[tokio::test]
async fn connections_are_those_of_one_tenant() {
    let rig = rig(Mode::HttpConnect, "connections: 2", |_| {}).await;
    let echo = Target::echo().await;
    let refused = async |certificate| {
        let error = dialer(&rig, certificate).dial(&echo).await.unwrap_err();
        anyhow::Error::new(error)
            .chain()
            .last()
            .unwrap()
            .to_string()
    };
    // Without an agent, a dial ends together with its connection.
    assert!(refused("organization-a").await.starts_with("code 500"));
    let tls = rig.scratch.client_tls_as("organization-a").current();
    let mut config = ClientConfig::clone(&tls.get().config);
    config.alpn_protocols.clear();
    let config = Arc::new(config);
    let mut idle = Vec::new();
    for _ in 0..2 {
        let config = Arc::clone(&config);
        let stream = TcpStream::connect(rig.tls).await.unwrap();
        let name = "localhost".to_owned().try_into().unwrap();
        idle.push(
            TlsConnector::from(config)
                .connect(name, stream)
                .await
                .unwrap(),
        );
    }
    rig.until_counted("http_connections 2").await;
    let text = refused("unit-a").await;
    assert_eq!(
        text,
        "code 503: tenant tenant-a: its clients have as many connections as they may (limits.connections: 2)"
    );
    assert!(refused("organization-b").await.starts_with("code 500"));
    let line = "tenant_limited_total{limit=\"connections\",tenant=\"tenant-a\"} 1";
    rig.until_counted(line).await;
    idle.pop();
    rig.until_counted("http_connections 1").await;
    assert!(refused("unit-a").await.starts_with("code 500"));
}

#[tokio::test]
async fn limits_are_those_of_one_tenant() {
    let limits = "agents: 1, tunnels: 3, dialsPerSecond: 5";
    let rig = rig(Mode::Grpc, limits, |_| {}).await;
    let (a, b) = (GOOD[0].1, GOOD[5].1);
    let mut first = agent(&rig, a).await;
    first.opened().await.unwrap();
    let (code, text) = agent_refused(&rig, a).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert_eq!(
        text,
        "tenant tenant-a: it has as many agents as it may (limits.agents: 1)"
    );
    let mut other = agent(&rig, b).await;
    other.opened().await.unwrap();
    let mut second = agent(&rig, b).await;
    second.opened().await.unwrap();
    let mut clients = Vec::new();
    let mut dial = async |agent: &mut Peer, number: i64| {
        let mut client = Peer::client_with(&rig, a).await;
        client.dial(number, TARGET);
        if number <= 3 {
            agent.accept(number).await;
        }
        let answer = client.answered().await.error;
        clients.push(client);
        answer
    };
    for number in 1..=3 {
        assert_eq!(dial(&mut first, number).await, "");
    }
    let reached = "tenant tenant-a: it has as many tunnels as it may (limits.tunnels: 3)";
    assert_eq!(dial(&mut first, 4).await, reached);
    assert_eq!(dial(&mut first, 5).await, reached);
    // On a slow machine, enough time may have passed for the rate to permit one dial.
    let mut is_too_often = false;
    for number in 6..30 {
        is_too_often |= dial(&mut first, number)
            .await
            .contains("limits.dialsPerSecond: 5");
    }
    assert!(is_too_often);
    // The other tenant has none of these limits.
    for number in 1..=10 {
        let mut client = Peer::client_with(&rig, b).await;
        client.dial(number, TARGET);
        other.accept(number).await;
        assert_eq!(client.answered().await.error, "");
    }
    // After connections have ended, new ones are permitted as soon as the rate permits a dial.
    clients.clear();
    rig.until_counted("established_connections 0").await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let mut client = Peer::client_with(&rig, a).await;
    client.dial(99, TARGET);
    first.accept(99).await;
    assert_eq!(client.answered().await.error, "");
    let metrics = rig.metrics();
    for limit in ["agents", "tunnels", "dials"] {
        let line = format!("tenant_limited_total{{limit=\"{limit}\",tenant=\"tenant-a\"}}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("limited_total{limit=\"dials\",tenant=\"tenant-b\"}"));
    rig.until_counted("dial_failure_count{reason=\"tenant\"} 26")
        .await;
}

/// A tenant whose clients do not read uses at most half of the memory; the other tenant's tunnels can still buffer the
/// bytes that they need.
#[tokio::test]
async fn a_noisy_tenant_takes_no_memory_from_another() {
    let rig = rig(Mode::Grpc, "", |options| {
        options.budget = 8 << 20;
        options.limits = Limits {
            stall: Duration::from_mins(1),
            ..Limits::default()
        };
    })
    .await;
    let mut noisy = agent(&rig, GOOD[0].1).await;
    let mut quiet = agent(&rig, GOOD[5].1).await;
    noisy.opened().await.unwrap();
    quiet.opened().await.unwrap();
    let mut clients = Vec::new();
    for number in 1..=10 {
        let mut client = Peer::client_with(&rig, GOOD[0].1).await;
        client.dial(number, TARGET);
        noisy.accept(number).await;
        assert_eq!(client.answered().await.error, "");
        clients.push(client);
    }
    // None of them reads: the server receives more bytes for them than all memory.
    let chunk = Bytes::from(vec![0; 64 << 10]);
    for _ in 0..40 {
        for number in 1..=10 {
            noisy.send(Message::Data(number, chunk.clone()));
        }
    }
    let closed = "tunnels_closed_total{reason=\"budget\"}";
    until("tunnels of the noisy one are closed", || {
        rig.metrics().contains(closed)
    })
    .await;
    let mut client = Peer::client_with(&rig, GOOD[5].1).await;
    client.dial(1, TARGET);
    quiet.accept(1).await;
    assert_eq!(client.answered().await.error, "");
    // This client does not read at first either.
    for _ in 0..16 {
        quiet.send(Message::Data(1, chunk.clone()));
    }
    let mut received = 0;
    while received < 16 * chunk.len() {
        match client.message().await {
            Message::Data(1, data) => received += data.len(),
            other => panic!("{other:?}"),
        }
    }
    let metrics = rig.metrics();
    assert!(metrics.contains("limited_total{limit=\"buffered\",tenant=\"tenant-b\"} 0\n"));
    let line = "tenant_limited_total{limit=\"buffered\",tenant=\"tenant-a\"}";
    assert!(metrics.contains(line), "{metrics}");
}

/// Makes the API server accept these tokens.
fn know_tokens(stub: &Stub) {
    let agent = "system:serviceaccount:kube-system:agent";
    for (token, account, audiences) in [
        ("of-a", agent, json!(["audience-a"])),
        ("of-b", agent, json!(["audience-b"])),
        ("of-both", agent, json!(["audience-a", "audience-b"])),
        ("of-none", agent, json!(["audience-c"])),
        // An API server that does not support audiences.
        ("without", agent, json!([])),
        (
            "elsewhere",
            "system:serviceaccount:default:agent",
            json!(["audience-a"]),
        ),
        (
            "other",
            "system:serviceaccount:kube-system:other",
            json!(["audience-a"]),
        ),
        ("user", "admin", json!(["audience-a"])),
    ] {
        let user = json!({"username": account});
        let status = json!({"authenticated": true, "user": user, "audiences": audiences});
        let mut state = stub.state.lock().unwrap();
        state.tokens.insert(token.into(), status);
    }
}

#[tokio::test]
async fn tokens_of_another_audience_lead_nowhere() {
    let stub = Stub::new().await;
    know_tokens(&stub);
    let mut options = Options::new(Mode::Grpc);
    options.reviewer = Some(Reviewer::of_any(stub.client().await));
    let tenant = |tenant: &str| {
        format!(
            "
- name: tenant-{tenant}
  agents:
  - token: {{audience: audience-{tenant}, namespace: kube-system, serviceAccount: agent}}
  clients:
  - certificate: {{organization: tenant-{tenant}}}"
        )
    };
    options.rules = Some(format!("tenants:{}{}\n", tenant("a"), tenant("b")));
    let scratch = Arc::new(Scratch::new());
    certificates(&scratch);
    options.scratch = Some(scratch);
    let rig = Rig::with(options).await;
    for (token, want) in [
        ("of-none", NO_TENANT),
        ("without", NO_TENANT),
        ("elsewhere", NO_TENANT),
        ("other", NO_TENANT),
        (
            "of-both",
            "it fits the rules of tenants tenant-a and tenant-b",
        ),
        ("user", "unexpected username format"),
        ("unknown", "invalid bearer token"),
    ] {
        let token = format!("Bearer {token}");
        let pairs = [("agentid", "a"), ("authorization", token.as_str())];
        let mut agent = Peer::agent(&rig, &pairs).await;
        let status = agent.opened().await.unwrap_err();
        assert!(status.message().contains(want), "{token}: {status:?}");
    }
    let mut agent = Peer::agent(&rig, &[("agentid", "a")]).await;
    assert_eq!(agent.opened().await.unwrap_err().message(), NO_TENANT);
    for line in [
        "tenant_refusals_total{peer=\"agent\",reason=\"no_tenant\"} 5",
        "tenant_refusals_total{peer=\"agent\",reason=\"several_tenants\"} 1",
        "tenant_refusals_total{peer=\"agent\",reason=\"token\"} 2",
    ] {
        rig.until_counted(line).await;
    }
    let mut agents = Vec::new();
    for token in ["Bearer of-a", "Bearer of-b"] {
        let mut agent = Peer::agent(&rig, &[("agentid", "a"), ("authorization", token)]).await;
        agent.opened().await.unwrap();
        agents.push(agent);
    }
    for (agent, certificate) in agents.iter_mut().zip(["organization-a", "organization-b"]) {
        let mut client = Peer::client_with(&rig, (certificate, "localhost")).await;
        client.dial(1, TARGET);
        agent.accept(1).await;
        assert_eq!(client.answered().await.error, "");
    }
    let state = stub.state.lock().unwrap();
    let (_, _, review) = state.requests.last().unwrap();
    assert_eq!(
        review["spec"]["audiences"],
        json!(["audience-a", "audience-b"])
    );
}
