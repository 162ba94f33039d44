// SPDX-License-Identifier: Apache-2.0

//! The server and its agents: names, identifiers, several streams of one agent, drain, and our agent with a server.

use proxy_tunnel::client::Mode;
use proxy_tunnel::destinations::Destinations;
use proxy_tunnel::server::strategies::Strategy;
use proxy_tunnel::wire::Message;
use tonic::Code;

use super::peers::{Pairs, Peer};
use super::rig::{Agent, AgentOptions, Options, Rig, Target, round_trip, until};

async fn refusal(pairs: Pairs<'_>) -> String {
    let rig = Rig::new(Mode::Grpc).await;
    let mut agent = Peer::agent(&rig, pairs).await;
    let status = agent.opened().await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown);
    assert!(!rig.server.is_ready());
    status.message().to_owned()
}

#[tokio::test]
async fn agents_without_exactly_one_name_are_refused() {
    assert_eq!(
        refusal(&[]).await,
        "expected one agent ID in the context, got []"
    );
    assert_eq!(
        refusal(&[("agentid", "a"), ("agentid", "b")]).await,
        "expected one agent ID in the context, got [a b]"
    );
    let twice = refusal(&[
        ("agentid", "a"),
        ("agentidentifiers", "host=a"),
        ("agentidentifiers", "host=b"),
    ]);
    assert_eq!(
        twice.await,
        "expected at most one set of agent identifiers in the context, got [host=a host=b]"
    );
    let malformed = refusal(&[("agentid", "a"), ("agentidentifiers", "host=%zz")]).await;
    assert!(
        malformed.starts_with("fail to parse url encoded string: "),
        "{malformed}"
    );
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn agents_without_a_certificate_are_refused() {
    let rig = Rig::new(Mode::Grpc).await;
    let stream = tokio::net::TcpStream::connect(rig.agents).await.unwrap();
    let current = rig.scratch.client_tls().current();
    let mut config = rustls::ClientConfig::clone(&current.get().config);
    config.client_auth_cert_resolver = std::sync::Arc::new(NoCertificate);
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let session = connector.connect(name, stream).await;
    // In TLS 1.3 the client receives the rejection with its first read.
    if let Ok(mut session) = session {
        let read = tokio::io::AsyncReadExt::read(&mut session, &mut [0; 64]).await;
        assert!(read.is_err(), "{read:?}");
    }
    assert!(!rig.server.is_ready());
}

#[tokio::test]
async fn identifiers_decide_where_a_dial_goes() {
    let mut options = Options::new(Mode::Grpc);
    options.strategies = vec![Strategy::DestHost, Strategy::DefaultRoute];
    let rig = Rig::with(options).await;
    let mut near = Peer::agent(
        &rig,
        &[("agentid", "near"), ("agentidentifiers", "ipv4=10.0.0.1")],
    )
    .await;
    near.opened().await.unwrap();
    let mut far = Peer::agent(
        &rig,
        &[
            ("agentid", "far"),
            ("agentidentifiers", "default-route=true"),
        ],
    )
    .await;
    far.opened().await.unwrap();
    rig.until_counted("ready_backends{proxy_strategy=\"destHost\"} 1")
        .await;
    rig.until_counted("ready_backends{proxy_strategy=\"defaultRoute\"} 1")
        .await;
    let (one, two) = (Peer::client(&rig).await, Peer::client(&rig).await);
    one.dial(1, "10.0.0.1:80");
    assert_eq!(near.asked().await.address, "10.0.0.1:80");
    two.dial(2, "10.0.0.2:80");
    assert_eq!(far.asked().await.address, "10.0.0.2:80");
}

/// Upstream #888: there, the end of one stream closes the connections of the other.
#[tokio::test]
async fn of_two_streams_of_one_agent_each_has_its_own_connections() {
    let rig = Rig::new(Mode::Grpc).await;
    let mut first = Peer::accepted_agent(&rig).await;
    let mut client = Peer::client(&rig).await;
    client.dial(1, "a:1");
    first.accept(1).await;
    client.answered().await;
    let mut second = Peer::agent(&rig, &[("agentid", "raw")]).await;
    second.opened().await.unwrap();
    until("a second stream", || rig.server.streams().len() == 2).await;
    let mut other = Peer::client(&rig).await;
    first.send(Message::Drain);
    until("the drain", || {
        rig.server
            .streams()
            .iter()
            .any(|stream| stream.is_draining())
    })
    .await;
    other.dial(2, "b:1");
    second.accept(1).await;
    other.answered().await;
    drop(second);
    let Message::CloseResponse(closed) = other.message().await else {
        panic!("no close");
    };
    assert!(!closed.error.is_empty());
    first.send(Message::Data(1, bytes::Bytes::from_static(b"x")));
    assert_eq!(
        client.message().await,
        Message::Data(1, bytes::Bytes::from_static(b"x"))
    );
}

/// Upstream #900: there, a random choice sends a slow agent as many dials as the others.
#[tokio::test]
async fn a_slow_agent_of_three_gets_fewer_dials() {
    let rig = Rig::new(Mode::Grpc).await;
    let mut agents = Vec::new();
    for id in ["slow", "one", "two"] {
        let mut agent = Peer::agent(&rig, &[("agentid", id)]).await;
        agent.opened().await.unwrap();
        agents.push(agent);
    }
    until("three agents", || rig.server.streams().len() == 3).await;
    let mut slow = agents.remove(0);
    for mut agent in agents {
        tokio::spawn(async move {
            for number in 1.. {
                agent.accept(number).await;
            }
        });
    }
    let mut clients = Vec::new();
    let mut unanswered = 0;
    for number in 1..=60 {
        let mut client = Peer::client(&rig).await;
        client.dial(number, "a:1");
        tokio::select! {
            _ = client.answered() => {}
            _ = slow.asked() => unanswered += 1,
        }
        clients.push(client);
    }
    assert!(unanswered <= 3, "{unanswered} of 60 dials went to it");
}

/// Upstream #893: there, an idle stream never sends a drain packet.
#[tokio::test]
async fn an_idle_agent_drains_at_once_and_serves_on() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    let echo = Target::echo().await;
    let mut tunnel = rig.dialer().dial(&echo).await.unwrap();
    agent.sync.drain();
    until("the drain", || {
        rig.server
            .streams()
            .iter()
            .all(|stream| stream.is_draining())
    })
    .await;
    round_trip(&mut tunnel, b"still here").await;
    // It is the only agent, so the server still uses it.
    round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"x").await;
}

