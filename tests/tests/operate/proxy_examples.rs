// SPDX-License-Identifier: Apache-2.0

//! The proxies of `deploy/` in operation: a TLS client in a pod and on the node, the VIP and the ClusterIP, the real
//! HAProxy and the real Envoy with the files of `deploy/`, and an API server beyond the uplink.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::cmd::Process;
use tests::kubeproxy::KubeProxy;
use tests::manifests::{Tool, of_kind, repository};
use tests::node::{self, Node, Topology};
use tests::proxy::{certificate, listening};
use tests::{Family, PORT};

/// The port of the API server in the examples.
const API_PORT: u16 = 6443;

/// The API server that the examples name first, and the ones after it.
const EXAMPLES: [&str; 3] = ["192.0.2.10", "192.0.2.11", "192.0.2.12"];

/// An API server beyond the uplink, which replies to each request with `ok`.
struct ApiServer {
    _process: Process,
    ca: PathBuf,
}

impl ApiServer {
    fn start(node: &Node) -> Result<Self> {
        let (ca, pem) = certificate(node.dir())?;
        let path = node.dir().join("apiserver.cfg");
        let bind = SocketAddr::new(node::gateway_address(Family::V4), API_PORT);
        let text = format!(
            "defaults\n    mode http\n    timeout connect 10s\n    timeout client 60s\n    \
             timeout server 60s\n\
             frontend apiserver\n    bind {bind} ssl crt {}\n    \
             http-request return status 200 content-type text/plain string ok\n",
            pem.display()
        );
        fs::write(&path, text)?;
        let mut command = node.uplink.command("haproxy");
        command.arg("-db").arg("-f").arg(&path);
        let process = listening(node, "apiserver", command, API_PORT, 1)?;
        Ok(Self {
            _process: process,
            ca,
        })
    }
}

/// Replaces the VIP of the examples with this node's, and the API servers with the one in this node's network, twice,
/// and with one that refuses connections.
fn as_on_this_node(text: &str) -> String {
    let ours = node::gateway_address(Family::V4).to_string();
    let refusing = node::uplink_address(Family::V4).to_string();
    let [first, second, third] = EXAMPLES;
    let [vip, our_vip] = [Family::V4.vip_outside(), Family::V4.vip()].map(|vip| vip.to_string());
    text.replace(&vip, &our_vip)
        .replace(first, &ours)
        .replace(second, &ours)
        .replace(third, &refusing)
}

/// Sends requests on every path of the families, several on each: a server that refuses connections must have no
/// effect.
fn everybody_is_served(node: &Node, ca: &Path, families: &[Family]) -> Result<()> {
    for path in node.paths() {
        if !families.contains(&path.family) {
            continue;
        }
        for _ in 0..3 {
            let mut curl = path.netns.command("curl");
            curl.args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "30",
                "--cacert",
            ]);
            curl.arg(ca).arg(format!("https://{}/", path.destination()));
            let answer = tests::cmd::run(&mut curl, "").with_context(|| path.to_string())?;
            ensure!(answer == "ok", "{path}: {answer}");
        }
    }
    Ok(())
}

/// Starts the programs in the order of the pod: the init container, then proxy and agent.
fn serve(node: &Node, families: &[Family], start: impl FnOnce() -> Result<Process>) -> Result<()> {
    KubeProxy::IptablesNft.install(&node.netns)?;
    let api_server = ApiServer::start(node)?;
    let once = node.run_agent(&["--daemon=false"])?;
    ensure!(
        once.status.success(),
        "{}",
        String::from_utf8_lossy(&once.stderr)
    );
    let _proxy = start()?;
    let _agent = node.start_agent(&[])?;
    everybody_is_served(node, &api_server.ca, families)
}

#[test]
fn haproxy_as_kustomize_has_it() {
    Node::test(Topology::Veth, |node| {
        let component = repository().join("deploy/kustomize/components/haproxy");
        let text = fs::read_to_string(component.join("cluster.cfg"))?;
        let cluster = node.dir().join("cluster.cfg");
        fs::write(&cluster, as_on_this_node(&text))?;
        let mut command = node.netns.command("haproxy");
        command
            .arg("-db")
            .arg("-f")
            .arg(component.join("haproxy.cfg"))
            .arg("-f")
            .arg(cluster);
        serve(node, &[Family::V4], || {
            listening(node, "haproxy", command, PORT, 1)
        })
    });
}

#[test]
fn haproxy_as_the_chart_has_it() -> Result<()> {
    let Some(tool) = Tool::find("haproxy_as_the_chart_has_it")? else {
        return Ok(());
    };
    let server = SocketAddr::new(node::gateway_address(Family::V4), API_PORT).to_string();
    let vips = Family::ALL.map(|family| family.vip().to_string());
    let objects = tool.helm(&json!({
        "vips": vips, "proxy": {"enabled": true, "apiServers": [server]},
    }))?;
    let (_, map) = of_kind(&objects, "ConfigMap")
        .find(|(name, _)| name.ends_with("haproxy"))
        .context("no ConfigMap for HAProxy")?;
    Node::test(Topology::Bridge, |node| {
        let mut command = node.netns.command("haproxy");
        command.arg("-db");
        for file in ["haproxy.cfg", "cluster.cfg"] {
            let text = map["data"][file]
                .as_str()
                .context("no such file in the ConfigMap")?;
            let path = node.dir().join(file);
            fs::write(&path, text)?;
            command.arg("-f").arg(path);
        }
        serve(node, &Family::ALL, || {
            listening(node, "haproxy", command, PORT, 2)
        })
    });
    Ok(())
}

#[test]
fn envoy_as_kustomize_has_it() -> Result<()> {
    let Some(tool) = Tool::find("envoy_as_kustomize_has_it")? else {
        return Ok(());
    };
    Node::test(Topology::Veth, |node| {
        let component = repository().join("deploy/kustomize/components/envoy");
        let text = fs::read_to_string(component.join("envoy.yaml"))?;
        let path = node.dir().join("envoy.yaml");
        fs::write(&path, as_on_this_node(&text))?;
        let mut command = node.netns.command(tool.envoy());
        // Envoy runs without a shared memory region, because several may run on this machine.
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ]);
        command.arg("--config-path").arg(path);
        serve(node, &[Family::V4], || {
            listening(node, "envoy", command, PORT, 1)
        })
    });
    Ok(())
}
