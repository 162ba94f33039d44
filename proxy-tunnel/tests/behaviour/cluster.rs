// SPDX-License-Identifier: Apache-2.0

//! Token reviews and leases, against a stub API server: an HTTP server of this test that keeps leases as
//! kube-apiserver does and answers in its shapes, also with what goes wrong there. It is no API server: it
//! checks no schema, has no RBAC and no storage.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use proxy_tunnel::client::Mode;
use proxy_tunnel::cluster::counting::{Counter, Leases};
use proxy_tunnel::cluster::publishing::Publisher;
use proxy_tunnel::cluster::tokens::{Account, Reviewer};
use proxy_tunnel::cluster::{self, lease};
use proxy_tunnel::metrics::agent::AgentMetrics;
use proxy_tunnel::metrics::server::ServerMetrics;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::peers::Peer;
use super::rig::{Agent, AgentOptions, Options, Rig, Scratch, text, until};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

type Events = mpsc::UnboundedSender<Value>;

#[derive(Default)]
struct State {
    version: u64,
    leases: BTreeMap<String, Value>,
    watches: Vec<Events>,
    /// What the next requests are answered with instead.
    failures: VecDeque<(Method, StatusCode, &'static str)>,
    /// Method, path and query of all requests, and bodies.
    requests: Vec<(Method, String, Value)>,
    /// What reviews say of a token.
    tokens: BTreeMap<String, Value>,
}

/// The stub API server.
#[derive(Clone)]
struct Stub {
    state: Arc<Mutex<State>>,
    address: std::net::SocketAddr,
}

type Body = BoxBody<Bytes, Infallible>;

fn answer(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

/// A `Status` in the shape that kube-apiserver gives errors.
fn failure(code: StatusCode, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{reason} by the stub"), "reason": reason, "code": code.as_u16(),
    })
}

