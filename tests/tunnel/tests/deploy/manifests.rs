// SPDX-License-Identifier: Apache-2.0

//! The manifests of `deploy/tunnel`: Kubernetes accepts them, the programs accept their flags, and pods have no more
//! rights and no less memory than they need.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::manifests::{Tool, of_kind, repository};
use tests::{cmd, leftovers};
use tunnel_tests::pod::Pod;

use super::site::{chart, kustomize};

/// The oldest Kubernetes with `unhealthyPodEvictionPolicy`, and the newest one whose schemas are available.
const VERSIONS: [&str; 2] = ["1.27", "1.37"];

const DIRECTORIES: [&str; 7] = [
    "agent",
    "agent-daemonset",
    "server",
    "static-pod",
    "rights",
    "example/agent",
    "example/server",
];

/// Further overlays as an operator may write them: a resource and its components.
const OVERLAYS: [(&str, &[&str]); 4] = [
    ("agent-daemonset", &["agent-token", "agent-leases"]),
    ("server", &["server-tokens-and-leases"]),
    ("server", &["server-tenants"]),
    ("static-pod", &["static-pod-metrics"]),
];

/// The kinds of the workloads.
const WORKLOADS: [&str; 3] = ["Deployment", "DaemonSet", "Pod"];

/// The memory that a program needs in addition to `--buffer-budget`, in MiB.
const ROOM: u64 = 96;

/// Returns the sets of values with which the chart is rendered.
fn values() -> [Value; 4] {
    [
        json!({}),
        json!({
            "image": {"registry": "registry.example.com/platform/", "digest": format!("sha256:{}", "0".repeat(64))},
            "imagePullSecrets": [{"name": "registry"}],
            "agent": {
                "servers": ["192.0.2.10", "fd00:a91::2"], "port": 443, "replicas": 3,
                "allowDestinations": ["10.0.0.0/8:10250", "*.example:443"],
                "settings": {"sync-forever": true, "v": 2, "buffer-budget": 64},
                "podLabels": {"team": "network"}, "podAnnotations": {"example.com/a": "b"},
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "edge", "operator": "DoesNotExist"}]}]}}},
            },
            "monitoring": {
                "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
                "prometheusRule": {"enabled": true, "docs": "https://docs.example.com/tunnel/"},
                "dashboard": {"enabled": true},
            },
        }),
        json!({
            "agent": {"enabled": false},
            "server": {
                "enabled": true, "mode": "grpc", "kubeconfigSecret": "api", "priorityClassName": "high",
                "settings": {"proxy-strategies": "destHost,default", "xfr-channel-size": 1_000_000},
                "service": {
                    "type": "LoadBalancer", "loadBalancerClass": "example.com/internal",
                    "annotations": {"example.com/scheme": "internal"},
                },
                "tolerations": [{"key": "node.example.com/edge", "operator": "Exists"}],
            },
            "rights": {"enabled": true, "user": "tunnel"},
            "leases": {"namespace": "leases"},
        }),
        json!({
            "agent": {
                "kind": "DaemonSet", "credentials": "token", "countLeases": true,
                "podDisruptionBudget": {"enabled": false}, "networkPolicy": {"enabled": false},
            },
            "server": {
                "enabled": true, "replicas": 5, "podDisruptionBudget": {"enabled": false},
                "networkPolicy": {"enabled": false},
                "tenants": [{
                    "name": "shoot-a", "agents": [{"certificate": {"organization": "shoot-a"}}],
                    "clients": [{"certificate": {"organization": "shoot-a"}}], "limits": {"agents": 20},
                }],
            },
        }),
    ]
}

/// Returns every rendering with its name.
fn renderings(tool: &Tool) -> Result<Vec<(String, Vec<Value>)>> {
    let mut rendered = Vec::new();
    for directory in DIRECTORIES {
        rendered.push((directory.to_owned(), kustomize(tool, directory)?));
    }
    for (resource, components) in OVERLAYS {
        let name = format!("{resource} with {components:?}");
        rendered.push((name, overlay(tool, resource, components)?));
    }
    for (number, values) in values().iter().enumerate() {
        let name = format!("chart with values {number}");
        rendered.push((name, chart(tool, values)?));
    }
    Ok(rendered)
}

