// SPDX-License-Identifier: Apache-2.0

//! Token reviews and leases, against the stub API server of [`super::stub`].

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use jiff::Timestamp;
use kube::Client;
use proxy_tunnel::agent::sync::CountSource;
use proxy_tunnel::client::Mode;
use proxy_tunnel::cluster::counting::{Counter, Leases};
use proxy_tunnel::cluster::publishing::{Publisher, WATCHED};
use proxy_tunnel::cluster::tokens::{Account, Reviewer};
use proxy_tunnel::cluster::{self, lease};
use proxy_tunnel::metrics::agent::AgentMetrics;
use proxy_tunnel::metrics::server::ServerMetrics;
use serde_json::json;
use tokio::net::TcpListener;

use super::peers::Peer;
use super::rig::{Agent, AgentOptions, Options, Rig, Scratch, text, until};
use super::stub::{LEASES, REVIEWS, Stub, failure};

pub fn publisher(client: Client, id: &str, metrics: &Arc<ServerMetrics>) -> Publisher {
    let labels = lease::parse_labels("k8s-app=konnectivity-server").unwrap();
    Publisher::new(
        client,
        "kube-system",
        id.into(),
        labels,
        Arc::clone(metrics),
    )
}

#[tokio::test]
async fn a_lease_is_created_renewed_and_withdrawn() {
    let stub = Stub::new().await;
    let publisher = publisher(stub.client().await, "a", &ServerMetrics::new());
    publisher.renew().await.unwrap();
    assert_eq!(stub.names(), ["konnectivity-proxy-server-a"]);
    let first = stub.state.lock().unwrap().leases["konnectivity-proxy-server-a"].clone();
    assert_eq!(first["spec"]["leaseDurationSeconds"], 30);
    assert_eq!(first["spec"]["holderIdentity"], "a");
    assert_eq!(
        first["metadata"]["labels"]["k8s-app"],
        "konnectivity-server"
    );
    assert!(first["spec"]["acquireTime"].is_null());
    publisher.renew().await.unwrap();
    let second = stub.state.lock().unwrap().leases["konnectivity-proxy-server-a"].clone();
    assert_ne!(first["spec"]["renewTime"], second["spec"]["renewTime"]);
    assert_eq!(stub.count(&Method::POST, LEASES), 1);
    assert_eq!(stub.count(&Method::PUT, LEASES), 1);
    publisher.withdraw().await;
    assert_eq!(stub.names(), Vec::<String>::new());
    publisher.withdraw().await;
}

#[tokio::test]
async fn a_lease_that_others_change_is_written_anew() {
    let stub = Stub::new().await;
    let publisher = publisher(stub.client().await, "a", &ServerMetrics::new());
    stub.fail(Method::POST, 409, "AlreadyExists");
    publisher.renew().await.unwrap();
    stub.fail(Method::PUT, 409, "Conflict");
    stub.fail(Method::PUT, 409, "Conflict");
    publisher.renew().await.unwrap();
    assert_eq!(stub.count(&Method::PUT, LEASES), 3);
    for _ in 0..5 {
        stub.fail(Method::PUT, 409, "Conflict");
    }
    publisher.renew().await.unwrap_err();
    stub.fail(Method::GET, 403, "Forbidden");
    let error = publisher.renew().await.unwrap_err();
    assert!(error.to_string().contains("Forbidden"), "{error}");
}

#[tokio::test]
async fn expired_leases_are_deleted_and_renewed_ones_stay() {
    let stub = Stub::new().await;
    let metrics = ServerMetrics::new();
    let publisher = publisher(stub.client().await, "a", &metrics);
    stub.put("old", 100);
    stub.put("young", 5);
    let now = Instant::now();
    publisher.delete_expired(now).await;
    publisher.delete_expired(now + WATCHED).await;
    assert_eq!(stub.names(), ["konnectivity-proxy-server-young"]);
    stub.put("old", 100);
    publisher.delete_expired(now).await;
    stub.fail(Method::DELETE, 409, "Conflict");
    publisher.delete_expired(now + WATCHED).await;
    stub.fail(Method::GET, 403, "Forbidden");
    publisher.delete_expired(now).await;
    let text = text(metrics.registry());
    for line in [
        "culled_leases_count 1",
        "lease_list_total{http_status_code=\"200\",reason=\"\"} 4",
        "lease_list_total{http_status_code=\"403\",reason=\"Forbidden\"} 1",
        "lease_delete_total{http_status_code=\"200\",reason=\"\"} 1",
        "lease_delete_total{http_status_code=\"409\",reason=\"Conflict\"} 1",
        "lease_list_latency_seconds_count{http_status_code=\"200\"} 4",
    ] {
        assert!(
            text.contains(&format!("konnectivity_network_proxy_server_{line}\n")),
            "{line}: {text}"
        );
    }
}

