// SPDX-License-Identifier: Apache-2.0

//! A stub API server: an HTTP server of these tests that stores leases as kube-apiserver does and
//! responds in its format, also with errors. It validates no schema, and has no RBAC and no
//! storage.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

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
use proxy_tunnel::cluster::{self, lease};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::rig::Scratch;

pub const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
pub const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

type Events = mpsc::UnboundedSender<Value>;

#[derive(Default)]
pub struct State {
    pub version: u64,
    pub leases: BTreeMap<String, Value>,
    pub watches: Vec<Events>,
    /// Whether watches are forbidden.
    pub refuses_watches: bool,
    /// The responses that the next requests receive instead.
    pub failures: VecDeque<(Method, StatusCode, &'static str)>,
    /// The method, path with query, and body of all requests.
    pub requests: Vec<(Method, String, Value)>,
    /// The results of token reviews by token.
    pub tokens: BTreeMap<String, Value>,
}

/// The stub API server.
#[derive(Clone)]
pub struct Stub {
    pub state: Arc<Mutex<State>>,
    pub address: std::net::SocketAddr,
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

/// Returns a `Status` in the format of kube-apiserver's errors.
pub fn failure(code: StatusCode, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{reason} by the stub"), "reason": reason, "code": code.as_u16(),
    })
}

impl Stub {
    pub async fn new() -> Self {
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
                    // Clients may disconnect at any time.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        stub
    }

    /// Writes a kubeconfig, so that reading one is tested too.
    pub fn kubeconfig(&self, scratch: &Scratch) -> PathBuf {
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

    pub async fn client(&self) -> Client {
        let scratch = Scratch::new();
        cluster::connect(Some(&self.kubeconfig(&scratch)))
            .await
            .unwrap()
    }

    pub fn fail(&self, method: Method, code: u16, reason: &'static str) {
        let code = StatusCode::from_u16(code).unwrap();
        self.state
            .lock()
            .unwrap()
            .failures
            .push_back((method, code, reason));
    }

    pub fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().leases.keys().cloned().collect()
    }

    pub fn count(&self, method: &Method, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        let requests = state.requests.iter();
        requests
            .filter(|(of, path, _)| of == method && path.contains(part))
            .count()
    }

    /// Adds a lease as another server would, renewed this number of seconds ago.
    pub fn put(&self, id: &str, seconds: i64) {
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

    pub fn remove(&self, name: &str) -> Option<Value> {
        let mut state = self.state.lock().unwrap();
        let lease = state.leases.remove(name)?;
        let event = json!({"type": "DELETED", "object": lease.clone()});
        state
            .watches
            .retain(|watch| watch.send(event.clone()).is_ok());
        Some(lease)
    }

    /// Breaks all watches, with an error event if there is one.
    pub fn break_watches(&self, error: Option<&Value>) {
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
            (&Method::GET, "") if query.contains("watch=true") => {
                if self.state.lock().unwrap().refuses_watches {
                    let code = StatusCode::FORBIDDEN;
                    return answer(code, &failure(code, "Forbidden"));
                }
                self.watch()
            }
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