/// Renders an overlay in a copy of the directory, as in an operator's own checkout.
pub fn overlay(tool: &Tool, resource: &str, components: &[&str]) -> Result<Vec<Value>> {
    let top = std::env::temp_dir().join(format!("proxy-agent-tunnel-{}", leftovers::unique_id()?));
    let source = repository().join("deploy/tunnel");
    let components: Vec<String> = components
        .iter()
        .map(|component| format!("../kustomize/components/{component}"))
        .collect();
    let text = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [format!("../kustomize/{resource}")], "components": components,
    });
    let rendered = (|| {
        cmd::run(Command::new("cp").arg("-r").arg(source).arg(&top), "")?;
        fs::create_dir(top.join("own"))?;
        fs::write(top.join("own/kustomization.yaml"), text.to_string())?;
        tool.kustomize(&top.join("own"))
    })();
    let _ = fs::remove_dir_all(&top);
    rendered
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns the workloads among these objects, with their kinds.
fn workloads(objects: &[Value]) -> impl Iterator<Item = (&'static str, &Value)> {
    WORKLOADS
        .into_iter()
        .flat_map(|kind| of_kind(objects, kind).map(move |(_, object)| (kind, object)))
}

/// Returns the pod template of a workload: the object that contains the pod's `spec` and `metadata`.
fn template<'a>(kind: &str, workload: &'a Value) -> &'a Value {
    if kind == "Pod" {
        workload
    } else {
        &workload["spec"]["template"]
    }
}

#[test]
fn every_rendering_is_what_kubernetes_takes() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-schemas")? else {
        return Ok(());
    };
    let rendered = renderings(&tool)?;
    let all: BTreeMap<String, &Value> = rendered
        .iter()
        .flat_map(|(_, objects)| objects)
        .map(|object| (object.to_string(), object))
        .collect();
    let all: Vec<Value> = all.into_values().cloned().collect();
    for version in VERSIONS {
        let faults = tool.validate(version, &all)?;
        ensure!(faults.is_empty(), "Kubernetes {version}: {faults:#?}");
    }
    let mut found = 0;
    for (name, objects) in &rendered {
        for (kind, workload) in workloads(objects) {
            found += 1;
            check_pod(kind, workload, objects).with_context(|| format!("{name}: {kind}"))?;
        }
        check_selectors(objects).with_context(|| name.clone())?;
    }
    ensure!(found > 12, "only {found} workloads");
    Ok(())
}