async fn counter(stub: &Stub) -> (Arc<Leases>, Arc<AgentMetrics>, tokio::task::JoinHandle<()>) {
    let (leases, metrics) = (Arc::new(Leases::default()), AgentMetrics::new());
    let counter = Counter::new(
        stub.client().await,
        "kube-system",
        "k8s-app=konnectivity-server".into(),
        Arc::clone(&metrics),
        Arc::clone(&leases),
    );
    (leases, metrics, tokio::spawn(counter.run()))
}

fn count(leases: &Leases) -> Option<usize> {
    leases.count(Timestamp::now())
}

#[tokio::test]
async fn leases_are_counted_as_they_come_and_go() {
    let stub = Stub::new().await;
    stub.put("a", 0);
    stub.put("expired", 100);
    let (leases, _, task) = counter(&stub).await;
    until("the first list", || count(&leases) == Some(1)).await;
    until("a watch", || !stub.state.lock().unwrap().watches.is_empty()).await;
    stub.put("b", 0);
    stub.put("c", 0);
    until("two more", || count(&leases) == Some(3)).await;
    stub.remove(&lease::name("a"));
    stub.remove(&lease::name("b"));
    until("two fewer", || count(&leases) == Some(1)).await;
    assert_eq!(stub.count(&Method::GET, "limit=500"), 1);
    task.abort();
}

/// Tests both sides of the leases, with a changing number of servers, and an agent that uses the larger one of the
/// number of leases and the number that servers announce.
#[tokio::test]
async fn servers_are_counted_by_the_leases_that_they_keep() {
    let stub = Stub::new().await;
    let metrics = ServerMetrics::new();
    let mut publishers = Vec::new();
    for id in ["a", "b", "c"] {
        publishers.push(publisher(stub.client().await, id, &metrics));
    }
    publishers[0].renew().await.unwrap();
    let (leases, _, task) = counter(&stub).await;
    until("one", || count(&leases) == Some(1)).await;
    let mut options = Options::new(Mode::Grpc);
    options.count = 2;
    let rig = Rig::with(options).await;
    let agent = Agent::with(
        &rig,
        &[rig.agents.port()],
        AgentOptions {
            leases: Some(Arc::clone(&leases)),
            source: CountSource::Max,
            ..AgentOptions::default()
        },
    );
    agent.until_counted("known_server_count 2").await;
    for publisher in &publishers[1..] {
        publisher.renew().await.unwrap();
    }
    until("three", || count(&leases) == Some(3)).await;
    agent.until_counted("known_server_count 3").await;
    for publisher in &publishers[1..] {
        publisher.withdraw().await;
    }
    until("one again", || count(&leases) == Some(1)).await;
    agent.until_counted("known_server_count 2").await;
    task.abort();
}

#[tokio::test]
async fn watches_that_break_are_begun_anew() {
    let stub = Stub::new().await;
    stub.put("a", 0);
    let (leases, _, task) = counter(&stub).await;
    for error in [
        None,
        Some(failure(StatusCode::GONE, "Expired")),
        Some(json!({"nonsense": true})),
    ] {
        until("a watch", || !stub.state.lock().unwrap().watches.is_empty()).await;
        stub.break_watches(error.as_ref());
        let id = format!("new-{}", stub.names().len());
        stub.put(&id, 0);
        let want = stub.names().len();
        until("what came meanwhile", || count(&leases) == Some(want)).await;
    }
    task.abort();
}

