// SPDX-License-Identifier: Apache-2.0

//! The rendered files of `deploy/`: Kubernetes accepts them, the agent accepts its flags, and kustomize and Helm render
//! the same objects.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::manifests::{Tool, VERSIONS, flags_and_variables, of_kind, repository};
use tests::node::Node;
use tests::{cmd, leftovers};

/// An overlay as an operator may write it, besides those of `deploy/`.
const OWN: &str = "
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../net-admin]
components: [../components/envoy, ../components/monitoring]
";

/// The sets of values with which the chart is rendered.
fn values() -> [Value; 4] {
    [
        json!({}),
        json!({
            "vips": ["169.254.20.2", "fd00:a91::2"],
            "ports": [443, 8443],
            "settings": {"service-address": "auto", "v": 4, "interface": "apiserver-proxy"},
            "image": {"registry": "registry.example.com/platform/", "tag": "0.1.0-rc1"},
            "listen": {"at": "node", "port": 9500, "ipv6": true},
            "proxy": {"enabled": true, "apiServers": ["192.0.2.10:6443", "[2001:db8::1]:6443"]},
            "monitoring": {
                "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
                "prometheusRule": {"enabled": true, "docs": "https://docs.example.com/proxy-agent/"},
                "dashboard": {"enabled": true},
            },
        }),
        json!({
            "security": "net-admin",
            "listen": {"port": 9500},
            "imagePullSecrets": [{"name": "registry"}],
            "image": {"digest": format!("sha256:{}", "0".repeat(64))},
            "podLabels": {"team": "network"},
            "podAnnotations": {"example.com/a": "b"},
        }),
        json!({
            "settings": {"backend": "nftables", "cleanup": true, "sync-interval": "30s"},
            "tolerations": [{"key": "node.example.com/edge", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "edge", "operator": "DoesNotExist"}]}]}}},
        }),
    ]
}

/// Returns every rendering with its name.
fn renderings(tool: &Tool) -> Result<Vec<(String, Vec<Value>)>> {
    let top = std::env::temp_dir().join(format!("proxy-agent-deploy-{}", leftovers::unique_id()?));
    let copied = copy_with_own_overlay(&top);
    let rendered = copied.and_then(|()| {
        let overlays = ["base", "net-admin", "example", "own"].into_iter();
        overlays
            .map(|overlay| Ok((overlay.to_owned(), tool.kustomize(&top.join(overlay))?)))
            .collect::<Result<Vec<_>>>()
    });
    let _ = fs::remove_dir_all(&top);
    let mut rendered = rendered?;
    for (number, values) in values().iter().enumerate() {
        rendered.push((format!("chart with values {number}"), tool.helm(values)?));
    }
    Ok(rendered)
}

/// Creates a copy of `deploy/kustomize`, in which a new overlay can be added beside those of the project.
fn copy_with_own_overlay(top: &Path) -> Result<()> {
    let source = repository().join("deploy/kustomize");
    cmd::run(Command::new("cp").arg("-r").arg(source).arg(top), "")?;
    fs::create_dir(top.join("own"))?;
    Ok(fs::write(top.join("own/kustomization.yaml"), OWN)?)
}