/// Checks the properties that every pod must have.
fn check_pod(kind: &str, workload: &Value, objects: &[Value]) -> Result<()> {
    let spec = &template(kind, workload)["spec"];
    let container = &spec["containers"][0];
    let pod = &spec["securityContext"];
    ensure!(
        pod["runAsNonRoot"] == true && pod["runAsUser"] == 65532,
        "{pod}"
    );
    ensure!(pod["seccompProfile"]["type"] == "RuntimeDefault", "{pod}");
    let security = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    ensure!(container["securityContext"] == security, "{container:#}");
    ensure!(spec["enableServiceLinks"] == false);

    let arguments: Vec<&str> = list(&container["args"]).filter_map(Value::as_str).collect();
    let value = |flag: &str| {
        let mut values = arguments.iter().filter_map(|argument| {
            let (name, value) = argument.strip_prefix("--")?.split_once('=')?;
            (name == flag).then_some(value)
        });
        values.next_back()
    };
    let budget: u64 = value("buffer-budget")
        .context("no --buffer-budget")?
        .parse()?;
    let limit = container["resources"]["limits"]["memory"].as_str();
    let limit = limit.and_then(|limit| limit.strip_suffix("Mi"));
    let limit: u64 = limit.context("no limit of memory in Mi")?.parse()?;
    ensure!(
        limit >= budget + ROOM,
        "{limit} MiB with a budget of {budget}"
    );
    for kind in ["cpu", "memory"] {
        ensure!(
            container["resources"]["requests"][kind].is_string(),
            "{kind}"
        );
    }

    if kind != "Pod" {
        let counts = arguments.contains(&"--count-server-leases");
        ensure!(
            spec["automountServiceAccountToken"] == counts,
            "{arguments:?}"
        );
        ensure!(container["readinessProbe"]["httpGet"]["path"] == "/readyz");
    }
    ensure!(container["livenessProbe"]["httpGet"]["path"] == "/healthz");
    if let Some(graceful) = value("graceful-shutdown-timeout") {
        let graceful: u64 = graceful.trim_end_matches('s').parse()?;
        let grace = spec["terminationGracePeriodSeconds"].as_u64();
        ensure!(grace.is_some_and(|grace| grace > graceful + 5), "{grace:?}");
    }
    let environment = Pod::of(objects, kind)?.environment("x")?;
    if let Some(count) = environment.get("SERVER_COUNT") {
        ensure!(
            workload["spec"]["replicas"].as_u64() == count.parse().ok(),
            "{count} servers"
        );
        // Otherwise the new server waits for an agent, and the agents wait until an old server exits.
        ensure!(workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0);
    }
    let account = spec["serviceAccountName"].as_str();
    if let Some(account) = account {
        ensure!(of_kind(objects, "ServiceAccount").any(|(name, _)| name == account));
    }
    Ok(())
}

/// Checks that every selector selects the pods of one workload, and that its port is a port of these pods.
fn check_selectors(objects: &[Value]) -> Result<()> {
    let selectors = [
        ("Deployment", "/spec/selector/matchLabels"),
        ("DaemonSet", "/spec/selector/matchLabels"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("Service", "/spec/selector"),
    ];
    for (kind, selector) in selectors {
        for (name, object) in of_kind(objects, kind) {
            let selector = object.pointer(selector).and_then(Value::as_object);
            let selector = selector.with_context(|| format!("{kind} {name} selects nothing"))?;
            let mut templates = workloads(objects).map(|(kind, workload)| template(kind, workload));
            let selected = templates.find(|template| {
                let labels = &template["metadata"]["labels"];
                selector.iter().all(|(key, value)| labels[key] == *value)
            });
            let selected = selected.with_context(|| format!("{kind} {name}: no such pod"))?;
            let ports = list(&object["spec"]["ports"]).map(|port| &port["targetPort"]);
            let allowed = list(&object["spec"]["ingress"]).flat_map(|rule| list(&rule["ports"]));
            for port in ports.chain(allowed.map(|port| &port["port"])) {
                let mut own = list(&selected["spec"]["containers"][0]["ports"]);
                ensure!(
                    own.any(|own| own["name"] == *port),
                    "{kind} {name}: no port {port}"
                );
            }
        }
    }
    for (name, service) in of_kind(objects, "Service") {
        // A server becomes ready when its first agent connects.
        let is_for_agents = service["spec"]["ports"][0]["name"] == "agents";
        let is_early = service["spec"]["publishNotReadyAddresses"] == true;
        ensure!(is_for_agents == is_early, "{name}");
    }
    Ok(())
}

#[test]
fn the_programs_take_their_flags() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-flags")? else {
        return Ok(());
    };
    for (name, objects) in renderings(&tool)? {
        for (kind, _) in workloads(&objects) {
            let pod = Pod::of(&objects, kind)?;
            let arguments = pod.arguments(&pod.environment("x")?)?;
            let mut command = Command::new(pod.program()?);
            // The program prints its help only if it accepts all flags before this one.
            command.args(&arguments).arg("--help");
            cmd::run(&mut command, "").with_context(|| name.clone())?;
            let unknown = arguments.iter().find(|argument| argument.contains("$("));
            ensure!(unknown.is_none(), "{name}: no variable for {unknown:?}");
        }
    }
    Ok(())
}
