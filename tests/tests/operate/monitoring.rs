// SPDX-License-Identifier: Apache-2.0

//! Alerts and dashboard: promtool accepts them, each alert has a unit test and a runbook, and the agent exports every
//! metric in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::cmd;
use tests::manifests::{Tool, repository};

/// A directory with the files that promtool reads, which is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("proxy-agent-{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    fn promtool(&self, words: &[&str]) -> Result<String> {
        cmd::run(
            Command::new("promtool").args(words).current_dir(&self.0),
            "",
        )
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn monitoring() -> PathBuf {
    repository().join("deploy/kustomize/components/monitoring")
}

fn tunnel_monitoring() -> PathBuf {
    repository().join("deploy/tunnel/monitoring")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&read(
        &monitoring().join("proxy-agent.json"),
    )?)?)
}

/// Returns the panels that show data.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels.filter(|panel| panel["type"] != "row")
}

fn expressions(dashboard: &Value) -> impl Iterator<Item = &str> {
    panels(dashboard)
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str())
}

#[test]
fn the_alerts_do_what_their_unit_tests_say() -> Result<()> {
    let Some(tool) = Tool::find("the_alerts_do_what_their_unit_tests_say")? else {
        return Ok(());
    };
    check_alerts(&tool, "alerts", &monitoring(), "docs/troubleshooting.md")?;
    let page = "docs/inverted-connectivity.md";
    check_alerts(&tool, "tunnel-alerts", &tunnel_monitoring(), page)
}

/// Checks and tests the alerts of a directory with promtool; each alert must have a unit test and a section of a page.
fn check_alerts(tool: &Tool, name: &str, alerts: &Path, page: &str) -> Result<()> {
    let rule = tool.yaml(&read(&alerts.join("prometheusrule.yaml"))?)?;
    let directory = Directory::new(name)?;
    // JSON is also YAML.
    fs::write(directory.0.join("rules.yaml"), rule[0]["spec"].to_string())?;
    let unit_tests = read(&alerts.join("alerts.test.yaml"))?;
    fs::write(directory.0.join("alerts.test.yaml"), &unit_tests)?;
    directory.promtool(&["check", "rules", "rules.yaml"])?;
    directory.promtool(&["test", "rules", "alerts.test.yaml"])?;

    let runbook = anchors(&read(&repository().join(page))?);
    let rules = rule[0]["spec"]["groups"][0]["rules"]
        .as_array()
        .context("no rules")?;
    ensure!(rules.len() > 10, "only {} rules", rules.len());
    for rule in rules {
        let name = rule["alert"].as_str().context("a rule without alert")?;
        ensure!(
            unit_tests.contains(&format!("\"{name}\"")),
            "{name} has no unit test"
        );
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        ensure!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        let url = rule["annotations"]["runbook_url"]
            .as_str()
            .unwrap_or_default();
        let anchor = url
            .strip_prefix(page)
            .and_then(|rest| rest.strip_prefix('#'));
        let anchor = anchor.with_context(|| format!("{name}: the runbook is {url}"))?;
        ensure!(
            runbook.contains(anchor),
            "{name}: no heading {anchor} among {runbook:#?}"
        );
    }
    Ok(())
}

/// Returns the anchors of a page's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| {
            let kept = |c: &char| c.is_alphanumeric() || "- _".contains(*c);
            heading
                .to_lowercase()
                .replace(' ', "-")
                .chars()
                .filter(kept)
                .collect()
        })
        .collect()
}

#[test]
fn every_metric_is_one_of_the_agents() -> Result<()> {
    let documented = read(&repository().join("docs/metrics.md"))?;
    for file in [
        "prometheusrule.yaml",
        "alerts.test.yaml",
        "proxy-agent.json",
    ] {
        let text = read(&monitoring().join(file))?;
        let mut found = 0;
        for metric in metrics("proxy_agent_", &text) {
            ensure!(
                documented.contains(&format!("`{metric}`")),
                "{file}: docs/metrics.md has no {metric}"
            );
            found += 1;
        }
        ensure!(found > 10, "{file}: only {found} metrics found");
    }
    Ok(())
}

/// The pages list the tunnel's metrics without the program's prefix.
#[test]
fn every_metric_of_the_tunnels_alerts_is_documented() -> Result<()> {
    let pages = [
        "docs/tunnel.md",
        "docs/tenants.md",
        "docs/inverted-connectivity.md",
    ];
    let pages = pages.map(|page| read(&repository().join(page)));
    let documented = pages.into_iter().collect::<Result<String>>()?;
    for file in ["prometheusrule.yaml", "alerts.test.yaml"] {
        let text = read(&tunnel_monitoring().join(file))?;
        let found = metrics("konnectivity_network_proxy_", &text);
        ensure!(found.len() > 8, "{file}: only {found:?}");
        for metric in found {
            let name = metric.strip_prefix("konnectivity_network_proxy_");
            let name = name.and_then(|name| Some(name.split_once('_')?.1));
            // A pattern selects the metric for all programs.
            let Some(name) = name.filter(|name| !name.is_empty()) else {
                continue;
            };
            ensure!(
                documented.contains(&format!("`{name}")),
                "{file}: no page has {metric}"
            );
        }
    }
    Ok(())
}

/// Returns the names of metrics in a text that begin with `prefix`; those of histograms are without the suffix.
fn metrics<'a>(prefix: &str, text: &'a str) -> BTreeSet<&'a str> {
    text.match_indices(prefix)
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_'));
            let name = &rest[..end.unwrap_or(rest.len())];
            name.strip_suffix("_bucket").unwrap_or(name)
        })
        .collect()
}

#[test]
fn the_dashboard_can_be_loaded() -> Result<()> {
    let dashboard = dashboard()?;
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        ensure!(
            ids.insert(panel["id"].as_u64().context("no id")?),
            "an id twice: {panel:#}"
        );
        let position = &panel["gridPos"];
        let right = position["x"]
            .as_u64()
            .zip(position["w"].as_u64())
            .map(|(x, w)| x + w);
        ensure!(right.is_some_and(|right| right <= 24), "outside: {panel:#}");
    }
    for panel in panels(&dashboard) {
        ensure!(
            panel["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        ensure!(
            panel["targets"][0]["expr"].is_string(),
            "shows nothing: {panel:#}"
        );
    }
    // promtool reads rules, so each expression of a panel becomes the expression of a rule, with Grafana's variables
    // replaced.
    let filled = expressions(&dashboard).map(|expr| {
        expr.replace("$node", ".*")
            .replace("$__rate_interval", "5m")
    });
    let rules: Vec<Value> = (0..)
        .zip(filled)
        .map(|(number, expr)| json!({"record": format!("panel:{number}"), "expr": expr}))
        .collect();
    ensure!(rules.len() > 20, "only {} expressions", rules.len());
    let directory = Directory::new("dashboard")?;
    let text = json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string();
    fs::write(directory.0.join("rules.yaml"), text)?;
    directory
        .promtool(&["check", "rules", "rules.yaml"])
        .map(drop)
}