#[test]
fn every_rendering_is_what_kubernetes_takes() -> Result<()> {
    let Some(tool) = Tool::find("every_rendering_is_what_kubernetes_takes")? else {
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
    // The validator must find an error in this object.
    let mut wrong = all[..1].to_vec();
    wrong[0]["metadata"]["nam"] = json!("x");
    ensure!(
        !tool.validate(VERSIONS[1], &wrong)?.is_empty(),
        "an unknown field is valid"
    );
    for (name, objects) in &rendered {
        let (_, daemon_set) = of_kind(objects, "DaemonSet")
            .next()
            .context("no DaemonSet")?;
        check_pod(&daemon_set["spec"]["template"]["spec"]).with_context(|| name.clone())?;
        check_references(objects, daemon_set).with_context(|| name.clone())?;
    }
    Ok(())
}

/// Checks the properties that every variant must have.
fn check_pod(pod: &Value) -> Result<()> {
    ensure!(pod["hostNetwork"] == true, "not on the node's network");
    ensure!(pod["priorityClassName"] == "system-node-critical");
    ensure!(pod["automountServiceAccountToken"] == false);
    ensure!(pod["initContainers"][0]["args"] == json!(["--daemon=false"]));
    let agent = &pod["containers"][0];
    let is_privileged = agent["securityContext"]["privileged"] == true;
    for container in [&pod["initContainers"][0], agent] {
        let security = &container["securityContext"];
        ensure!(security["readOnlyRootFilesystem"] == true);
        ensure!(container["command"] == json!(["/usr/bin/proxy-agent"]));
        ensure!(container["image"] == agent["image"]);
        if is_privileged {
            continue;
        }
        ensure!(security["capabilities"] == json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
        ensure!(security["seccompProfile"]["type"] == "RuntimeDefault");
        ensure!(security["allowPrivilegeEscalation"] == false);
    }
    for mount in agent["volumeMounts"].as_array().context("no mounts")? {
        let of_privileged = mount["name"] == "bpffs" || mount["name"] == "cgroup";
        ensure!(
            is_privileged || !of_privileged,
            "{mount}: of no use with NET_ADMIN alone"
        );
    }
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &agent[probe]["httpGet"];
        ensure!(get["path"] == path, "{probe}: {get}");
        ensure!(
            get["port"] == agent["ports"][0]["containerPort"],
            "{probe}: {get}"
        );
        // Both listen either on loopback or on the node's address.
        let listens_on_node = agent["env"]
            .as_array()
            .is_some_and(|env| env.iter().any(|variable| variable["name"] == "NODE_IP"));
        ensure!(listens_on_node == get["host"].is_null(), "{probe}: {get}");
    }
    Ok(())
}

/// Checks that every object that the pod mounts and reads exists.
fn check_references(objects: &[Value], daemon_set: &Value) -> Result<()> {
    let template = &daemon_set["spec"]["template"];
    let pod = &template["spec"];
    let maps: Vec<&str> = of_kind(objects, "ConfigMap")
        .map(|(name, _)| name)
        .collect();
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    for volume in volumes {
        if let Some(name) = volume["configMap"]["name"].as_str() {
            ensure!(maps.contains(&name), "no ConfigMap {name} among {maps:?}");
        }
    }
    for container in containers(pod) {
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            ensure!(
                volumes.iter().any(|volume| volume["name"] == mount["name"]),
                "no volume for {mount}"
            );
        }
        for source in container["envFrom"].as_array().into_iter().flatten() {
            let name = source["configMapRef"]["name"].as_str().context("no name")?;
            ensure!(maps.contains(&name), "no ConfigMap {name} among {maps:?}");
        }
    }
    let accounts: Vec<&str> = of_kind(objects, "ServiceAccount")
        .map(|(name, _)| name)
        .collect();
    ensure!(
        accounts
            .iter()
            .any(|name| pod["serviceAccountName"] == *name)
    );
    let selected = daemon_set["spec"]["selector"]["matchLabels"].as_object();
    for (key, value) in selected.context("no selector")? {
        ensure!(
            template["metadata"]["labels"][key] == *value,
            "the selector misses the pod"
        );
    }
    Ok(())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod[list].as_array().into_iter().flatten())
}

/// The settings of a container that runs the agent.
struct Invocation {
    environment: BTreeMap<String, String>,
    words: Vec<String>,
}

/// Returns the settings of the init container and of the agent.
fn invocations(objects: &[Value]) -> Result<Vec<Invocation>> {
    let (_, daemon_set) = of_kind(objects, "DaemonSet")
        .next()
        .context("no DaemonSet")?;
    let mut found = Vec::new();
    for container in containers(&daemon_set["spec"]["template"]["spec"]) {
        if container["command"] != json!(["/usr/bin/proxy-agent"]) {
            continue;
        }
        let mut variables = BTreeMap::new();
        for source in container["envFrom"].as_array().into_iter().flatten() {
            let (_, map) = of_kind(objects, "ConfigMap")
                .find(|(name, _)| source["configMapRef"]["name"] == *name)
                .context("no such ConfigMap")?;
            for (key, value) in map["data"].as_object().context("no data")? {
                variables.insert(key.clone(), value.as_str().context("no string")?.to_owned());
            }
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"]
                .as_str()
                .context("a variable without a name")?;
            // The kubelet adds these variables.
            let value = variable["value"].as_str().unwrap_or("192.0.2.1");
            variables.insert(name.to_owned(), value.replace("$(NODE_IP)", "192.0.2.1"));
        }
        let words = container["args"].as_array().into_iter().flatten();
        let words = words.map(|word| word.as_str().map(str::to_owned).context("no string"));
        found.push(Invocation {
            environment: variables,
            words: words.collect::<Result<_>>()?,
        });
    }
    ensure!(
        found.len() == 2,
        "init container and agent are not {}",
        found.len()
    );
    Ok(found)
}

