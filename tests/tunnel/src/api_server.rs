// SPDX-License-Identifier: Apache-2.0

//! A stub of the API server for programs under test: it serves token reviews and leases in kube-apiserver's format,
//! over plain HTTP. It has no RBAC; instead it records each client's requests, which a test compares with the rights in
//! `deploy/`. It replies to requests of `doctor` without recording them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::cmd;
use tests::netns::Netns;

/// The prefix of the paths of leases; the namespace follows.
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// The path of access reviews, which report whether the user has a right.
const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// A client's request, in the terms of RBAC.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The user: the token of the client's kubeconfig.
    pub user: String,
    /// The API group, as in a rule's `apiGroups`.
    pub group: String,
    /// The resource, as in a rule's `resources`.
    pub resource: String,
    /// The namespace; empty for objects without one.
    pub namespace: String,
    /// The verb, as in a rule's `verbs`.
    pub verb: String,
}

#[derive(Debug, Default)]
struct State {
    asked: BTreeSet<Asked>,
    version: u64,
    /// The leases by namespace and name.
    leases: BTreeMap<(String, String), Value>,
    /// The names of users by token.
    users: BTreeMap<String, String>,
    /// The verbs that are denied to every client.
    denied: BTreeSet<String>,
    /// The number of seconds by which the stub's clock is ahead.
    ahead: i64,
}

/// The stub; it serves until this process exits.
#[derive(Debug, Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl ApiServer {
    /// Starts a stub that listens on an address of a namespace.
    ///
    /// # Errors
    /// Returns an error if it cannot listen.
    pub fn start(netns: &Netns) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)));
        let listener = listener.context("listening as the API server")?;
        let server = Self {
            state: Arc::default(),
            address: listener.local_addr()?,
        };
        let serving = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let server = serving.clone();
                // Clients may disconnect at any time.
                thread::spawn(move || server.serve(&stream).ok());
            }
        });
        Ok(server)
    }

    /// Writes a kubeconfig of this user, with which a client reaches the stub at this host.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn kubeconfig(&self, path: &Path, user: &str, host: &str) -> Result<()> {
        let server = format!("http://{host}:{}", self.address.port());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": server}}],
            "users": [{"name": "stub", "user": {"token": user}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        });
        fs::write(path, config.to_string()).with_context(|| format!("writing {}", path.display()))
    }

    /// Makes token reviews report that this token belongs to this user.
    pub fn accept(&self, token: &str, user: &str) {
        let users = &mut self.state().users;
        users.insert(token.to_owned(), user.to_owned());
    }

    /// Denies this verb to every client from now on.
    pub fn deny(&self, verb: &str) {
        self.state().denied.insert(verb.to_owned());
    }

    /// Sets the stub's clock this number of seconds ahead.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.state().ahead = seconds;
    }

    /// Adds a lease that expired long ago.
    pub fn put_expired_lease(&self, namespace: &str, name: &str) {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "labels": {"k8s-app": "konnectivity-server"}},
            "spec": {
                "holderIdentity": name, "leaseDurationSeconds": 30, "renewTime": "2020-01-01T00:00:00.000000Z",
            },
        });
        self.state().put(namespace, name, lease);
    }

    /// Returns the names of the leases of a namespace.
    #[must_use]
    pub fn leases(&self, namespace: &str) -> Vec<String> {
        let state = self.state();
        let names = state.leases.keys().filter(|(of, _)| of == namespace);
        names.map(|(_, name)| name.clone()).collect()
    }

    /// Returns all requests that have been received.
    #[must_use]
    pub fn asked(&self) -> BTreeSet<Asked> {
        self.state().asked.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: &TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ');
        let (method, target) = (
            words.next().unwrap_or_default().to_owned(),
            words.next().unwrap_or_default().to_owned(),
        );
        let (mut length, mut user) = (0, String::new());
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse()?,
                "authorization" => value
                    .trim()
                    .trim_start_matches("Bearer ")
                    .clone_into(&mut user),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if query.contains("watch=true") {
            self.state().note(&user, path, "watch");
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
            stream.write_all(head.as_bytes())?;
            // No event is sent while a client watches.
            thread::park();
        }
        let (code, answer) = self.state().answer(&user, &method, path, body);
        let date = date(self.state().ahead)?;
        let answer = answer.to_string();
        let length = answer.len();
        write!(
            stream,
            "HTTP/1.1 {code} Stub\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{answer}"
        )?;
        Ok(())
    }
}

