// SPDX-License-Identifier: Apache-2.0

//! The chart of `deploy/tunnel`: it renders the same objects as kustomize, rejects values that cannot work, and has the
//! same version as everything else.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::manifests::{Tool, of_kind, repository};

use super::manifests::overlay;
use super::site::{chart, kustomize};

/// Returns the objects that kustomize and the chart must render alike: kinds with their specs, without names and
/// labels, of which the chart has more.
fn comparable(objects: &[Value]) -> BTreeMap<String, Value> {
    let mut compared = BTreeMap::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        let mut spec = object["spec"].clone();
        for selector in [
            "/selector",
            "/podSelector",
            "/template/metadata",
            "/template/spec/containers/0/envFrom",
            "/template/spec/topologySpreadConstraints/0/labelSelector",
        ] {
            if let Some(found) = spec.pointer_mut(selector) {
                *found = Value::Null;
            }
        }
        if kind == "ConfigMap" {
            spec = object["data"].clone();
        }
        let ports = &spec["ports"][0]["name"];
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        // kustomize appends a hash to the names of other ConfigMaps.
        let is_hashed = kind == "ConfigMap" && !name.ends_with("-tenants");
        let name = if is_hashed { "" } else { name };
        compared.insert(format!("{kind} {name} {ports}"), spec);
    }
    compared
}

#[test]
fn the_chart_and_kustomize_give_the_same() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-equality")? else {
        return Ok(());
    };
    let only_server = |server: Value| json!({"agent": {"enabled": false}, "server": server});
    let cases = [
        (kustomize(&tool, "agent")?, json!({})),
        (
            kustomize(&tool, "agent-daemonset")?,
            json!({"agent": {"kind": "DaemonSet"}}),
        ),
        (
            kustomize(&tool, "example/agent")?,
            json!({
                "image": {"registry": "registry.example.com/platform"},
                "agent": {
                    "credentials": "token", "countLeases": true,
                    "allowDestinations": ["192.0.2.0/24:10250", "10.64.0.0/12", "10.96.0.0/12"],
                },
            }),
        ),
        (
            kustomize(&tool, "server")?,
            only_server(json!({"enabled": true})),
        ),
        (
            overlay(&tool, "server", &["server-tokens-and-leases"])?,
            only_server(
                json!({"enabled": true, "kubeconfigSecret": "konnectivity-server-kubeconfig"}),
            ),
        ),
    ];
    for (ours, values) in cases {
        let (ours, chart) = (comparable(&ours), comparable(&chart(&tool, &values)?));
        for (name, spec) in &ours {
            let by_chart = chart.get(name);
            let by_chart =
                by_chart.with_context(|| format!("{values}: no {name} in {chart:#?}"))?;
            ensure!(
                by_chart == spec,
                "{values}: {name}: {spec:#} and {by_chart:#}"
            );
        }
        ensure!(ours.len() == chart.len(), "{values}: {ours:#?} {chart:#?}");
    }
    Ok(())
}

/// The tenants of the example's file equal those that the chart renders.
#[test]
fn the_charts_tenants_are_the_files() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-chart-tenants")? else {
        return Ok(());
    };
    let rules = |objects: &[Value]| -> Result<Vec<Value>> {
        let (_, map) = of_kind(objects, "ConfigMap")
            .find(|(name, _)| *name == "konnectivity-server-tenants")
            .context("no rules")?;
        tool.yaml(map["data"]["tenants.yaml"].as_str().context("no file")?)
    };
    let example = rules(&kustomize(&tool, "example/server")?)?;
    let tenants = &example[0]["tenants"];
    ensure!(tenants.as_array().is_some_and(|tenants| tenants.len() == 2));
    let values = json!({"server": {"enabled": true, "tenants": tenants}});
    ensure!(rules(&chart(&tool, &values)?)? == example);
    Ok(())
}

#[test]
fn the_chart_refuses_values_that_cannot_work() -> Result<()> {
    let Some(tool) = Tool::find("tunnel-deploy-refusals")? else {
        return Ok(());
    };
    for (values, complaint) in [
        (json!({"agent": {"servers": []}}), "servers"),
        (
            json!({"agent": {"servers": ["https://tunnel.example"]}}),
            "servers",
        ),
        (json!({"agent": {"kind": "Pod"}}), "kind"),
        (json!({"agent": {"settings": {"ca-cert": "x"}}}), "settings"),
        (
            json!({"server": {"settings": {"server-count": 3}}}),
            "settings",
        ),
        (json!({"servers": {}}), "servers"),
        (
            json!({"server": {"enabled": true, "kubeconfigSecret": "a", "tenants": [{"name": "b"}]}}),
            "server.tenants",
        ),
    ] {
        let Err(error) = chart(&tool, &values) else {
            bail!("{values} is rendered");
        };
        let error = format!("{error:#}");
        ensure!(error.contains(complaint), "{values}: {error}");
    }
    Ok(())
}

/// The version in the workspace, in the chart and in each image name of kustomize is the same.
#[test]
fn there_is_one_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let tag = format!("    newTag: {version}");
    let directories = [
        "agent",
        "server",
        "static-pod",
        "example/agent",
        "example/server",
    ];
    let kustomizations = directories.map(|directory| {
        (
            format!("kustomize/{directory}/kustomization.yaml"),
            tag.clone(),
        )
    });
    let of_chart = ["version", "appVersion"].map(|key| {
        (
            "helm/konnectivity/Chart.yaml".to_owned(),
            format!("{key}: {version}"),
        )
    });
    for (path, line) in kustomizations.into_iter().chain(of_chart) {
        let text = fs::read_to_string(Path::new(repository()).join("deploy/tunnel").join(&path))?;
        ensure!(
            text.lines().any(|found| found == line),
            "{path}: no line `{line}`"
        );
    }
    Ok(())
}
