// SPDX-License-Identifier: Apache-2.0

//! Servers and agents of `deploy/tunnel` at work: the test starts each variant with its arguments, its environment and
//! the files that it mounts, sends the kubelet's probes, and makes a request through it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::cmd::wait_until;
use tests::http;
use tests::manifests::Tool;
use tunnel_tests::pod::Pod;
use tunnel_tests::tunnel::{AGENT_HEALTH, PATIENCE, TARGET};

use super::site::{SERVER, Site, chart, kustomize};

#[test]
fn a_server_and_an_agent_with_certificates() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-certificates")? else {
        return Ok(());
    };
    let (server, agent) = (kustomize(&tool, "server")?, kustomize(&tool, "agent")?);
    let mut site = Site::new()?;
    let server = Pod::of(&server, "Deployment")?;
    site.start(&server, &Pod::of(&agent, "Deployment")?)?;
    site.request()
}

#[test]
fn a_server_of_several_clusters() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-tenants")? else {
        return Ok(());
    };
    let server = kustomize(&tool, "example/server")?;
    let agent = kustomize(&tool, "agent-daemonset")?;
    let mut site = Site::new()?;
    let server = Pod::of(&server, "Deployment")?;
    site.start(&server, &Pod::of(&agent, "DaemonSet")?)?;
    site.request()?;
    // The other cluster has no agent.
    let other = Site::curl().map(|word| match word {
        "made/shoot-a-kube-apiserver.crt" => "made/shoot-b-kube-apiserver.crt",
        "made/shoot-a-kube-apiserver.key" => "made/shoot-b-kube-apiserver.key",
        word => word,
    });
    let words: Vec<&str> = other.into_iter().chain([TARGET]).collect();
    let output = site.tunnel.run(Path::new("curl"), &words)?;
    ensure!(!output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn the_chart_with_tokens_and_leases() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-chart")? else {
        return Ok(());
    };
    let values = json!({
        "agent": {"kind": "DaemonSet", "credentials": "token", "countLeases": true},
        "server": {
            "enabled": true, "replicas": 1, "kubeconfigSecret": "konnectivity-server-kubeconfig",
            "settings": {"proxy-strategies": "destHost,default"},
        },
    });
    let objects = chart(&tool, &values)?;
    let mut site = Site::new()?;
    let server = Pod::of(&objects, "Deployment")?;
    site.start(&server, &Pod::of(&objects, "DaemonSet")?)?;
    site.request()?;
    let lease = format!("konnectivity-proxy-server-{SERVER}");
    wait_until(PATIENCE, "the server's lease", || {
        let leases = site.api.leases("konnectivity-leases");
        Ok((leases == [lease.clone()]).then_some(()))
    })
    .with_context(|| site.tunnel.logs())
}

#[test]
fn the_static_pod_and_the_example_of_an_agent() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-static-pod")? else {
        return Ok(());
    };
    let server = kustomize(&tool, "static-pod")?;
    let agent = kustomize(&tool, "example/agent")?;
    let mut site = Site::new()?;
    let server = Pod::of(&server, "Pod")?;
    site.start(&server, &Pod::of(&agent, "Deployment")?)?;
    // The example allows the networks of the cluster, and this target is in none of them.
    let refused = site.request_on_socket("socket", "konnectivity.sock");
    ensure!(refused.is_err(), "a target that is not allowed is reached");
    let metrics = http::ask(site.cluster.netns(), AGENT_HEALTH, "/metrics", &[])?.body;
    let counted = "endpoint_dial_failure_total{reason=\"forbidden\"} 1";
    ensure!(metrics.contains(counted), "{metrics}");
    Ok(())
}

#[test]
fn the_static_pod_carries_requests() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-static-pod-requests")? else {
        return Ok(());
    };
    let server = kustomize(&tool, "static-pod")?;
    let agent = chart(&tool, &json!({"agent": {"credentials": "token"}}))?;
    let mut site = Site::new()?;
    let server = Pod::of(&server, "Pod")?;
    site.start(&server, &Pod::of(&agent, "Deployment")?)?;
    site.request_on_socket("socket", "konnectivity.sock")
}