impl State {
    fn note(&mut self, user: &str, path: &str, verb: &str) {
        let rest = path.strip_prefix(LEASES);
        let (group, resource, namespace) = match rest.and_then(|rest| rest.split_once('/')) {
            Some((namespace, _)) => ("coordination.k8s.io", "leases", namespace),
            None if path == REVIEWS => ("authentication.k8s.io", "tokenreviews", ""),
            // No RBAC rule permits this path.
            None => ("", path, ""),
        };
        self.asked.insert(Asked {
            user: user.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            verb: verb.to_owned(),
        });
    }

    fn put(&mut self, namespace: &str, name: &str, mut lease: Value) -> Value {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        lease["metadata"]["namespace"] = json!(namespace);
        let key = (namespace.to_owned(), name.to_owned());
        self.leases.insert(key, lease.clone());
        lease
    }

    fn answer(&mut self, user: &str, method: &str, path: &str, mut body: Value) -> (u16, Value) {
        if path == "/version" {
            return (200, json!({"major": "1", "minor": "37"}));
        }
        if path == ACCESS {
            let verb = body.pointer("/spec/resourceAttributes/verb");
            let verb = verb.and_then(Value::as_str).unwrap_or_default();
            body["status"] = json!({"allowed": !self.denied.contains(verb)});
            return (201, body);
        }
        let rest = path.strip_prefix(LEASES).unwrap_or_default();
        let (namespace, rest) = rest.split_once('/').unwrap_or_default();
        let name = rest.trim_start_matches("leases").trim_start_matches('/');
        let verb = match (method, name) {
            ("GET", "") => "list",
            ("GET", _) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("DELETE", _) => "delete",
            _ => method,
        };
        self.note(user, path, verb);
        if path == REVIEWS {
            return (201, self.review(body));
        }
        let key = (namespace.to_owned(), name.to_owned());
        match (verb, self.leases.get(&key).cloned()) {
            ("list", _) => {
                let own = self.leases.iter().filter(|((of, _), _)| of == namespace);
                let items: Vec<&Value> = own.map(|(_, lease)| lease).collect();
                let list = json!({
                    "kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1",
                    "metadata": {"resourceVersion": self.version.to_string()}, "items": items,
                });
                (200, list)
            }
            ("create", _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let name = name.to_owned();
                (201, self.put(namespace, &name, body))
            }
            ("get", Some(lease)) => (200, lease),
            ("update", Some(_)) => (200, self.put(namespace, name, body)),
            ("delete", Some(_)) => {
                self.leases.remove(&key);
                (200, status(200, "Success"))
            }
            _ => (404, status(404, "NotFound")),
        }
    }

    fn review(&self, mut body: Value) -> Value {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        body["status"] = match self.users.get(token) {
            Some(user) => json!({
                "authenticated": true, "user": {"username": user}, "audiences": body["spec"]["audiences"],
            }),
            None => json!({"authenticated": false, "error": "invalid bearer token"}),
        };
        body
    }
}

/// Returns the time in the format of a `Date` header.
fn date(ahead: i64) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let at = format!("--date=@{}", i64::try_from(now)? + ahead);
    let mut command = Command::new("date");
    command.args(["--utc", &at, "+%a, %d %b %Y %H:%M:%S GMT"]);
    let date = cmd::run(command.env("LC_ALL", "C"), "")?;
    Ok(date.trim().to_owned())
}

fn status(code: u16, reason: &str) -> Value {
    let outcome = if code == 200 { "Success" } else { "Failure" };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome, "reason": reason, "code": code,
        "message": format!("{reason} by the stub"),
    })
}