/// Thousands of agents would list at the same time.
#[tokio::test]
async fn watches_that_are_refused_are_no_reason_to_list_at_once() {
    let stub = Stub::new().await;
    stub.put("a", 0);
    stub.state.lock().unwrap().refuses_watches = true;
    let (leases, _, task) = counter(&stub).await;
    until("a list", || count(&leases) == Some(1)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lists = stub.count(&Method::GET, "limit=500");
    assert!((2..=5).contains(&lists), "{lists} lists in a second");
    stub.put("b", 0);
    until("the next list", || count(&leases) == Some(2)).await;
    stub.state.lock().unwrap().refuses_watches = false;
    until("a watch", || !stub.state.lock().unwrap().watches.is_empty()).await;
    task.abort();
}

/// Defect 9 of upstream: there, an agent without permission neither connects nor opens its health port.
#[tokio::test]
async fn without_permission_an_agent_goes_by_what_servers_say() {
    let stub = Stub::new().await;
    for _ in 0..3 {
        stub.fail(Method::GET, 403, "Forbidden");
    }
    let (leases, metrics, task) = counter(&stub).await;
    let mut options = Options::new(Mode::Grpc);
    options.count = 1;
    let rig = Rig::with(options).await;
    let agent = Agent::with(
        &rig,
        &[rig.agents.port()],
        AgentOptions {
            leases: Some(Arc::clone(&leases)),
            ..AgentOptions::default()
        },
    );
    agent.until_counted("open_server_connections 1").await;
    until("the refusal is counted", || {
        text(metrics.registry())
            .contains("lease_lists_total{http_response_code=\"403\",reason=\"Forbidden\"}")
    })
    .await;
    assert_eq!(count(&leases), None);
    // With permission, the agent counts leases.
    stub.put("a", 0);
    stub.put("b", 0);
    until("the leases", || count(&leases) == Some(2)).await;
    agent.until_counted("known_server_count 2").await;
    task.abort();
}

fn account() -> Account {
    Account {
        namespace: "kube-system".into(),
        name: "agent".into(),
        audience: "konnectivity".into(),
    }
}

/// Starts a server with token reviews.
async fn reviewing(stub: &Stub) -> Rig {
    let user = |name: &str| json!({"authenticated": true, "user": {"username": name}});
    {
        let mut state = stub.state.lock().unwrap();
        state.tokens.insert(
            "good".into(),
            user("system:serviceaccount:kube-system:agent"),
        );
        state
            .tokens
            .insert("other".into(), user("system:serviceaccount:default:agent"));
    }
    let mut options = Options::new(Mode::Grpc);
    options.reviewer = Some(Reviewer::new(stub.client().await, account()));
    Rig::with(options).await
}

#[tokio::test]
async fn tokens_decide_about_agents() {
    let stub = Stub::new().await;
    let rig = reviewing(&stub).await;
    let refused = async |pairs: super::peers::Pairs<'_>| {
        let mut agent = Peer::agent(&rig, &[&[("agentid", "a")], pairs].concat()).await;
        let status = agent.opened().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unknown);
        status.message().to_owned()
    };
    assert_eq!(
        refused(&[]).await,
        "Authentication context was not found in metadata"
    );
    assert_eq!(
        refused(&[("authorization", "Basic x")]).await,
        "received token does not have \"Bearer \" prefix"
    );
    assert_eq!(
        refused(&[
            ("authorization", "Bearer good"),
            ("authorization", "Bearer x")
        ])
        .await,
        "too many (2) tokens are received"
    );
    assert_eq!(
        refused(&[("authorization", "Bearer bad")]).await,
        "Failed to validate authentication token, err:lookup failed: invalid bearer token"
    );
    assert_eq!(
        refused(&[("authorization", "Bearer other")]).await,
        "Failed to validate authentication token, err:lookup failed: incoming request from \"default\" namespace. \
         Expected \"kube-system\""
    );
    stub.fail(Method::POST, 403, "Forbidden");
    let failed = refused(&[("authorization", "Bearer good")]).await;
    assert!(failed.starts_with(
        "Failed to validate authentication token, err:Failed to authenticate request. err:"
    ));
    assert!(!rig.server.is_ready());
    let mut agent = Peer::agent(&rig, &[("agentid", "a"), ("authorization", "Bearer good")]).await;
    agent.opened().await.unwrap();
    rig.until_ready().await;
    let state = stub.state.lock().unwrap();
    let (_, path, review) = state.requests.last().unwrap();
    assert!(path.starts_with(REVIEWS));
    assert_eq!(
        review["spec"],
        json!({"token": "good", "audiences": ["konnectivity"]})
    );
}

/// Defects 8 and 11 of upstream: there, an unreadable token makes the agent exit, and a trailing newline is sent.
#[tokio::test]
async fn the_agent_reads_its_token_for_each_connection() {
    let stub = Stub::new().await;
    let rig = reviewing(&stub).await;
    let token = rig.scratch.file("token");
    let agent = Agent::with(
        &rig,
        &[rig.agents.port()],
        AgentOptions {
            token: Some(token.clone()),
            ..AgentOptions::default()
        },
    );
    agent
        .until_counted("server_connection_failure_count{direction=\"to_server\"} 2")
        .await;
    fs::write(&token, "old\n").unwrap();
    until("a review", || stub.count(&Method::POST, REVIEWS) > 0).await;
    assert!(!agent.sync.is_connected());
    fs::write(&token, "good\n").unwrap();
    rig.until_ready().await;
    agent.until_counted("open_server_connections 1").await;
    let reviewed = stub
        .state
        .lock()
        .unwrap()
        .requests
        .last()
        .unwrap()
        .2
        .clone();
    assert_eq!(reviewed["spec"]["token"], "good");
}

#[tokio::test]
async fn an_api_server_that_cannot_be_reached_is_an_error_and_no_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let stub = Stub {
        state: Arc::default(),
        address,
    };
    let metrics = ServerMetrics::new();
    let publisher = publisher(stub.client().await, "a", &metrics);
    publisher.renew().await.unwrap_err();
    publisher.delete_expired(Instant::now()).await;
    let text = text(metrics.registry());
    assert!(
        text.contains("lease_list_total{http_status_code=\"0\",reason=\"NoAnswer\"} 1"),
        "{text}"
    );
    tokio::time::timeout(Duration::from_secs(10), publisher.withdraw())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let scratch = Scratch::new();
    let path = scratch.file("kubeconfig");
    let Err(error) = cluster::connect(Some(&path)).await else {
        panic!("there is no file");
    };
    let error = error.to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(error.contains("--kubeconfig"), "{error}");
    fs::write(&path, "nonsense: [").unwrap();
    assert!(cluster::connect(Some(&path)).await.is_err());
}