#[tokio::test]
async fn an_agent_with_an_identifier_is_found_by_it() {
    let mut options = Options::new(Mode::HttpConnect);
    options.strategies = vec![Strategy::DestHost];
    let rig = Rig::with(options).await;
    let echo = Target::echo().await;
    let _agent = Agent::with(
        &rig,
        &[rig.agents.port()],
        AgentOptions {
            identifiers: "ipv4=127.0.0.1&host=x%2Dy",
            ..AgentOptions::default()
        },
    );
    rig.until_ready().await;
    round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"x").await;
    let port = echo.rsplit(':').next().unwrap();
    let elsewhere = rig
        .dialer()
        .dial(&format!("localhost:{port}"))
        .await
        .unwrap_err();
    assert!(
        format!("{elsewhere:?}").contains("No agent available"),
        "{elsewhere:?}"
    );
}

#[tokio::test]
async fn an_agent_connects_to_nothing_that_its_flag_does_not_allow() {
    for mode in [Mode::Grpc, Mode::HttpConnect] {
        let rig = Rig::new(mode).await;
        let (echo, other) = (Target::echo().await, Target::echo().await);
        let allowed = Destinations::new(vec![echo.parse().unwrap()]);
        let options = AgentOptions {
            allowed,
            ..AgentOptions::default()
        };
        let agent = Agent::with(&rig, &[rig.agents.port()], options);
        rig.until_ready().await;
        round_trip(&mut rig.dialer().dial(&echo).await.unwrap(), b"x").await;
        let error = rig.dialer().dial(&other).await.unwrap_err();
        let want = format!(
            "dial tcp {other}: connect: permission denied: not among the agent's --allow-destination"
        );
        assert!(format!("{error:?}").contains(&want), "{error:?}");
        let counted = "endpoint_dial_failure_total{reason=\"forbidden\"} 1";
        agent.until_counted(counted).await;
    }
}

#[tokio::test]
async fn agents_metrics() {
    let (rig, agent) = Rig::with_agent(Options::new(Mode::Grpc)).await;
    agent.until_counted("open_server_connections 1").await;
    agent.until_counted("known_server_count 1").await;
    let echo = Target::echo().await;
    let tunnel = rig.dialer().dial(&echo).await.unwrap();
    agent.until_counted("open_endpoint_connections 1").await;
    drop(tunnel);
    agent.until_counted("open_endpoint_connections 0").await;
    rig.dialer().dial("127.0.0.1:1").await.unwrap_err();
    agent
        .until_counted("endpoint_dial_failure_total{reason=\"unknown\"} 1")
        .await;
    let text = agent.metrics();
    for family in [
        "# HELP konnectivity_network_proxy_agent_endpoint_dial_failure_total Number of failures dialing the remote \
         endpoint, by reason (example: timeout).\n",
        "# HELP konnectivity_network_proxy_agent_open_endpoint_connections Current number of open endpoint \
         connections.\n",
    ] {
        assert!(text.contains(family), "{text}");
    }
}