#[test]
fn the_agent_accepts_its_flags() -> Result<()> {
    let Some(tool) = Tool::find("the_agent_accepts_its_flags")? else {
        return Ok(());
    };
    let (flags, variables) = flags_and_variables()?;
    let node = Node::new()?;
    for (name, objects) in renderings(&tool)? {
        for Invocation { environment, words } in invocations(&objects)? {
            let flag = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
            for flag in words.iter().map(flag) {
                let is_known = flags.contains(&flag);
                ensure!(is_known, "{name}: {flag} is no flag of the agent");
            }
            for variable in environment.keys().filter(|key| *key != "NODE_IP") {
                let is_known = variables.contains(variable);
                ensure!(is_known, "{name}: the agent does not read {variable}");
            }
            // The values are checked as well: a dry run parses them all.
            let mut command = node.netns.command(tests::agent::binary()?);
            command
                .env_clear()
                .envs(&environment)
                .args(words.iter().filter(|word| flags.contains(&flag(word))))
                .arg("--dry-run");
            command.arg(format!("--run-dir={}", node.run_dir().display()));
            command.env("KUBERNETES_SERVICE_HOST", "10.96.0.1");
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
            let output = node.run(command)?;
            if output.status.code() == Some(2) {
                bail!(
                    "{name}: {environment:?} {words:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_chart_and_the_base_make_the_same_pod() -> Result<()> {
    let Some(tool) = Tool::find("the_chart_and_the_base_make_the_same_pod")? else {
        return Ok(());
    };
    let kustomize = repository().join("deploy/kustomize");
    let net_admin = json!({"security": "net-admin"});
    for (overlay, values) in [("base", json!({})), ("net-admin", net_admin)] {
        let ours = pod_without_names(&tool.kustomize(&kustomize.join(overlay))?)?;
        let chart = pod_without_names(&tool.helm(&values)?)?;
        for (key, value) in ours.as_object().context("no pod")? {
            ensure!(
                chart[key] == *value,
                "{overlay}: {key}: {value:#} and {:#}",
                chart[key]
            );
        }
        ensure!(chart == ours, "{overlay}: the chart has more");
    }
    Ok(())
}

/// Returns a pod's spec and its DaemonSet's update strategy, without the names of `ConfigMaps`, to which kustomize
/// appends a hash.
fn pod_without_names(objects: &[Value]) -> Result<Value> {
    let (_, daemon_set) = of_kind(objects, "DaemonSet")
        .next()
        .context("no DaemonSet")?;
    let mut pod = daemon_set["spec"]["template"]["spec"].clone();
    for list in ["initContainers", "containers"] {
        for container in pod[list].as_array_mut().context("no containers")? {
            container["envFrom"] = Value::Null;
        }
    }
    pod["updateStrategy"] = daemon_set["spec"]["updateStrategy"].clone();
    Ok(pod)
}

#[test]
fn the_chart_refuses_values_that_cannot_work() -> Result<()> {
    let Some(tool) = Tool::find("the_chart_refuses_values_that_cannot_work")? else {
        return Ok(());
    };
    for (values, complaint) in [
        (json!({"vips": []}), "vips"),
        (json!({"vip": "169.254.20.2"}), "vip"),
        (json!({"security": "none"}), "security"),
        (
            json!({"settings": {"ip-address": "169.254.20.2"}}),
            "settings",
        ),
        (json!({"proxy": {"enabled": true}}), "apiServers"),
        (
            json!({"monitoring": {"podMonitor": {"enabled": true}}}),
            "listen.at=node",
        ),
    ] {
        let Err(error) = tool.helm(&values) else {
            bail!("{values} is rendered");
        };
        ensure!(
            format!("{error:#}").contains(complaint),
            "{values}: {error:#}"
        );
    }
    Ok(())
}

/// The version is in the workspace, the chart and the base.
#[test]
fn there_is_one_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    for (path, line) in [
        (
            "deploy/helm/proxy-agent/Chart.yaml",
            format!("version: {version}"),
        ),
        (
            "deploy/helm/proxy-agent/Chart.yaml",
            format!("appVersion: {version}"),
        ),
        (
            "deploy/kustomize/base/kustomization.yaml",
            format!("    newTag: {version}"),
        ),
        (
            "deploy/webhook/base/kustomization.yaml",
            format!("    newTag: {version}"),
        ),
    ] {
        let text = fs::read_to_string(Path::new(repository()).join(path))?;
        ensure!(
            text.lines().any(|found| found == line),
            "{path}: no line `{line}`"
        );
    }
    Ok(())
}
