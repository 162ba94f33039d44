// SPDX-License-Identifier: Apache-2.0

//! The pods of upstream's examples for kind, in which only the image is replaced: the test contains the flags that
//! these examples pass to their programs, with one server and with several. Server and agent start with these flags,
//! connect, carry a request, and stay below the memory limit of upstream's agent.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tunnel_tests::pod::Pod;

use super::site::{AGENT, SERVER, Site};

const HOME: &str = "/etc/srv/kubernetes";
const NAME: &str = "konnectivity-server.kube-system.svc.cluster.local";
const AUTHORITY: &str = "--ca-cert=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// The agent's memory limit in these examples, in KiB.
const LIMIT: u64 = 30 * 1024;

fn mount(name: &str, path: &str, kind: &str) -> (Value, Value) {
    (
        json!({"name": name, "mountPath": path}),
        json!({"name": name, "hostPath": {"path": path, "type": kind}}),
    )
}

fn daemon_set(container: &Value, volumes: &[Value]) -> [Value; 1] {
    [json!({
        "kind": "DaemonSet", "metadata": {"name": "konnectivity"},
        "spec": {"template": {"spec": {"containers": [container], "volumes": volumes}}},
    })]
}

fn server(further: &[&str]) -> [Value; 1] {
    let own = [
        "--log-file=/var/log/konnectivity-server.log".to_owned(),
        "--logtostderr=true".to_owned(),
        "--log-file-max-size=0".to_owned(),
        format!("--uds-name={HOME}/konnectivity-server/konnectivity-server.socket"),
        format!("--cluster-cert={HOME}/pki/apiserver.crt"),
        format!("--cluster-key={HOME}/pki/apiserver.key"),
        "--server-port=0".to_owned(),
        "--agent-port=8091".to_owned(),
        "--health-port=8092".to_owned(),
        "--admin-port=8093".to_owned(),
        "--keepalive-time=1h".to_owned(),
        "--mode=grpc".to_owned(),
        "--agent-namespace=kube-system".to_owned(),
        "--agent-service-account=konnectivity-agent".to_owned(),
        format!("--kubeconfig={HOME}/admin.conf"),
        "--authentication-audience=system:konnectivity-server".to_owned(),
    ];
    let further = further.iter().map(|flag| (*flag).to_owned());
    let (mounts, volumes) = [
        mount("log", "/var/log/konnectivity-server.log", "FileOrCreate"),
        mount("pki", &format!("{HOME}/pki"), "DirectoryOrCreate"),
        mount("kubeconfig", &format!("{HOME}/admin.conf"), "FileOrCreate"),
        mount(
            "home",
            &format!("{HOME}/konnectivity-server"),
            "DirectoryOrCreate",
        ),
    ]
    .into_iter()
    .unzip::<_, _, Vec<_>, Vec<_>>();
    let flags: Vec<String> = own.into_iter().chain(further).collect();
    let container = json!({
        "command": ["/proxy-server"], "args": flags,
        "livenessProbe": {"httpGet": {"host": "127.0.0.1", "port": 8092, "path": "/healthz"}},
        "volumeMounts": mounts,
    });
    daemon_set(&container, &volumes)
}

fn agent(further: &[&str]) -> [Value; 1] {
    let name = format!("--proxy-server-host={NAME}");
    let own = [
        "--logtostderr=true",
        AUTHORITY,
        &name,
        "--proxy-server-port=8091",
        "--sync-interval=5s",
        "--sync-interval-cap=30s",
        "--probe-interval=5s",
        "--service-account-token-path=/var/run/secrets/tokens/konnectivity-agent-token",
        "--agent-identifiers=ipv4=$(HOST_IP)",
    ];
    let flags = [&own, further].concat();
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let container = json!({
        "command": ["/proxy-agent"], "args": flags,
        "env": [
            {"name": "POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "HOST_IP", "valueFrom": field("status.hostIP")},
        ],
        "livenessProbe": {"httpGet": {"port": 8093, "path": "/healthz"}},
        "readinessProbe": {"httpGet": {"port": 8093, "path": "/readyz"}},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/tokens"}],
    });
    let source = json!({"serviceAccountToken": {
        "path": "konnectivity-agent-token", "audience": "system:konnectivity-server",
    }});
    let volume = json!({"name": "token", "projected": {"sources": [source]}});
    daemon_set(&container, &[volume])
}

fn works(servers_flags: &[&str], agents_flags: &[&str]) -> Result<()> {
    let mut site = Site::new()?;
    let made = site.tunnel.dir().join("made");
    let around = &mut site.around;
    let pki = [
        ("apiserver.crt", made.join("server-for-agents.crt")),
        ("apiserver.key", made.join("server-for-agents.key")),
    ];
    around.add(&format!("{HOME}/pki"), &pki);
    around.add(&format!("{HOME}/konnectivity-server"), &[]);
    let kubeconfig = [("admin.conf", made.join("kubeconfig"))];
    around.add(&format!("{HOME}/admin.conf"), &kubeconfig);
    around.add("/var/log/konnectivity-server.log", &[]);
    // Replacements for volumes that every pod has, and for a name that no DNS server resolves here.
    let authority = format!("--ca-cert={}", made.join("agents-ca.crt").display());
    around.instead = vec![
        (AUTHORITY.to_owned(), vec![authority]),
        (
            format!("--proxy-server-host={NAME}"),
            vec![
                format!("--proxy-server-host={}", site.cluster.server()),
                format!("--proxy-server-name={NAME}"),
            ],
        ),
    ];
    let (server, agent) = (server(servers_flags), agent(agents_flags));
    let server = Pod::of(&server, "DaemonSet")?;
    site.start(&server, &Pod::of(&agent, "DaemonSet")?)?;
    site.request_on_socket("home", "konnectivity-server.socket")?;
    ensure!(site.tunnel.pid(SERVER).is_some(), "no server");
    let pid = site.tunnel.pid(AGENT).context("no agent")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most = most.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let most: u64 = most.with_context(|| status.clone())?.parse()?;
    ensure!(most < LIMIT, "the agent took {most} KiB");
    Ok(())
}

#[test]
fn the_pods_for_kind() -> Result<()> {
    works(&[], &[])
}

#[test]
fn the_pods_for_kind_with_several_servers() -> Result<()> {
    let server = ["--delete-existing-uds-file", "--server-count=2"];
    works(&server, &["--sync-forever"])
}