impl Stub {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self {
            state: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let serving = stub.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stub = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let stub = stub.clone();
                        async move { Ok::<_, Infallible>(stub.answer(request).await) }
                    });
                    // Clients leave when they like.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        stub
    }

    /// A kubeconfig, so that reading one is tested too.
    fn kubeconfig(&self, scratch: &Scratch) -> PathBuf {
        let path = scratch.file("kubeconfig");
        let server = format!("http://{}", self.address);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": server}}],
            "users": [{"name": "stub", "user": {"token": "secret"}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        });
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    async fn client(&self) -> Client {
        let scratch = Scratch::new();
        cluster::connect(Some(&self.kubeconfig(&scratch)))
            .await
            .unwrap()
    }

    fn fail(&self, method: Method, code: u16, reason: &'static str) {
        let code = StatusCode::from_u16(code).unwrap();
        self.state
            .lock()
            .unwrap()
            .failures
            .push_back((method, code, reason));
    }

    fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().leases.keys().cloned().collect()
    }

    fn count(&self, method: &Method, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        let requests = state.requests.iter();
        requests
            .filter(|(of, path, _)| of == method && path.contains(part))
            .count()
    }

    /// Puts a lease there as another server would, renewed so many seconds ago.
    fn put(&self, id: &str, seconds: i64) {
        let now = Timestamp::now() - SignedDuration::from_secs(seconds);
        let labels = lease::parse_labels("k8s-app=konnectivity-server").unwrap();
        let lease = serde_json::to_value(lease::renewed(id, &labels, now)).unwrap();
        self.store(&lease::name(id), lease);
    }

    fn store(&self, name: &str, mut lease: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
        lease["metadata"]["namespace"] = json!("kube-system");
        let is_new = state
            .leases
            .insert(name.to_owned(), lease.clone())
            .is_none();
        let kind = if is_new { "ADDED" } else { "MODIFIED" };
        let event = json!({"type": kind, "object": lease.clone()});
        state
            .watches
            .retain(|watch| watch.send(event.clone()).is_ok());
        lease
    }

    fn remove(&self, name: &str) -> Option<Value> {
        let mut state = self.state.lock().unwrap();
        let lease = state.leases.remove(name)?;
        let event = json!({"type": "DELETED", "object": lease.clone()});
        state
            .watches
            .retain(|watch| watch.send(event.clone()).is_ok());
        Some(lease)
    }

    /// Breaks all watches, by an error event if one is given.
    fn break_watches(&self, error: Option<&Value>) {
        let mut state = self.state.lock().unwrap();
        for watch in state.watches.drain(..) {
            if let Some(error) = error {
                let _ = watch.send(json!({"type": "ERROR", "object": error}));
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let body: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        {
            let mut state = self.state.lock().unwrap();
            let line = format!("{path}?{query}");
            state
                .requests
                .push((parts.method.clone(), line, body.clone()));
            if state
                .failures
                .front()
                .is_some_and(|(method, ..)| *method == parts.method)
            {
                let (_, code, reason) = state.failures.pop_front().unwrap();
                return answer(code, &failure(code, reason));
            }
        }
        if path == REVIEWS {
            return self.review(body);
        }
        let name = path
            .strip_prefix(LEASES)
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned();
        match (&parts.method, name.as_str()) {
            (&Method::GET, "") if query.contains("watch=true") => self.watch(),
            (&Method::GET, "") => {
                let state = self.state.lock().unwrap();
                let items: Vec<_> = state.leases.values().cloned().collect();
                let list = json!({
                    "kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1",
                    "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
                });
                answer(StatusCode::OK, &list)
            }
            (&Method::POST, "") => {
                let name = body["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                if self.names().contains(&name) {
                    return answer(
                        StatusCode::CONFLICT,
                        &failure(StatusCode::CONFLICT, "AlreadyExists"),
                    );
                }
                answer(StatusCode::CREATED, &self.store(&name, body))
            }
            (method, name) => self.object(method, name, body),
        }
    }

    fn object(&self, method: &Method, name: &str, body: Value) -> Response<Body> {
        let there = self.state.lock().unwrap().leases.get(name).cloned();
        let Some(there) = there else {
            return answer(
                StatusCode::NOT_FOUND,
                &failure(StatusCode::NOT_FOUND, "NotFound"),
            );
        };
        let version = &there["metadata"]["resourceVersion"];
        let conflict = answer(
            StatusCode::CONFLICT,
            &failure(StatusCode::CONFLICT, "Conflict"),
        );
        match *method {
            Method::GET => answer(StatusCode::OK, &there),
            Method::PUT if body["metadata"]["resourceVersion"] != *version => conflict,
            Method::PUT => answer(StatusCode::OK, &self.store(name, body)),
            Method::DELETE => {
                let wanted = &body["preconditions"]["resourceVersion"];
                if !wanted.is_null() && wanted != version {
                    return conflict;
                }
                self.remove(name);
                let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
                answer(StatusCode::OK, &done)
            }
            _ => answer(StatusCode::METHOD_NOT_ALLOWED, &json!({})),
        }
    }

    fn watch(&self) -> Response<Body> {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Value>();
        self.state.lock().unwrap().watches.push(sender);
        let lines = stream::poll_fn(move |context| {
            receiver
                .poll_recv(context)
                .map(|event| event.map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n"))))))
        });
        Response::new(StreamBody::new(lines).boxed())
    }

    fn review(&self, mut body: Value) -> Response<Body> {
        let token = body["spec"]["token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let state = self.state.lock().unwrap();
        let unknown = json!({"authenticated": false, "error": "invalid bearer token"});
        body["status"] = state.tokens.get(&token).cloned().unwrap_or(unknown);
        answer(StatusCode::CREATED, &body)
    }
}

fn publisher(client: Client, id: &str, metrics: &Arc<ServerMetrics>) -> Publisher {
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
    publisher.delete_expired().await;
    assert_eq!(stub.names(), ["konnectivity-proxy-server-young"]);
    stub.put("old", 100);
    stub.fail(Method::DELETE, 409, "Conflict");
    publisher.delete_expired().await;
    stub.fail(Method::GET, 403, "Forbidden");
    publisher.delete_expired().await;
    let text = text(metrics.registry());
    for line in [
        "culled_leases_count 1",
        "lease_list_total{http_status_code=\"200\",reason=\"\"} 2",
        "lease_list_total{http_status_code=\"403\",reason=\"Forbidden\"} 1",
        "lease_delete_total{http_status_code=\"200\",reason=\"\"} 1",
        "lease_delete_total{http_status_code=\"409\",reason=\"Conflict\"} 1",
        "lease_list_latency_seconds_count{http_status_code=\"200\"} 2",
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

/// Defect 9 of upstream: without permission the agent neither connects nor opens its health port there.
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
    // With permission the leases count.
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

/// A server with token reviews.
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
    assert!(!rig.server.agents.is_ready());
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

/// Defects 8 and 11 of upstream: there an unreadable token ends the agent, and a newline behind it is sent.
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
    publisher.delete_expired().await;
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
